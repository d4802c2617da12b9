"""Several metrics: each prompted alone, and all together, from held-out starts, on the test split."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import Task

from ..artefact import WeightGenerator
from ..prompt import linear_prompts, measured
from .evaluate import grid_of_prompts, prompt_alignment, retrieval

START_SHARE = {"min": 0.9, "max": 1.0}
"""Where prompts of a metric that goes against the task's own end, as a share of the start network's."""

Found = tuple[dict[str, Any], dict[str, Tensor]]


def prompts_of(
    generator: WeightGenerator, task: Task, start: Mapping[str, Float[Tensor, " N"]], metric: str, num: int
) -> Float[Tensor, "N P"]:
    """Prompts of one metric, linear from the best of the training runs to a share of the start network's.

    Args:
        start: metrics of the start networks by column, as `measured` gives them.
    """
    objective = generator.objective_of(metric)
    share = task.prompt_start if objective == task.objective else START_SHARE[objective]
    return linear_prompts(generator.best_of(metric), start[generator.column_of(metric)], share, num)


def alone(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    training: Mapping[str, Float[Tensor, " C"]],
    metric: str,
    *,
    num_prompts: int,
    num_seeds: int,
) -> Found:
    """A metric prompted by itself; the control returns the training checkpoint whose metric is nearest."""
    column = f"test_{metric}"
    start = measured(task, theta)
    prompts = prompts_of(generator, task, start, metric, num_prompts)
    grids = _grids(generator, task, theta, {metric: prompts}, num_seeds, start)
    looked_up = retrieval(prompts, training[generator.column_of(metric)], dict(training))[column]
    numbers, arrays = _summary(f"channel_{metric}", prompts, [grid[column] for grid in grids], looked_up)
    best = torch.stack([grid[column][:, 0] for grid in grids])
    more = {"best_prompt": float(prompts[0, 0]), f"one_update_{column}": float(best.mean())}
    return numbers | {f"channel_{metric}_{name}": value for name, value in more.items()}, arrays


def together(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    training: Mapping[str, Float[Tensor, " C"]],
    *,
    best: float,
    num_prompts: int,
    num_seeds: int,
) -> Found:
    """All metrics prompted at once, with what one network can have.

    The main metric's prompts are those of `prompt_grid`; the others are for each what the training checkpoint
    of the nearest main metric has. That checkpoint is the control, too.
    """
    start = measured(task, theta)
    own = start[generator.column_of(generator.metric)]
    main = linear_prompts(best, own, task.prompt_start, num_prompts)
    nearest = retrieval(main, training[generator.origin.prompted], dict(training))
    prompts = {name: nearest[generator.column_of(name)] for name in generator.metrics} | {
        generator.metric: main
    }
    grids = _grids(generator, task, theta, prompts, num_seeds, start)
    numbers: dict[str, Any] = {}
    arrays: dict[str, Tensor] = {}
    for name, asked in prompts.items():
        column = f"test_{name}"
        achieved = [grid[column] for grid in grids]
        found = _summary(f"together_{name}", asked, achieved, nearest[column])
        numbers |= found[0]
        arrays |= found[1]
    return numbers, arrays


def without_its_prompt(
    generator: WeightGenerator, grids: Sequence[Mapping[str, Any]], arrays: Mapping[str, Tensor]
) -> dict[str, float]:
    """How well the same prompts of the other metrics are met by chance, where the main one alone is prompted.

    Args:
        grids: one `prompt_grid` per seed, from the same starts.
        arrays: of `together`.
    """
    found = {}
    for name in generator.metrics[1:]:
        asked = arrays[f"together_{name}_prompts"]
        by_chance = [prompt_alignment(asked, grid[f"test_{name}"]).mean() for grid in grids]
        found[f"together_{name}_without_its_prompt"] = float(torch.stack(by_chance).mean())
    return found


def _grids(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    prompts: Mapping[str, Float[Tensor, "N P"]],
    num_seeds: int,
    start: Mapping[str, Float[Tensor, " N"]],
) -> list[dict[str, Any]]:
    return [
        grid_of_prompts(generator, task, theta, prompts, seed=seed, start=start, networks=False)
        for seed in range(num_seeds)
    ]


def _summary(
    prefix: str,
    prompts: Float[Tensor, "N P"],
    achieved: Sequence[Float[Tensor, "N P"]],
    looked_up: Float[Tensor, "N P"],
) -> Found:
    """Alignments by name, means over networks and seeds, and the arrays behind them."""
    alignment = torch.stack([prompt_alignment(prompts, each).mean() for each in achieved])
    numbers = {
        f"{prefix}_prompt_alignment": float(alignment.mean()),
        f"{prefix}_prompt_alignment_std_over_seeds": float(alignment.std()) if len(achieved) > 1 else None,
        f"{prefix}_retrieval_prompt_alignment": float(prompt_alignment(prompts, looked_up).mean()),
    }
    arrays = {"prompts": prompts, "achieved_test": torch.stack(list(achieved)), "retrieved_test": looked_up}
    return numbers, {f"{prefix}_{name}": values for name, values in arrays.items()}
