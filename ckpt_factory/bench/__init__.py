"""Benchmarks and experiments, without Ray; `theta bench` runs them."""
