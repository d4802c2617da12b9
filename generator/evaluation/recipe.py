"""Recipe: the zoo's way of training as one set of values, to train other starts by, and what an epoch is."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from ckpt_factory import RunPlan, Task, train_stack
from ckpt_factory.train import Rows


def middle_recipe(plan: RunPlan, num: int) -> RunPlan:
    """The recipe of a zoo for `num` runs, every range at its middle, the first of several choices.

    Data is clean and whole, the loss the task's own: what a zoo varies to be diverse is no part of it.
    """
    lr, weight_decay = (_geometric_mean(*getattr(plan, name)) for name in ("lr", "weight_decay"))
    momentum = sum(plan.momentum) / 2
    return replace(
        plan,
        optimizer=plan.optimizer[:1],
        batch_size=plan.batch_size[:1],
        lr=(lr, lr),
        weight_decay=(weight_decay, weight_decay),
        momentum=(momentum, momentum),
        label_noise=(0.0, 0.0),
        data_fraction=(1.0, 1.0),
        loss=("cross-entropy",),
        gamma=(0.1, 0.1),
        hyper={name: (sum(bounds) / 2, sum(bounds) / 2) for name, bounds in plan.hyper.items()},
        group_size=math.gcd(num, plan.group_size),
        compile=False,
        spacing="log",
    )


def shortened(plan: RunPlan, num_steps: int, num_checkpoints: int) -> RunPlan:
    """The same recipe over so many steps; with as many checkpoints as steps all of them are kept."""
    return replace(plan, num_steps=num_steps, num_checkpoints=min(num_checkpoints, num_steps + 1))


def train_from(task: Task, plan: RunPlan, starts: Float[Tensor, "N D"], first_run: int) -> Rows:
    """Train start networks by a recipe.

    Args:
        first_run: id that batch orders are counted from; past a zoo's runs they are none of its own.
    """
    first = -(-first_run // plan.group_size) * plan.group_size
    return train_stack(task, plan, plan.runs(range(first, first + len(starts))), starts=starts)


def steps_per_rollout(task: Task, batch_size: int) -> int | None:
    """Optimizer steps per rollout of policies; None where there is no environment."""
    count = getattr(task, "env_steps", None)
    if count is None:
        return None
    return next(step for step in itertools.count(1) if count(step + 1, batch_size) > count(1, batch_size))


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """Optimizer steps of a pass over the training data, or from one rollout of policies to the next.

    Raises:
        ValueError: the task has neither.
    """
    rollout = steps_per_rollout(task, batch_size)
    return task.num_examples("train") // batch_size if rollout is None else rollout


def or_worst(metric: Float[Tensor, "*any"], objective: str) -> Float[Tensor, "*any"]:
    """The same with what is not a number, of runs that have diverged, as bad as can be."""
    return metric.nan_to_num(math.inf if objective == "min" else -math.inf)


def better(objective: str, values: Sequence[float]) -> int:
    """Index of the best of some metrics; what is not a number is the worst."""
    sign = 1.0 if objective == "min" else -1.0
    return min(range(len(values)), key=lambda i: math.inf if math.isnan(values[i]) else sign * values[i])


def _geometric_mean(low: float, high: float) -> float:
    return low if low == high else math.sqrt(low * high)
