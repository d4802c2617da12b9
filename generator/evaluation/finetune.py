"""Fine-tuning: networks as initialisations, trained further by the recipe of the zoo."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo

from ..training.hole import Hole, inside
from .recipe import better, middle_recipe, shortened, steps_per_epoch, train_from

RATES = (1.0, 0.3, 0.1)
"""Of the zoo's peak learning rate, tried for each kind of start and each length: it is for fresh networks."""
KINDS = {
    "random": "random initialisation",
    "generated": "generated, one update",
    "retrieved": "retrieved from the zoo",
    "trained": "trained, as good as generated",
}
"""Starts that are compared; the last are of held-out runs, moments as good as what was generated."""


def fine_tune(
    task: Task,
    plan: RunPlan,
    starts: Float[Tensor, "N D"],
    epochs: Sequence[int],
    first_run: int,
) -> tuple[dict[str, Float[Tensor, "N E"]], list[float | None]]:
    """Metrics after each number of epochs, by column, and the learning rates behind them.

    Every length is a training of its own, with the recipe's whole schedule. Of `RATES` the one whose mean
    validation metric is best is taken.
    """
    recipe, column = middle_recipe(plan, len(starts)), f"validation_{task.metric}"
    found: list[dict[str, Tensor]] = []
    rates: list[float | None] = []
    for each in epochs:
        if each == 0:
            found.append(task.metrics_of(starts))
            rates.append(None)
            continue
        num_steps = each * steps_per_epoch(task, recipe.batch_size[0])
        ends = []
        for rate in RATES:
            lr = recipe.lr[0] * rate
            tuned = train_from(task, shortened(replace(recipe, lr=(lr, lr)), num_steps, 2), starts, first_run)
            ends.append({name: values[:, -1] for name, values in tuned.metrics.items()})
        chosen = better(task.objective, [float(end[column].mean()) for end in ends])
        found.append(ends[chosen])
        rates.append(recipe.lr[0] * RATES[chosen])
    return {name: torch.stack([each[name] for each in found], 1) for name in found[0]}, rates


def tuned(
    kind: str, task: Task, plan: RunPlan, starts: Float[Tensor, "N D"], epochs: Sequence[int], first_run: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers and arrays of one kind of start."""
    metrics, rates = fine_tune(task, plan, starts, epochs, first_run)
    tested = {name: values for name, values in metrics.items() if name.startswith("test_")}
    column = f"test_{task.metric}"
    numbers: dict[str, Any] = {f"finetune_{kind}_lrs": rates}
    for name in tested.keys() & {column, "test_error"}:
        numbers[f"finetune_{kind}_{name}"] = tested[name].mean(0).tolist()
        numbers[f"finetune_{kind}_{name}_std"] = tested[name].std(0, correction=0).tolist()
    arrays = {f"finetune_{kind}_{name}": values for name, values in tested.items()}
    return numbers, arrays | {"finetune_epochs": torch.tensor(epochs)}


def nearest_of_runs(
    zoo: Zoo, num_training_runs: int, prompt: float, num: int, hole: Hole | None = None
) -> Float[Tensor, "N D"]:
    """The training checkpoints whose metric is nearest a prompt, one of each run at most, none in a hole."""
    best: list[tuple[float, int, int, int]] = []  # (distance, unit, place of the run, place of the moment)
    for unit in zoo.finished_units():
        columns = zoo.read_metrics(unit)
        metric = columns[zoo.header.prompted].view(-1, zoo.header.plan.num_checkpoints)
        distance = (metric - prompt).abs().nan_to_num(torch.inf)
        run_ids = columns["run_id"].view(metric.shape)[:, 0]
        distance[run_ids >= num_training_runs] = torch.inf
        if hole is not None:
            distance[inside(metric, hole)] = torch.inf
        least = distance.min(1)
        rows = zip(least.values.tolist(), least.indices.tolist(), strict=True)
        best += [(far, unit, run, moment) for run, (far, moment) in enumerate(rows) if far < torch.inf]
    chosen, found = sorted(best)[:num], {}
    for unit in sorted({unit for _, unit, _, _ in chosen}):
        theta = zoo.read_unit(unit).theta
        found |= {(u, run): theta[run, moment].float() for _, u, run, moment in chosen if u == unit}
    return torch.stack([found[unit, run] for _, unit, run, _ in chosen])
