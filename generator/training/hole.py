"""The hole test: an interval of the metric that a generator never sees, and is then prompted for.

Who only remembers has nothing to give between the metrics that were learned from; who has learned how
networks change with the metric has.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .pairs import Runs

Hole = tuple[float, float]
"""The least and the largest metric; what lies between them, both excluded, is left out."""


def inside(metric: Float[Tensor, "*any"], hole: Hole) -> Bool[Tensor, "*any"]:
    return (metric > hole[0]) & (metric < hole[1])


def without_hole(runs: Runs, hole: Hole | None) -> Runs:
    """Runs without their checkpoints whose main metric lies in the hole, as many of each as before.

    The checkpoints that are left are spread evenly, in their order, over the places of all, so that some come
    twice; of a run that lies in the hole altogether the metrics become NaN, and nothing is learned from it.
    """
    if hole is None:
        return runs
    kept = ~inside(runs.metric[..., 0], hole)
    count, num = kept.sum(1, keepdim=True), runs.metric.shape[1]
    rank = (torch.arange(num) * count).div(num, rounding_mode="floor")  # of the checkpoint for each place
    places = (~kept).int().argsort(dim=1, stable=True).gather(1, rank)
    metric = runs.metric.gather(1, places.unsqueeze(-1).expand_as(runs.metric))
    metric[count.squeeze(1) == 0] = torch.nan
    return Runs(runs.z.gather(1, places.unsqueeze(-1).expand_as(runs.z)), metric)


def outside(
    columns: Mapping[str, Float[Tensor, " C"]], prompted: str, hole: Hole | None
) -> dict[str, Float[Tensor, " K"]]:
    """Checkpoints, by column, without those in the hole."""
    if hole is None:
        return dict(columns)
    kept = ~inside(columns[prompted], hole)
    return {name: values[kept] for name, values in columns.items()}


def check_hole(metric: Float[Tensor, " C"], hole: Hole | None) -> None:
    """Refuse a hole that takes nothing away from these training checkpoints, or reaches past one end.

    Raises:
        ValueError: there must be something to learn from on both sides of it, or it is no hole.
    """
    if hole is None:
        return
    low, high = float(metric.min()), float(metric.max())
    removed = int(inside(metric, hole).sum())
    if not removed or not low <= hole[0] < hole[1] <= high:
        raise ValueError(
            f"hole is {hole[0]:g} to {hole[1]:g}, which holds {removed:,} of {len(metric):,} training "
            f"checkpoints; expected some, between the least and the largest metric of all, {low:.4g} and "
            f"{high:.4g}"
        )
