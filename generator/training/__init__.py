"""Pairs of checkpoints, and the loop that learns from them."""
