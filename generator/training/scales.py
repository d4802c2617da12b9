"""Scales: one for every tensor, or a single one for all coordinates, fitted on training runs."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..conditioning import MetricView, Scaling, std_of
from ..coordinates import Coordinates
from ..model.dit import DiTConfig
from .pairs import Reservoir

ScalesName = Literal["tensor", "single"]
FIT_PAIRS = 20_000
TARGET_STD = 0.538
"""Standard deviation of all numbers of networks in the published scale."""
STD_CHECKPOINTS = 25_000
"""Checkpoints that it is measured on."""


def fit_scaling(
    model: DiTConfig,
    scales: ScalesName | None,
    coordinates: Coordinates,
    reservoir: Reservoir,
    seen: Float[Tensor, "C M"],
    objectives: Sequence[str],
    *,
    rng: torch.Generator,
) -> Scaling:
    """Scales of a model from 20,000 training pairs.

    The published transformer embeds metrics raw, whatever the scales.

    Args:
        scales: default "tensor", with tokens gpt "single".
        seen: metrics of all training checkpoints.
    """
    published = model.tokens == "gpt"
    scales = scales or ("single" if published else "tensor")
    scale = single_scale(reservoir, rng=rng) if scales == "single" else None
    found = Scaling.fit_parts(coordinates, reservoir.samples(FIT_PAIRS, rng=rng), seen, objectives)
    if scale is not None:
        found = with_single_scale(found, scale)
    return with_raw_metrics(found) if published else found


def single_scale(reservoir: Reservoir, *, rng: torch.Generator) -> float:
    """The published scale of a zoo: the standard deviation of all numbers of checkpoints over 0.538."""
    count, total, squares = 0, 0.0, 0.0
    for part in reservoir.checkpoints(STD_CHECKPOINTS, rng=rng):
        z = part.double()
        count, total, squares = (
            count + z.numel(),
            total + float(z.sum()),
            squares + float(z.square().sum()),
        )
    return std_of(count, total, squares) / TARGET_STD


def with_single_scale(scaling: Scaling, scale: float) -> Scaling:
    """Networks and updates both over one number, not centred."""
    every = torch.full_like(scaling.start_scale, scale)
    zeros = torch.zeros_like(every)
    return replace(scaling, start_mean=zeros, start_scale=every, update_scale=every.clone())


def with_raw_metrics(scaling: Scaling) -> Scaling:
    """Metrics as they are, without a second view."""
    return replace(scaling, views=tuple(MetricView(range=view.range, log=False) for view in scaling.views))


def published_scaling(coefficient: float, size: int, metric_range: tuple[float, float]) -> Scaling:
    """Networks times one coefficient, neither centred nor scaled by tensors; metrics raw."""
    ones = torch.ones(size)
    plain = Scaling(ones, ones, ones, (MetricView(range=metric_range, log=False),))
    return with_single_scale(plain, 1 / coefficient)
