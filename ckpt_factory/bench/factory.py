"""What a training run costs: the factory's stacks against the plain loop and vmap, on the same recipe.

CPU seconds a run are put together from what is measured in turns, an optimizer step, an evaluation, a stored
checkpoint, times how many of them the recipe has; `whole_stacks` trains the recipe as it is.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from ..plan import RunPlan
from ..tasks.base import SPLITS, Task
from ..train import Rows, train_stack
from ..zoo import Zoo, ZooHeader
from .clock import calls_for, cpu_seconds, interleaved, medians
from .contenders import Contender, FactoryStack, PlainLoop, VmapStack, check_same_networks
from .peak import peak_probes

CHECK_STEPS = 10
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Of how far networks have moved in CHECK_STEPS: sums in another order (1e-7 where no ReLU tips over), or
images and weights of 8 bits (0.02 to 0.05)."""
STORED_BYTES = 2**25
"""Checkpoints of about so many bytes are written when storing is measured."""

PEAK_S = 0.5
"""CPU seconds that the peak is measured for beside a whole stack."""

Samples = Mapping[tuple[str, str], list[float]]
"""(contender, "step_s" | "evaluation_s" | "snapshot_s"), ("all", "parquet_s") or ("peak", precision)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is, and how many are trained together."""

    text: str
    plan: RunPlan
    stack_size: int
    splits: tuple[str, ...] = ("test",)
    """What each checkpoint is evaluated on."""
    chunk: int = 1000
    """Images per forward pass in which the alternatives evaluate; what is best for them."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way of the factory's inner loop."""

    precision: str
    compile: bool

    @property
    def name(self) -> str:
        return self.precision + "_compiled" * self.compile

    @classmethod
    def of_name(cls, name: str) -> "Variant":
        return cls(precision=name.removesuffix("_compiled"), compile=name.endswith("_compiled"))

    def of_task(self, task: Task) -> "Variant | None":
        """This variant or, where the task cannot be compiled, that precision; None if it has neither."""
        for variant in (self, replace(self, compile=False)):
            try:
                task.with_products(variant.precision, compile=variant.compile)
            except ValueError:
                continue
            return variant
        return None

    def plan(self, recipe: Recipe) -> RunPlan:
        return replace(recipe.plan, precision=self.precision, compile=self.compile)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of matrix products and convolutions, as a dense network has them."""

    step: int
    evaluation: int
    """Of a checkpoint on all of the recipe's splits."""

    def of_run(self, plan: RunPlan) -> int:
        return plan.num_steps * self.step + plan.num_checkpoints * self.evaluation


def _published(num_steps: int, every: int) -> RunPlan:
    return RunPlan(
        num_steps=num_steps, batch_size=(128,), num_checkpoints=200, spacing="random", schedule_every=every
    )


RECIPES = {
    "digits-mlp-v0": Recipe(
        text="preset digits: 450 steps of batch 32, 35 checkpoints, validation and test",
        plan=RunPlan(),
        stack_size=128,
        splits=SPLITS,
    ),
    "mnist-mlp-v0": Recipe(
        text="published: 11,700 steps of batch 128, 200 checkpoints on 10,000 test images, groups of 16",
        plan=replace(_published(11_700, 468), group_size=16),
        stack_size=64,
    ),
    "cifar-cnn-v0": Recipe(
        text="published: 19,500 steps of batch 128, 200 checkpoints on 10,000 test images",
        plan=_published(19_500, 390),
        stack_size=8,
        chunk=125,
    ),
}
"""Task id -> the recipe that it is measured on."""


def measure_factory(
    task: Task, recipe: Recipe, variants: tuple[str, ...], *, repeats: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """Measure all contenders in turns, each for about `seconds` of CPU time at once.

    Args:
        variants: of ours, "float32", "bfloat16_compiled", ...; without compile where a task knows none, left
            out where it knows no such precision.
        folder: where shards are written and removed again.

    Raises:
        ValueError: the task has no plain module, or contenders do not train the same networks.
    """
    plan, runs = recipe.plan, recipe.plan.runs(range(recipe.stack_size))
    work = count_work(task, recipe)
    ours = {v.name: v for v in (Variant.of_name(name).of_task(task) for name in variants) if v}
    contenders: dict[str, Contender] = {"vmap": VmapStack(task, plan, runs, chunk=recipe.chunk)}
    contenders |= {name: FactoryStack(task, variant.plan(recipe), runs) for name, variant in ours.items()}
    compiling = {
        name: _compile_wall_s(FactoryStack(task, variant.plan(recipe), runs), recipe.splits)
        for name, variant in ours.items()
        if variant.compile
    }
    precisions = {name: variant.precision for name, variant in ours.items()}
    differences = {
        name: check_same_networks(
            PlainLoop(task, plan, runs, chunk=recipe.chunk),
            contender,
            steps=CHECK_STEPS,
            tolerance=TOLERANCE[precisions.get(name, "float32")],
        )
        for name, contender in contenders.items()
    }
    contenders = {"plain_loop": PlainLoop(task, plan, runs[:1], chunk=recipe.chunk)} | contenders
    probes: dict[tuple[str, str], Callable[[], float]] = {}
    for name, contender in contenders.items():
        probes |= {(name, kind): probe for kind, probe in _probes(contender, recipe.splits, seconds).items()}
    probes |= {("peak", precision): probe for precision, probe in peak_probes(seconds).items()}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        probes["all", "parquet_s"] = _storing(task, recipe, contenders["vmap"].theta(), Path(temporary))
        samples = interleaved(probes, repeats)
    return figures(recipe, work, precisions, samples) | {
        "compile_wall_s": compiling,
        "differs_from_plain_loop": differences,
        "samples": {f"{name} {kind}": values for (name, kind), values in samples.items()},
    }


def figures(recipe: Recipe, work: Work, precisions: Mapping[str, str], samples: Samples) -> dict[str, Any]:
    """What the samples say, by their medians: CPU seconds a run, ratios, and shares of the peak.

    Args:
        precisions: of matrix products of a contender, where they are not float32.
    """
    found, plan = medians(samples), recipe.plan
    flop = work.of_run(plan)
    by_name: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for name, kind in found if kind == "step_s"):
        step, evaluation = found[name, "step_s"], found[name, "evaluation_s"]
        storing = found[name, "snapshot_s"] + found["all", "parquet_s"]
        cpu_s = plan.num_steps * step + plan.num_checkpoints * (evaluation + storing)
        peak = found["peak", precisions.get(name, "float32")]
        by_name[name] = {
            "us_per_step": step * 1e6,
            "ms_per_evaluation": evaluation * 1e3,
            "ms_per_stored_checkpoint": storing * 1e3,
            "cpu_s_per_run": cpu_s,
            "gflop_per_cpu_s": flop / 1e9 / cpu_s,
            "share_of_peak": flop / 1e9 / cpu_s / peak,
            "step_share_of_peak": work.step / 1e9 / step / peak,
            "evaluation_share_of_peak": work.evaluation / 1e9 / evaluation / peak,
        }
    for name, each in by_name.items():
        for alternative in ("plain_loop", "vmap"):
            if name != alternative:
                each[f"times_{alternative}"] = by_name[alternative]["cpu_s_per_run"] / each["cpu_s_per_run"]
    return {
        "recipe": recipe.text,
        "runs_per_stack": recipe.stack_size,
        "gflop_per_run": flop / 1e9,
        "evaluation_share_of_gflop": plan.num_checkpoints * work.evaluation / flop,
        **{f"peak_{kind}_gflop_per_cpu_s": value for (name, kind), value in found.items() if name == "peak"},
        "contenders": by_name,
    }


def count_work(task: Task, recipe: Recipe) -> Work:
    """The operations of one run's step and evaluation, counted on the plain module."""
    net, plan = task.module(), recipe.plan
    next_batch = task.sampler(plan.order_rngs(plan.runs([0])), plan.batch_size[0])
    (x,), (labels,), _ = next_batch(dict(net.named_parameters()))
    with FlopCounterMode(display=False) as step:
        cross_entropy(net(x), labels).backward()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(x)
    images = sum(task.num_examples(split) for split in recipe.splits)
    return Work(step=step.get_total_flops(), evaluation=forward.get_total_flops() * images // len(x))


def whole_stacks(
    task: Task, recipe: Recipe, variant: Variant, folder: Path
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train two stacks of the recipe by `train_stack` and write them; the first may have to compile.

    A zoo's checkpoints are evaluated on the validation split, too: what that costs is measured again by
    itself, and taken off where the recipe has none. The peak is measured before and after the second stack.
    """
    if variant.compile:
        torch.compiler.reset()  # what this process compiled before; torch's cache on disk stays
    plan, size = variant.plan(recipe), recipe.stack_size
    header = ZooHeader.of_task(task, plan, num_runs=2 * size, stack_size=size, dtype="float32")
    cpu, wall, peaks = [0.0, 0.0], [0.0, 0.0], []
    peak, finals = peak_probes(PEAK_S)[variant.precision], {name: [] for name in header.metrics}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        zoo = Zoo.create(Path(temporary), header)
        for unit in range(2):
            started, begun = time.process_time(), time.monotonic()
            rows = train_stack(task, plan, plan.runs(header.run_ids(unit)))
            zoo.write_unit(unit, rows)
            cpu[unit], wall[unit] = time.process_time() - started, time.monotonic() - begun
            peaks.append(peak())
            for name, values in rows.metrics.items():
                finals[name] += values[:, -1].tolist()
    prepared = task.with_products(plan.precision, compile=plan.compile)
    extra = [split for split in SPLITS if split not in recipe.splits]
    snapshots = rows.theta.unbind(1)
    for split in extra:  # images are prepared and functions compiled before the clock runs
        prepared.evaluate(snapshots[0], split)
    evaluating = cpu_seconds(lambda: [prepared.evaluate(part, s) for part in snapshots for s in extra])
    cpu_s = (cpu[1] - evaluating) / size
    found = {
        "cpu_s_per_run": cpu_s,
        "share_of_peak": count_work(task, recipe).of_run(plan) / 1e9 / cpu_s / mean(peaks),
        "cpu_s_per_run_with_validation": cpu[1] / size,
        "first_stack_more_cpu_s": cpu[0] - cpu[1],
        "first_stack_more_wall_s": wall[0] - wall[1],
        "wall_s_per_run_with_validation": wall[1] / size,
    }
    return found, finals


def _compile_wall_s(contender: Contender, splits: tuple[str, ...]) -> float:
    """How much longer the first step and evaluation take than the second; less if torch has it cached."""
    marks = [time.monotonic()]
    for _ in range(2):
        contender.advance(1)
        for split in splits:
            contender.evaluate(split)
        marks.append(time.monotonic())
    return marks[1] - marks[0] - (marks[2] - marks[1])


def _probes(contender: Contender, splits: tuple[str, ...], seconds: float) -> dict[str, Callable[[], float]]:
    """By kind a probe that returns the CPU seconds a run."""
    num_runs = len(contender.runs)
    steps = calls_for(lambda: contender.advance(1), seconds)

    def evaluate() -> object:
        return [contender.evaluate(split) for split in splits]

    evaluations, snapshots = calls_for(evaluate, seconds), calls_for(contender.theta, seconds / 10)
    return {
        "step_s": lambda: cpu_seconds(lambda: contender.advance(steps)) / steps / num_runs,
        "evaluation_s": lambda: cpu_seconds(evaluate, evaluations) / num_runs,
        "snapshot_s": lambda: cpu_seconds(contender.theta, snapshots) / num_runs,
    }


def _storing(task: Task, recipe: Recipe, theta: torch.Tensor, folder: Path) -> Callable[[], float]:
    """A probe that returns the CPU seconds of writing one checkpoint as Parquet, checksums included."""
    runs, size = len(theta), theta[0].nbytes
    count = max(2, min(recipe.plan.num_checkpoints, STORED_BYTES // (runs * size)))
    plan = replace(recipe.plan, num_checkpoints=count)
    header = ZooHeader.of_task(task, plan, num_runs=runs, stack_size=runs, dtype="float32")
    zoo = Zoo.create(folder, header)
    rows = Rows(
        torch.arange(runs),
        torch.arange(count).expand(runs, -1),
        theta.detach().unsqueeze(1).repeat(1, count, 1),
        {name: torch.zeros(runs, count) for name in header.metrics},
    )
    zoo.write_unit(0, rows)
    return lambda: cpu_seconds(lambda: zoo.write_unit(0, rows)) / (runs * count)
