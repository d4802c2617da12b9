"""Learns to generate networks from a zoo: pairs, coordinates, WeightDiT, samplers, evaluation."""
