"""Random numbers as pure functions of integers: an environment's start depends on its seed alone."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*values: int | np.integer | np.ndarray) -> Int64[np.ndarray, "..."]:
    """Seeds made of integers (the run's seed, a purpose, a copy's number, ...), all shapes broadcast.

    Another order or number of values gives other seeds. They lie in [0, 2**63), where Gymnasium's do.
    """
    with np.errstate(over="ignore"):
        state = np.array([len(values)], dtype=np.uint64)
        for value in values:
            state = _finalise((state ^ _finalise(_bits(value))) + GOLDEN)
    return (state >> np.uint64(1)).astype(np.int64).reshape(np.broadcast_shapes(*map(np.shape, values)))


def uniforms(seeds: Int64[np.ndarray, " N"], shape: Sequence[int]) -> Float64[np.ndarray, "N *shape"]:
    """Uniform numbers in [0, 1), of that shape for every seed: its splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        counters = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * GOLDEN
        bits = _finalise(_finalise(_bits(seeds))[:, None] + counters)
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(len(seeds), *shape)


def _bits(values: int | np.integer | np.ndarray) -> np.ndarray:
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).astype(np.uint64)


def _finalise(z: np.ndarray) -> np.ndarray:
    """splitmix64's output function: every bit of the result depends on every bit of z."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
