"""train_stack: K runs in lock-step, the inner loop of the factory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .optim import SGD
from .plan import RunPlan, RunSettings
from .tasks.base import Task


@dataclass(frozen=True)
class Rows:
    """One checkpoint of each run of a stack."""

    step: int
    theta: Float[Tensor, "K D"]
    metrics: dict[str, Float[Tensor, " K"]]
    """By column name: validation_loss, test_error, ..."""


def train_stack(
    task: Task,
    plan: RunPlan,
    runs: Sequence[RunSettings],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Iterator[Rows]:
    """Train runs together and yield their checkpoints at `plan.steps()`.

    Every run has its own initialisation, learning rate and weight decay; each `plan.group_size` of them in
    sequence share their mini-batches. Metrics are those of the parameters as stored: theta is rounded to
    `dtype` first. A run that diverges goes on with its non-finite numbers and disturbs no other.

    Raises:
        ValueError: the runs are not whole groups.
    """
    orders = [run.order_id for run in runs]
    if orders != [order for order in dict.fromkeys(orders) for _ in range(plan.group_size)]:
        raise ValueError(
            f"a stack is whole groups of {plan.group_size} runs in sequence, got runs of the groups {orders}"
        )

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(run, name) for run in runs], dtype=torch.float32, device=device)

    theta = task.init(plan.init_rngs(runs)).to(device) * column("init_scale").unsqueeze(1)
    params = {name: value.clone() for name, value in task.spec.unflatten(theta).items()}
    next_batch = task.sampler(plan.order_rngs(runs), plan.batch_size)
    peak_lr = column("lr")
    optimizer = SGD(
        params.values(),
        lr=peak_lr,
        momentum=plan.momentum,
        weight_decay=column("weight_decay"),
        nesterov=plan.momentum > 0,
    )
    saved = set(plan.steps())
    for step in range(plan.num_steps + 1):
        if step in saved:
            stored = task.spec.flatten(params).to(dtype)
            yield Rows(step, stored, task.metrics_of(stored.float()))
        if step == plan.num_steps:
            break
        batch = next_batch(task.spec.flatten(params))
        for name, gradient in task.gradients(params, batch).items():
            params[name].grad = gradient
        optimizer.param_groups[0]["lr"] = peak_lr * plan.lr_at(step)
        optimizer.step()
