"""Rivals: what optimizers make of the starts that a generator updates, each at the rate that suits it best.

A rate that is best for 450 steps is far from best for one. So rates are tried on training initialisations,
and for every number of updates a rival takes the one that was best there; no held-out start has a say in it.
"""

import math
from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import RunPlan, Task

from ..medians import median, quartiles
from .evaluate import HeldOut, sgd_equivalent_steps
from .recipe import better, middle_recipe, or_worst, shortened, train_from

RIVALS = ("sgd", "adamw", "lion", "tiger", "amos")
RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Learning rates that are tried, times the zoo's own; optimizers take them times their own ratio to SGD."""
CHECKPOINTS = 40
"""Moments of a long run, log-spaced, between which the steps needed are interpolated."""


@dataclass(frozen=True)
class Arena:
    """What rivals are measured in."""

    task: Task
    recipe: RunPlan
    """Of one value everywhere, as `middle_recipe` makes it."""
    metric: str
    first_run: int
    """Batch orders are those of runs from here, none of the zoo's."""
    training: Float[Tensor, "M D"]
    """Training initialisations, which rates are chosen on."""
    wanted: Float[Tensor, " M"]
    """The validation metric of the generator's networks from each of them."""

    @classmethod
    def of(
        cls,
        task: Task,
        plan: RunPlan,
        num: int,
        training: Float[Tensor, "M D"],
        wanted: Float[Tensor, " M"],
        first_run: int,
    ) -> "Arena":
        """For `num` held-out starts, by the recipe of a zoo."""
        recipe = middle_recipe(plan, math.gcd(num, len(training)))
        return cls(task, recipe, task.metric, first_run, training, wanted)

    def with_rate(self, optimizer: str, rate: float) -> RunPlan:
        """The recipe with another optimizer, at the zoo's learning rate times a factor."""
        lr = self.recipe.lr[0] * rate
        return replace(self.recipe, optimizer=(optimizer,), lr=(lr, lr))


def first_updates(
    arena: Arena, optimizer: str, starts: Float[Tensor, "N D"], updates: int
) -> tuple[dict[str, Float[Tensor, "N U"]], list[float]]:
    """Test metrics of each start after 0 to `updates` steps, and the rates behind 1 to `updates`."""
    column, objective = f"validation_{arena.metric}", arena.task.objective

    def curves(rate: float, theta: Tensor) -> dict[str, Tensor]:
        plan = replace(arena.with_rate(optimizer, rate), schedule="constant")
        return train_from(arena.task, shortened(plan, updates, updates + 1), theta, arena.first_run).metrics

    tried = [median(or_worst(curves(rate, arena.training)[column], objective), 0) for rate in RATES]
    chosen = [better(objective, [float(each[u]) for each in tried]) for u in range(1, updates + 1)]
    held_out = {rate: curves(RATES[rate], starts) for rate in sorted(set(chosen))}
    source = [chosen[0], *chosen]  # before the first step all are alike
    return {
        name: torch.stack([held_out[rate][name][:, u] for u, rate in enumerate(source)], 1)
        for name in held_out[chosen[0]]
        if name.startswith("test_")
    }, [RATES[rate] for rate in chosen]


def steps_needed(
    arena: Arena, optimizer: str, starts: Float[Tensor, "N D"], reached: Float[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], float]:
    """Steps until each start's test metric is as good as `reached`, infinite for never, and the rate of it.

    Runs are as long as the zoo's, with its schedule; the rate is the one by which training initialisations
    were the soonest as good as what the generator makes of them.
    """
    objective, metric = arena.task.objective, arena.metric

    def run(rate: float, theta: Tensor, split: str, wanted: Tensor) -> tuple[Tensor, Tensor]:
        plan = shortened(arena.with_rate(optimizer, rate), arena.recipe.num_steps, CHECKPOINTS)
        rows = train_from(arena.task, plan, theta, arena.first_run)
        curve = or_worst(rows.metrics[f"{split}_{metric}"], objective)
        return sgd_equivalent_steps(curve, rows.steps, wanted, objective), curve[:, -1]

    tried = [run(rate, arena.training, "validation", arena.wanted) for rate in RATES]
    needed = [float(median(steps)) for steps, _ in tried]
    best = needed.index(min(needed))
    if math.isinf(min(needed)):  # the goal is out of reach: the rate that comes nearest to it
        best = better(objective, [float(median(end)) for _, end in tried])
    return run(RATES[best], starts, "test", reached)[0], RATES[best]


def rival(
    arena: Arena, optimizer: str, held_out: HeldOut, reached: Float[Tensor, " N"], updates: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers and arrays of one rival on held-out starts."""
    starts, column = held_out.theta[:, 0], f"test_{arena.metric}"
    curves, rates = first_updates(arena, optimizer, starts, updates)
    needed, rate = steps_needed(arena, optimizer, starts, reached)
    unit, curve = arena.recipe.lr[0], or_worst(curves[column], arena.task.objective)
    numbers = {
        f"rival_{optimizer}_steps": float(median(needed)),
        f"rival_{optimizer}_steps_quartiles": quartiles(needed),
        f"rival_{optimizer}_lr": rate * unit,
        f"rival_{optimizer}_curve": median(curve, 0).tolist(),
        f"rival_{optimizer}_curve_quartiles": [quartiles(each) for each in curve.T],
        f"rival_{optimizer}_curve_lrs": [each * unit for each in rates],
    }
    arrays = {f"rival_{optimizer}_{name}": values for name, values in curves.items()}
    return numbers, arrays | {f"rival_{optimizer}_steps": needed}


def known_rivals(arrays: Container[str]) -> list[str]:
    """The rivals that an evaluation has measured."""
    return [name for name in RIVALS if f"rival_{name}_steps" in arrays]
