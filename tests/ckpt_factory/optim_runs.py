"""What the tests of the optimizers share: parameters and gradients that depend on seeds alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

K, STEPS = 4, 12
SHAPES = ((3, 2), (3,), ())


def start(shapes: Sequence[tuple[int, ...]] = SHAPES, *, seed: int = 0) -> list[Tensor]:
    """Parameters of K runs: (K, *shape) each."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(K, *shape, generator=rng) for shape in shapes]


def gradients(step: int, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    """What all K runs see at a step."""
    return start(shapes, seed=100 + step)


def run(
    optimizer: Optimizer,
    params: Sequence[Tensor],
    steps: range = range(STEPS),
    *,
    part: int | slice = slice(None),
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> None:
    """Steps along those gradients; `part` says whose."""
    for step in steps:
        for param, gradient in zip(params, gradients(step, shapes), strict=True):
            param.grad = gradient[part].clone()
        optimizer.step()
