"""Amortisation: after how many networks a generator has paid for its zoo and its training."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..medians import median
from .evaluate import HeldOut, sgd_equivalent_steps
from .recipe import middle_recipe, shortened, steps_per_rollout, train_from

WAYS = {
    "recorded": "as the zoo recorded it, in stacks, every checkpoint measured",
    "stacked": "in stacks, nothing measured",
    "alone": "one network at a time, nothing measured",
}
"""How networks may be trained instead, and what a step of one then costs."""
STACK, LEAST_S = 32, 0.25
"""Networks of a stack that is timed, and CPU seconds that a timing takes at least."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU seconds that a generator has cost before it makes its first network."""

    zoo_s: float
    """Of all runs of the zoo, held-out ones too."""
    training_s: float
    run_s: float
    """Of a run of the zoo."""


def clocked(
    generator: WeightGenerator, task: Task, plan: RunPlan, starts: Float[Tensor, "N D"], first_run: int
) -> dict[str, Any]:
    """CPU seconds of one update of a network, and of one optimizer step of one, in a stack and alone."""
    metric = task.evaluate(starts, "validation")[generator.metric]

    def update() -> None:
        generator.update(starts, metric, generator.best_metric, rng=seeded(0))

    update()
    stack = starts[torch.arange(STACK) % len(starts)]
    return {
        "cost_sampling_s": _seconds(update) / len(starts),
        "cost_step_stacked_s": _step_seconds(task, plan, stack, first_run),
        "cost_step_alone_s": _step_seconds(task, plan, stack[:1], first_run),
    }


def _seconds(work: Any) -> float:
    """CPU seconds of a piece of work, done often enough to be told."""
    began, times = time.process_time(), 0
    while time.process_time() - began < LEAST_S:
        work()
        times += 1
    return (time.process_time() - began) / times


def _step_seconds(task: Task, plan: RunPlan, starts: Float[Tensor, "K D"], first_run: int) -> float:
    """Of one step of one network: a longer training less a shorter one, for both measure their two ends."""
    recipe = middle_recipe(plan, len(starts))
    unit = steps_per_rollout(task, recipe.batch_size[0]) or 10

    def seconds(num_steps: int) -> float:
        began = time.process_time()
        train_from(task, shortened(recipe, num_steps, 2), starts, first_run)
        return time.process_time() - began

    seconds(unit)  # data is prepared, memory is there
    short, more = seconds(unit), unit
    while (longer := seconds(unit + more) - short) < LEAST_S:
        more *= 4
    return longer / more / len(starts)


def break_even(fixed_s: float, saved_s: float) -> float:
    """Networks after which what each saves has paid for what all cost; infinite if it saves nothing."""
    return fixed_s / saved_s if saved_s > 0 else math.inf


def amortised(
    held_out: HeldOut,
    grids: Sequence[dict[str, Any]],
    column: str,
    objective: str,
    spent: Spent,
    clocks: dict[str, Any],
    num_steps: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Costs and when they are paid back, for the best prompt as numbers and for every prompt as arrays.

    For each prompt the quality is the median test metric that networks made for it have, and its price the
    steps that the same starts need to be as good, median over networks and seeds.
    """
    achieved = torch.cat([grid[column] for grid in grids])  # (seeds N, P)
    curve = held_out.metrics[column].repeat(len(grids), 1)
    taken = held_out.steps.repeat(len(grids), 1)
    steps = torch.stack([median(sgd_equivalent_steps(curve, taken, each, objective)) for each in achieved.T])
    fixed, update = spent.zoo_s + spent.training_s, clocks["cost_sampling_s"]
    prices = {"recorded": spent.run_s / num_steps} | {
        way: clocks[f"cost_step_{way}_s"] for way in ("stacked", "alone")
    }
    numbers = {
        "cost_zoo_s": spent.zoo_s,
        "cost_training_s": spent.training_s,
        "cost_sampling_s": update,
        **{f"cost_step_{way}_s": price for way, price in prices.items()},
    }
    arrays = {"cost_quality": median(achieved, 0), "cost_steps": steps}
    for way, price in prices.items():
        even = [break_even(fixed, count * price - update) for count in steps.tolist()]
        even = [math.nan if math.isinf(count) else each for each, count in zip(even, steps, strict=True)]
        numbers[f"break_even_{way}"] = even[0]
        arrays[f"break_even_{way}"] = torch.tensor(even)
    return numbers, arrays
