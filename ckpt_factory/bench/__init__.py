"""Benchmarks and experiments, without Ray; `theta bench` runs the former, each beside its alternatives."""

from .clock import machine
from .factory import RECIPES, Variant, measure_factory, whole_stacks
from .label_noise import label_noise_experiment
from .paired import paired_difference
from .storage import measure_storage

__all__ = [
    "RECIPES",
    "Variant",
    "label_noise_experiment",
    "machine",
    "measure_factory",
    "measure_storage",
    "paired_difference",
    "whole_stacks",
]
