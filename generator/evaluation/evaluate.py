"""Evaluation on held-out runs and the test split: does the generator do as prompted, and what is it worth?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.header import Imported
from ckpt_factory.tasks.base import seeded
from ckpt_factory.train import Rows
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..medians import median, quartiles
from ..prompt import linear_prompts, measured, prompt_networks


def prompt_alignment(prompts: Float[Tensor, "N P"], observed: Float[Tensor, "N P"]) -> Float[Tensor, " N"]:
    """Prompt alignment of each network, R^2 of prompts against observed metrics (Peebles et al. 2022).

    1 - sum_k (p_k - o_k)^2 / (sum_k (p_k - mean p)^2 + 1e-8); not clipped: a diverged network counts in full.
    """
    residual = (prompts - observed).square().sum(1)
    total = (prompts - prompts.mean(1, keepdim=True)).square().sum(1)
    return 1 - residual / (total + 1e-8)


@dataclass(frozen=True)
class HeldOut:
    """Runs that were never trained on: where evaluation starts, and what SGD made of the same starts."""

    run_ids: list[int]
    steps: Int[Tensor, "N S"]
    theta: Float[Tensor, "N S D"]
    metrics: dict[str, Float[Tensor, "N S"]]
    batch_sizes: list[int]
    """Of each run; empty where the runs were imported, which say nothing of theirs."""

    def rows(self) -> Rows:
        """Without the batch sizes."""
        return Rows(torch.tensor(self.run_ids), self.steps, self.theta, self.metrics)


def held_out_runs(zoo: Zoo, generator: WeightGenerator, most: int) -> HeldOut:
    """The first `most` finished held-out runs of a zoo, with all their checkpoints.

    None of those that the generator's moments were measured on.
    """
    end = generator.moments.held_out_from if generator.moments is not None else None
    rows = finished_runs(zoo, generator.origin.num_training_runs, most, end=end)
    run_ids = rows.run_ids.tolist()
    plan = zoo.header.plan
    sizes = [] if isinstance(plan, Imported) else [run.batch_size for run in plan.runs(run_ids)]
    return HeldOut(run_ids, rows.steps, rows.theta, rows.metrics, sizes)


def finished_runs(zoo: Zoo, first: int, most: int, *, end: int | None = None, from_end: bool = False) -> Rows:
    """The first `most` finished runs with ids from `first` to below `end`, or the last ones, with all their
    checkpoints.

    Raises:
        ValueError: there are none.
    """
    parts: list[Rows] = []
    end = zoo.header.num_runs if end is None else end
    units = zoo.finished_units()
    for unit in reversed(units) if from_end else units:
        ids = zoo.header.run_ids(unit)
        if ids[-1] >= first and ids[0] < end and sum(len(p.run_ids) for p in parts) < most:
            rows = zoo.read_unit(unit)
            keep = (rows.run_ids >= first) & (rows.run_ids < end) & rows.finite()
            parts.append(
                Rows(
                    rows.run_ids[keep],
                    rows.steps[keep],
                    rows.theta[keep].float(),
                    {k: v[keep] for k, v in rows.metrics.items()},
                )
            )
    if not sum(len(part.run_ids) for part in parts):
        raise ValueError(
            f"zoo {zoo.path} has no finished held-out runs (ids from {first}); finish it with `theta make`"
        )
    parts, kept = (parts[::-1], slice(-most, None)) if from_end else (parts, slice(most))
    return Rows(
        torch.cat([part.run_ids for part in parts])[kept],
        torch.cat([part.steps for part in parts])[kept],
        torch.cat([part.theta for part in parts])[kept],
        {name: torch.cat([part.metrics[name] for part in parts])[kept] for name in zoo.header.metrics},
    )


def measured_again(held_out: HeldOut, task: Task) -> HeldOut:
    """The same runs with metrics that the task measures now, with more episodes perhaps than the zoo's."""
    metrics = task.metrics_of(held_out.theta.flatten(0, 1))
    shape = held_out.steps.shape
    return replace(held_out, metrics={name: values.view(shape) for name, values in metrics.items()})


def in_env_steps(task: Task, held_out: HeldOut, sgd: Float[Tensor, "seeds N"]) -> dict[str, float | int]:
    """The equivalent optimizer steps, median, and all of a run, in steps of an environment, if there is one
    and the runs' batch sizes are known.

    Every rollout counts that has begun; a run that never got there is infinite here, too.
    """
    count = getattr(task, "env_steps", None)
    if count is None or not held_out.batch_sizes:
        return {}
    taken = [
        float(count(math.ceil(each), size)) if math.isfinite(each) else each
        for row in sgd.tolist()
        for each, size in zip(row, held_out.batch_sizes, strict=True)
    ]
    ends = held_out.steps[:, -1].tolist()
    total = max(count(end, size) for end, size in zip(ends, held_out.batch_sizes, strict=True))
    return {"sgd_equivalent_env_steps": float(median(torch.tensor(taken))), "sgd_total_env_steps": total}


def at_steps(metric: Float[Tensor, "N S"], steps: Int[Tensor, "N S"]) -> Float[Tensor, "N S"]:
    """All runs' curves at the first run's steps: interpolated in log(1 + step) where theirs are others."""
    if (steps == steps[0]).all():
        return metric
    x = steps.double().log1p().numpy()
    curves = [np.interp(x[0], row, values) for row, values in zip(x, metric.double().numpy(), strict=True)]
    return torch.from_numpy(np.stack(curves)).to(metric.dtype)


def prompt_grid(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    *,
    seed: int,
    num_prompts: int = 20,
    best: float | None = None,
    start: Mapping[str, Float[Tensor, " N"]] | None = None,
    networks: bool = True,
) -> dict[str, Any]:
    """One update of every start network for every prompt: {"prompts": (N, P), "theta": (N, P, D), metric:
    (N, P), "networks_per_s": float}.

    Args:
        best: the best prompt; default the best validation metric of the training runs.
        start: what `measured` says of the start networks, where that is known.
        networks: whether the networks made are kept, "theta"; or only what they achieve.
    """
    start = measured(task, theta) if start is None else start
    best = generator.best_metric if best is None else best
    worst = start[generator.column_of(generator.metric)]
    prompts = linear_prompts(best, worst, task.prompt_start, num_prompts)
    wishes = {generator.metric: prompts}
    grid = grid_of_prompts(generator, task, theta, wishes, seed=seed, start=start, networks=networks)
    return {"prompts": prompts} | grid


def grid_of_prompts(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    prompts: Mapping[str, Float[Tensor, "N P"]],
    *,
    seed: int,
    start: Mapping[str, Float[Tensor, " N"]] | None = None,
    networks: bool = True,
) -> dict[str, Any]:
    """One update of every start network for every prompt of some metrics, given by name: {"theta": (N, P, D),
    metric: (N, P), "networks_per_s": float}.

    Args:
        start: what `measured` says of the start networks, where that is known.
        networks: whether the networks made are kept, "theta"; or only what they achieve.
    """
    start = measured(task, theta) if start is None else start
    thetas, achieved, sampling_s = [], [], 0.0
    for k in range(next(iter(prompts.values())).shape[1]):
        wishes = {name: values[:, k] for name, values in prompts.items()}
        made = prompt_networks(generator, task, theta, wishes, rng=seeded(seed, k), start=start)
        achieved.append(made.achieved[-1])
        sampling_s += made.sampling_s
        if networks:
            thetas.append(made.theta)
    found: dict[str, Any] = {name: torch.stack([each[name] for each in achieved], 1) for name in achieved[0]}
    found["networks_per_s"] = len(theta) * len(achieved) / sampling_s
    return found | {"theta": torch.stack(thetas, 1)} if networks else found


def sgd_equivalent_steps(
    metric: Float[Tensor, "N S"], steps: Int[Tensor, "N S"], reached: Float[Tensor, " N"], objective: str
) -> Float[Tensor, " N"]:
    """How many optimizer steps the same start needed until its metric was as good as `reached`.

    Between two checkpoints the step is interpolated in log(1 + step), after making the curve monotone (the
    best so far). Infinite where the run never got there; 0 for a network that diverged, which no step is
    needed to match.
    """
    sign = 1.0 if objective == "min" else -1.0
    curve, wanted = (sign * metric).cummin(1).values, sign * reached
    out = []
    for row, value, log_steps in zip(curve, wanted, steps.float().log1p(), strict=True):
        there = (row <= value.nan_to_num(torch.inf)).nonzero()
        if not len(there):
            out.append(float("inf"))
            continue
        j = int(there[0])
        if j == 0:
            out.append(0.0)
            continue
        share = (row[j - 1] - value) / (row[j - 1] - row[j])
        out.append(float((log_steps[j - 1] + share * (log_steps[j] - log_steps[j - 1])).expm1()))
    return torch.tensor(out)


def retrieval(
    prompts: Float[Tensor, "N P"], validation: Float[Tensor, " C"], test: dict[str, Float[Tensor, " C"]]
) -> dict[str, Float[Tensor, "N P"]]:
    """The control: return the training checkpoint whose validation metric is nearest the prompt."""
    order = validation.argsort()
    values = validation[order]
    right = torch.searchsorted(values, prompts.contiguous()).clamp(1, len(values) - 1)
    nearer = (prompts - values[right - 1]).abs() <= (values[right] - prompts).abs()
    chosen = order[torch.where(nearer, right - 1, right)]
    return {name: column[chosen] for name, column in test.items()}


def training_checkpoints(zoo: Zoo, num_training_runs: int) -> dict[str, Float[Tensor, " C"]]:
    """Metrics of all finite checkpoints of the first runs of a zoo, by column."""
    columns: dict[str, list[Tensor]] = {name: [] for name in zoo.header.metrics}
    for unit in zoo.finished_units():
        if zoo.header.run_ids(unit)[0] < num_training_runs:
            rows = zoo.read_metrics(unit)
            keep = rows["run_id"] < num_training_runs
            for name in zoo.header.metrics:
                keep &= rows[name].isfinite()
            for name, parts in columns.items():
                parts.append(rows[name][keep])
    return {name: torch.cat(parts) for name, parts in columns.items()}


def training_starts(zoo: Zoo, num_training_runs: int, most: int) -> Float[Tensor, "N D"]:
    """Initialisations of the first finished training runs, at most so many."""
    return finished_runs(zoo, 0, most, end=num_training_runs).theta[:, 0]


def networks_of_metric(held_out: HeldOut, column: str, metric: Float[Tensor, " Q"]) -> Float[Tensor, "Q D"]:
    """Of held-out run q, the checkpoint whose metric is nearest the q-th."""
    step = (held_out.metrics[column][: len(metric)] - metric.unsqueeze(1)).abs().argmin(1)
    return held_out.theta[torch.arange(len(metric)), step]


def summarise(
    generator: WeightGenerator,
    held_out: HeldOut,
    grids: Sequence[dict[str, Any]],
    training: dict[str, Tensor],
    task: Task,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The numbers of an evaluation by name, and the arrays behind its plots.

    Test metrics throughout; `grids` has one `prompt_grid` per seed, the networks of the first alone are
    needed. Spreads are standard deviations, over seeds for alignments, over networks for the one update.
    """
    name, column = generator.metric, f"test_{generator.metric}"
    prompts = torch.stack([grid["prompts"] for grid in grids])  # (seeds, N, P)
    tested = {key: torch.stack([grid[key] for grid in grids]) for key in held_out.metrics}
    alignment = torch.stack([prompt_alignment(p, o) for p, o in zip(prompts, tested[column], strict=True)])
    one = {key: values[:, :, 0] for key, values in tested.items() if key.startswith("test_")}  # (seeds, N)
    sgd = torch.stack(
        [
            sgd_equivalent_steps(
                held_out.metrics[column], held_out.steps, reached, generator.origin.objective
            )
            for reached in one[column]
        ]
    )
    looked_up = retrieval(prompts[0], training[generator.origin.prompted], training)
    retrieved = prompt_alignment(prompts[0], looked_up[column])
    result = {
        "prompt_alignment": float(alignment.mean()),
        "prompt_alignment_std_over_seeds": float(alignment.mean(1).std()) if len(grids) > 1 else None,
        "prompt_alignment_median": float(median(alignment.flatten())),
        "prompt_alignment_worst_network": float(alignment.min()),
        "best_prompt": float(prompts[0, 0, 0]),
        "sgd_equivalent_steps": float(median(sgd.flatten())),
        "sgd_equivalent_steps_quartiles": quartiles(sgd.flatten()),
        "sgd_total_steps": int(held_out.steps.max()),
        "retrieval_prompt_alignment": float(retrieved.mean()),
        "retrieval_prompt_alignment_std_over_networks": float(retrieved.std(correction=0)),
    } | in_env_steps(task, held_out, sgd)
    for key, values in one.items():
        spread = float(values.mean(0).std()) if values.shape[1] > 1 else None
        result[f"one_update_{key}"] = float(values.mean())
        result[f"one_update_{key}_std_over_networks"] = spread
        result[f"sgd_final_{key}"] = float(held_out.metrics[key][:, -1].mean())
        result[f"sgd_final_{key}_std_over_networks"] = float(held_out.metrics[key][:, -1].std(correction=0))
        result[f"retrieval_{key}"] = float(looked_up[key][:, 0].mean())
    arrays = {
        "prompts": prompts,
        "achieved_test": tested[column],
        "achieved_validation": tested[f"validation_{name}"],
        "retrieved_test": looked_up[column],
        "sgd_steps": sgd,
        "start_theta": held_out.theta[:8, 0],
        "made_theta": grids[0]["theta"][:8],
        "sgd_theta": held_out.theta[:8, -1],
    }
    arrays |= {f"sgd_{key}": at_steps(values, held_out.steps) for key, values in held_out.metrics.items()}
    arrays["steps"] = held_out.steps[0]
    arrays |= {f"one_update_{key}": values for key, values in one.items()}
    return result, arrays
