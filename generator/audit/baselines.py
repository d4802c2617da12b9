"""Baselines: networks that anybody can make of training networks, which a generator has to be better than."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import Task

from ..rebasin import align
from .novelty import Pool


class Baseline(NamedTuple):
    """A family of trivial generators: one setting after the other leads away from training networks."""

    make: Callable[..., Tensor]
    """(task, pool, setting, num, prompt, rng) -> (num, D)"""
    settings: tuple[float, ...]
    words: str
    """What the settings are."""


def noise(task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator) -> Tensor:
    """The best checkpoints, with noise of `setting` times each tensor's standard deviation."""
    theta = _drawn(pool.best, num, rng)
    scale = torch.cat(
        [pool.best[:, part].std().expand(part.stop - part.start) for _, part, _ in task.spec.slices()]
    )
    return theta + setting * scale * torch.randn(theta.shape, generator=rng)


def average(task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator) -> Tensor:
    """Means of `setting` of the best checkpoints, aligned with the first of them."""
    many = min(int(setting), len(pool.best))
    rows = []
    for _ in range(num):
        some = _drawn(pool.best, many, rng)
        rows.append(align(task.spec, task.symmetry, some[0], some).mean(0))
    return torch.stack(rows)


def gaussian(task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator) -> Tensor:
    """Each parameter from its own normal distribution over the best checkpoints, `setting` times as wide.

    They are aligned with the best of them; otherwise there is no distribution to speak of.
    """
    best = pool.best[pool.best_metric.argsort(descending=task.objective == "max")[0]]
    aligned = align(task.spec, task.symmetry, best, pool.best)
    spread = aligned.std(0, correction=0)
    return aligned.mean(0) + setting * spread * torch.randn(num, task.spec.D, generator=rng)


def interpolation(
    task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator
) -> Tensor:
    """Between two of the best checkpoints, the second aligned with the first; `setting` of the way."""
    first, second = _pairs(pool.best, num, rng)
    return torch.lerp(first, align(task.spec, task.symmetry, first, second), setting)


def unaligned(
    task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator
) -> Tensor:
    """Between two of the best checkpoints as they are."""
    first, second = _pairs(pool.best, num, rng)
    return torch.lerp(first, second, setting)


def retrieval(
    task: Task, pool: Pool, setting: float, num: int, prompt: float, rng: torch.Generator
) -> Tensor:
    """The checkpoints of other runs each whose validation metric is nearest the prompt."""
    return pool.best[(pool.best_metric - prompt).abs().argsort()[:num]]


BASELINES: dict[str, Baseline] = {
    "noise": Baseline(noise, (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6), "sigma over each tensor's own"),
    "averages": Baseline(average, (2.0, 4.0, 16.0), "networks, aligned"),
    "Gaussian": Baseline(gaussian, (0.0, 0.25, 0.5, 1.0), "of each parameter's spread"),
    "interpolation": Baseline(interpolation, (0.1, 0.2, 0.3, 0.4, 0.5), "of the way, aligned"),
    "interpolation as is": Baseline(unaligned, (0.1, 0.2, 0.3, 0.4, 0.5), "of the way, not aligned"),
    "retrieval": Baseline(retrieval, (0.0,), "nearest the prompt"),
}


def _drawn(theta: Float[Tensor, "R D"], num: int, rng: torch.Generator) -> Float[Tensor, "num D"]:
    """So many of the networks, each once while there are enough."""
    order = torch.cat([torch.randperm(len(theta), generator=rng) for _ in range(-(-num // len(theta)))])
    return theta[order[:num]]


def _pairs(theta: Float[Tensor, "R D"], num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two different networks each."""
    first = torch.randint(len(theta), (num,), generator=rng)
    step = torch.randint(1, max(2, len(theta)), (num,), generator=rng)
    return theta[first], theta[(first + step) % len(theta)]
