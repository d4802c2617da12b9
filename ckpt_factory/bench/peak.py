"""The matrix-product peak: what a core can do at best, measured beside what it is compared with."""

from collections.abc import Callable
from typing import Literal

import torch

from .clock import calls_for, cpu_seconds

SIZE = 1024
PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


def peak_probes(seconds: float, size: int = SIZE) -> dict[str, Callable[[], float]]:
    """By precision a probe that returns the GFLOP per CPU second of a product of square matrices."""
    return {precision: _probe(getattr(torch, precision), seconds, size) for precision in PRECISIONS}


def _probe(dtype: torch.dtype, seconds: float, size: int) -> Callable[[], float]:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=rng).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)

    def product() -> object:
        return torch.mm(a, b, out=out)

    calls = calls_for(product, seconds)
    return lambda: 2 * size**3 / 1e9 / cpu_seconds(product, calls)
