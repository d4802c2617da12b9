"""train_stack: K runs in lock-step, the inner loop of the factory."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .initialise import initialise
from .optim import make_optimizer, optimizer_kind
from .optim.stack import StackOptimizer
from .plan import RunPlan, RunSettings
from .stacked import compiled
from .tasks.base import Task, Variation, seeded

Progress = Callable[[float], None]
"""Told the share of some work that is done, from 0 to 1."""


class Rows(NamedTuple):
    """Checkpoints of R whole runs, S of each."""

    run_ids: Int[Tensor, " R"]
    steps: Int[Tensor, "R S"]
    theta: Shaped[Tensor, "R S D"]
    metrics: dict[str, Float[Tensor, "R S"]]
    """By column name: validation_loss, test_error, ..."""

    def finite(self) -> Bool[Tensor, " R"]:
        """Which runs have only finite parameters and metrics; the others have diverged."""
        # A finite sum has finite terms, and costs far less than a look at each; the others are looked at.
        finite = self.theta.sum(-1, dtype=torch.float32).isfinite().all(-1)
        unsure = (~finite).nonzero().squeeze(1)
        finite[unsure] = self.theta[unsure].isfinite().all(-1).all(-1)
        for values in self.metrics.values():
            finite = finite & values.isfinite().all(-1)
        return finite


def train_stack(
    task: Task,
    plan: RunPlan,
    runs: Sequence[RunSettings],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    starts: Float[Tensor, "K D"] | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Train runs together and return their checkpoints, at the steps that the plan saves.

    Every run has its own initialisation, learning rate, weight decay and loss; each `plan.group_size` of them
    in sequence share their mini-batches, each block its optimizer and batch size. Metrics are those of the
    parameters as stored: theta is rounded to `dtype` first. A run that diverges goes on with its non-finite
    numbers and disturbs no other.

    Args:
        starts: networks to train on, in the place of the initialisations that the plan draws.
        progress: called often, with the share that is done: half of it steps, half of it measurements.

    Raises:
        ValueError: the runs are not whole groups, or the task does not train on that device.
    """
    orders = [run.order_id for run in runs]
    if orders != [order for order in dict.fromkeys(orders) for _ in range(plan.group_size)]:
        raise ValueError(
            f"a stack is whole groups of {plan.group_size} runs in sequence, got runs of the groups {orders}"
        )
    _check_device(task, device)
    task = task.with_products(plan.precision, compile=plan.compile)
    if starts is None:
        scale = torch.tensor([run.init_scale for run in runs]).unsqueeze(1)
        starts = initial_networks(task, plan, runs) * scale
    parts, blocks = plan.blocks(runs), []
    for part, theta in zip(parts, starts.split([len(part) for part in parts]), strict=True):
        done = sum(len(block.run_ids) for block in blocks) / len(runs)
        own = _part_of(progress, done, len(part) / len(runs))
        blocks.append(_train_block(task, plan, part, theta, dtype, device, own))
    if len(blocks) == 1:
        return blocks[0]
    return Rows(
        torch.cat([block.run_ids for block in blocks]),
        torch.cat([block.steps for block in blocks]),
        torch.cat([block.theta for block in blocks]),
        {name: torch.cat([block.metrics[name] for block in blocks]) for name in blocks[0].metrics},
    )


def _train_block(
    task: Task,
    plan: RunPlan,
    runs: Sequence[RunSettings],
    theta: Float[Tensor, "K D"],
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress,
) -> Rows:
    params = {name: value.clone() for name, value in task.spec.unflatten(theta.to(device)).items()}
    next_batch = task.sampler(plan.order_rngs(runs), runs[0].batch_size, plan.variation(runs))
    optimizer = stack_optimizer(plan, runs, params)
    peak_lr = optimizer.param_groups[0]["lr"]
    saved = torch.tensor([plan.steps(run.run_id) for run in runs])  # (K, S)
    checkpoints = torch.empty(*saved.shape, task.spec.D, dtype=dtype)
    at_step = _by_step(saved)
    for step in range(plan.num_steps + 1):
        if step in at_step:
            which = at_step[step]  # of the runs, and of their checkpoints
            runs_saved = which[0].to(device)
            picked = {name: value.index_select(0, runs_saved) for name, value in params.items()}
            checkpoints[which] = task.spec.flatten(picked).to("cpu", dtype)
        if step == plan.num_steps:
            break
        for name, gradient in task.direction(params, next_batch(params)).items():
            params[name].grad = gradient
        optimizer.param_groups[0]["lr"] = peak_lr * plan.lr_at(step)
        optimizer.step()
        progress(0.5 * (step + 1) / plan.num_steps)
    rows = Rows(torch.tensor([run.run_id for run in runs]), saved, checkpoints, {})
    if plan.spacing == "metric":
        pilot = _measured(
            task,
            lambda theta: {"pilot": task.pilot_metric(theta)},
            rows.theta,
            device,
            _part_of(progress, 0.5, 0.25),
        )
        rows = spread_over_metric(rows._replace(metrics=pilot), "pilot", plan.num_checkpoints)
    done = 0.75 if plan.spacing == "metric" else 0.5
    progress = _part_of(progress, done, 1 - done)
    return rows._replace(metrics=_measured(task, task.metrics_of, rows.theta, device, progress))


def _part_of(whole: Progress | None, done: float, share: float) -> Progress:
    """Progress of a part, told as that of the whole, of which `done` was done before and it is a share."""

    def progress(part: float) -> None:
        if whole is not None:
            whole(done + share * part)

    return progress


def _measured(
    task: Task,
    measure: Callable[[Tensor], Mapping[str, Tensor]],
    theta: Shaped[Tensor, "K S D"],
    device: torch.device | str,
    progress: Progress,
) -> dict[str, Float[Tensor, "K S"]]:
    """What `measure` says of all networks, of as many moments at a time as the task takes together."""
    parts, moments = [], theta.split(max(1, task.networks_at_once // len(theta)), 1)
    for part in moments:
        parts.append(measure(part.flatten(0, 1).to(device).float()))
        progress(len(parts) / len(moments))
    return {
        name: torch.cat([part[name].cpu().view(len(theta), -1) for part in parts], 1) for name in parts[0]
    }


def stack_optimizer(
    plan: RunPlan, runs: Sequence[RunSettings], params: Mapping[str, Tensor]
) -> StackOptimizer:
    """The optimizer of runs of one block, at their peak learning rates."""
    device = next(iter(params.values())).device

    def column(name: str) -> Tensor:
        return torch.tensor([getattr(run, name) for run in runs], dtype=torch.float32, device=device)

    optimizer = make_optimizer(
        runs[0].optimizer,
        params,
        lr=column("lr"),
        weight_decay=column("weight_decay"),
        momentum=column("momentum"),
    )
    if plan.compile and optimizer_kind(runs[0].optimizer).compiles:
        optimizer.update_all = partial(compiled(type(optimizer).update_all), optimizer)
    return optimizer


def check_plan(task: Task, plan: RunPlan, device: torch.device | str = "cpu") -> None:
    """Refuse a plan that the task cannot follow, before anything is begun.

    Raises:
        ValueError: batches larger than the data, a hyper-parameter, variation, initialisation or precision
            that it does not know, a GPU that it has no use for.
    """
    _check_device(task, device)
    unknown = sorted(plan.hyper.keys() - task.hyper.keys())
    if unknown:
        close = difflib.get_close_matches(unknown[0], task.hyper, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        known = ", ".join(f"{name} ({value:g})" for name, value in task.hyper.items()) or "none of its own"
        raise ValueError(f"hyper has {', '.join(unknown)}; {hint}{task.id} knows (default): {known}")
    rng = seeded(plan.seed)
    trained = task.with_products(plan.precision, compile=plan.compile)
    for end in (0, 1) if plan.hyper else (1,):  # a task knows which values of its own it can use
        extreme = Variation(
            label_noise=plan.label_noise[1:],
            data_fraction=plan.data_fraction[:1],
            gamma=plan.gamma[1:] if "tailr" in plan.loss else (0.0,),
            hyper={name: (bounds[end],) for name, bounds in plan.hyper.items()},
        )
        trained.sampler([rng], max(plan.batch_size), extreme)
    for rule in plan.init:
        if rule != "default":
            initialise(torch.zeros(task.spec.D), task.spec, rule, rng=rng)


def _check_device(task: Task, device: torch.device | str) -> None:
    if torch.device(device).type != "cpu" and not task.on_gpu:
        raise ValueError(
            f"{task.id} trains on CPUs alone, where its environments are, and a GPU would stand idle; leave "
            "out --use-gpu (from Python: use_gpu, or device)"
        )


def initial_networks(task: Task, plan: RunPlan, runs: Sequence[RunSettings]) -> Float[Tensor, "K D"]:
    """Every run's initialisation, by the rule that it has drawn."""
    theta = task.init(plan.init_rngs(runs))
    for k, rng in enumerate(
        plan.init_rngs(runs)
    ):  # from the beginning again: a rule draws what it always has
        if runs[k].init != "default":
            theta[k] = initialise(theta[k], task.spec, runs[k].init, rng=rng)
    return theta


def spread_over_metric(rows: Rows, column: str, count: int) -> Rows:
    """The `count` checkpoints of each run whose metric covers the run's range most evenly.

    The first and the last are kept; between them, levels evenly spaced from the run's best to its worst
    metric each take the nearest checkpoint that is left. Runs with non-finite metrics keep every n-th.
    """
    chosen = torch.stack([_spread(values, count) for values in rows.metrics[column]])  # (R, count)
    picked = {name: values.gather(1, chosen) for name, values in rows.metrics.items()}
    theta = torch.stack([theta[index] for theta, index in zip(rows.theta, chosen, strict=True)])
    return Rows(rows.run_ids, rows.steps.gather(1, chosen), theta, picked)


def _spread(values: Float[Tensor, " S"], count: int) -> Int[Tensor, " count"]:
    last = len(values) - 1
    if not values.isfinite().all():
        return torch.linspace(0, last, count).round().long()
    levels = torch.linspace(0, 1, count, dtype=torch.float64)[1:-1] * (values.max() - values.min()).double()
    free = torch.ones(len(values), dtype=torch.bool)
    free[[0, last]] = False
    taken = [0, last]
    for level in levels + values.min().double():
        distance = (values.double() - level).abs().masked_fill(~free, torch.inf)
        taken.append(int(distance.argmin()))
        free[taken[-1]] = False
    return torch.tensor(sorted(taken))


def _by_step(saved: Int[Tensor, "K S"]) -> dict[int, tuple[Tensor, Tensor]]:
    """step -> (which runs are saved at it, the how-manyeth checkpoint of each it is)."""
    found: dict[int, list[tuple[int, int]]] = {}
    for k, steps in enumerate(saved.tolist()):
        for i, step in enumerate(steps):
            found.setdefault(step, []).append((k, i))
    tables = {step: torch.tensor(pairs) for step, pairs in found.items()}
    return {step: (pairs[:, 0], pairs[:, 1]) for step, pairs in tables.items()}
