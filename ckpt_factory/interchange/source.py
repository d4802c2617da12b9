"""Source: runs that were trained elsewhere, read one at a time; and the zoo that they are imported into."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..header import Imported, ZooHeader, columns_of
from ..schema import DTYPES
from ..spec import ParamSpec
from ..tasks.base import SPLITS, Task
from ..tasks.registry import NO_TASK
from ..train import Rows
from ..words import counted
from ..zoo import Zoo

EVALUATED_TOGETHER = 64
"""Checkpoints that are measured as one stack."""
RESERVED = {"run_id", "order_id", "step", "theta", "source", "name", "status"}
"""Columns of a zoo that no metric may be called."""
COLUMN = re.compile(r"(?!final_)[A-Za-z][A-Za-z0-9_]*")

Progress = Callable[[int, int], object]
"""Called with (done, of how many) while a source is looked through."""


def silent(done: int, total: int) -> None:
    """The progress of a source that nobody watches."""


class Run(NamedTuple):
    """All checkpoints of one run of a source, in the order of its steps."""

    steps: Int[Tensor, " S"]
    theta: Float[Tensor, "S D"]
    metrics: dict[str, Float[Tensor, " S"]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Runs that were trained elsewhere, looked through once, of which any can be read again."""

    label: str
    """Where they come from, in words."""
    spec: ParamSpec
    metrics: tuple[str, ...]
    """Columns that the source itself has."""
    names: Sequence[str]
    """The runs' names there, in the order that they are imported in."""
    num_checkpoints: int
    """Checkpoints that are taken of each run."""
    digest: str
    """Of the names, steps, metrics and sizes of all runs."""
    read: Callable[[int], Run]
    """The i-th run with the checkpoints that are taken of it."""
    skipped: Mapping[str, str]
    """Runs that are left out -> why."""
    strays: Sequence[str] = ()
    """Files that are left out, since they belong to no run."""


BROKEN, CURE = "runs cannot be imported", "--skip-broken leaves them out"


class Survey:
    """What is seen of the runs of a source one after the other, before any of them is imported."""

    def __init__(
        self,
        what: str,
        *,
        skip_broken: bool,
        num_checkpoints: int | None,
        refusal: str = BROKEN,
        cure: str = CURE,
    ):
        """
        Args:
            refusal: what is wrong with broken runs, for messages.
            cure: what helps against a few broken runs, for messages.
        """
        if num_checkpoints is not None and num_checkpoints < 1:
            raise ValueError(f"num_checkpoints is {num_checkpoints}; expected at least 1")
        self.what = what
        self.skip_broken = skip_broken
        self.refusal, self.cure = refusal, cure
        self.wanted = num_checkpoints
        self.counts: dict[str, int] = {}
        """Checkpoints of each sound run."""
        self.broken: dict[str, str] = {}
        self.strays: list[str] = []
        """Files that belong to no run."""
        self.hash = hashlib.sha256()

    def add(self, name: str, checkpoints: Sequence[object], *about: object) -> None:
        """A sound run, with what is known of each of its checkpoints and of all, short of their numbers.

        All of it goes into the digest, by which an import that is resumed knows its source again.
        """
        if not checkpoints:
            self.broken[name] = "it has no checkpoints"
            return
        if self.wanted is not None and len(checkpoints) < self.wanted:
            had = counted(len(checkpoints), "checkpoint")
            self.broken[name] = f"it has {had}, fewer than --num-checkpoints {self.wanted}"
            return
        self.counts[name] = len(checkpoints)
        self.hash.update(f"{name} {list(checkpoints)} {about}\n".encode())

    def conclude(self) -> int:
        """How many checkpoints are taken of each run; runs that have another number count as broken.

        Raises:
            ValueError: some runs are broken and may not be skipped, or all are.
        """
        usual = Counter(self.counts.values()).most_common(1)[0][0] if self.counts else 0
        if self.wanted is None:
            for name in [name for name, count in self.counts.items() if count != usual]:
                self.broken[name] = (
                    f"it has {counted(self.counts.pop(name), 'checkpoint')}, others {usual} "
                    "(--num-checkpoints takes as many of each)"
                )
        total = len(self.counts) + len(self.broken)
        if (self.broken or self.strays) and not (self.skip_broken and self.counts):
            cure = f"; {self.cure}" if self.counts else ""
            problems = []
            if self.broken:
                shown = "; ".join(f"{name}: {why}" for name, why in list(self.broken.items())[:3])
                more = f"; and {len(self.broken) - 3} more" if len(self.broken) > 3 else ""
                problems.append(f"{len(self.broken)} of {total} {self.refusal}{cure}: {shown}{more}")
            if self.strays:
                more = ", ..." if len(self.strays) > 3 else ""
                files = f"{counted(len(self.strays), 'file')} not in the table"
                problems.append(f"{files}{cure}: {', '.join(self.strays[:3])}{more}")
            raise ValueError(f"{self.what}: {'; '.join(problems)}")
        if not self.counts:
            raise ValueError(f"{self.what}: there are no runs in it")
        return self.wanted or usual


def evenly(count: int, wanted: int) -> list[int]:
    """Which `wanted` of `count` checkpoints are taken: evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, wanted).round().astype(int).tolist() if wanted > 1 else [count - 1]


def begin_import(
    source: Source,
    out: Path | str,
    *,
    task: Task | None,
    evaluate: bool = False,
    stack_size: int = 32,
    dtype: str = "float32",
    prompted: str | None = None,
    objective: Literal["min", "max"] | None = None,
) -> Zoo:
    """Begin the zoo of a source, or go on with it.

    Args:
        task: what the networks learned, if it is one of ours; its spec is that of the source.
        evaluate: measure all metrics with the task, on validation and test; otherwise the source's own are
            the columns.
        prompted: the column that prompts are about; by default the task's, or the first that is known.
        objective: whether it is good small or large; by default as of the task, "min" without one.

    Raises:
        ValueError: evaluation without a task, no metrics, no such column, or another zoo is there already.
    """
    if evaluate and task is None:
        raise ValueError("--evaluate measures with the task; name it with --task")
    if evaluate and (prompted or objective):
        raise ValueError("--prompted and --objective are the task's own with --evaluate; leave them out")
    metrics = columns_of(task) if evaluate and task else source.metrics
    _check_columns(source.label, metrics)
    prompted = prompted or _default_column(metrics, task)
    if prompted not in metrics:
        raise ValueError(f"--prompted is {prompted!r}; expected one of the columns {', '.join(metrics)}")
    if objective is None:
        objective = task.objective if task else "max" if prompted.endswith("_return") else "min"
    header = ZooHeader(
        task=task.id if task else NO_TASK,
        spec=source.spec,
        metrics=metrics,
        prompted=prompted,
        objective=objective,
        plan=Imported(
            source=source.label,
            num_checkpoints=source.num_checkpoints,
            measured=evaluate,
            digest=source.digest,
        ),
        num_runs=len(source.names),
        stack_size=stack_size,
        dtype=dtype,
        inputs=task.inputs if task else "",
    )
    return Zoo.create(out, header)


def _check_columns(label: str, metrics: Sequence[str]) -> None:
    if not metrics:
        raise ValueError(f"{label} has no metrics; give some, or --task and --evaluate to measure them")
    bad = [name for name in metrics if name in RESERVED or not COLUMN.fullmatch(name)]
    if bad:
        raise ValueError(
            f"{label}: a metric cannot be called {bad[0]!r}; expected letters, digits and _, none of "
            f"{', '.join(sorted(RESERVED))}"
        )


def import_unit(zoo: Zoo, source: Source, task: Task | None, unit: int) -> dict[str, int]:
    """Read a unit's runs, measure them if the zoo says so, and commit them: what `Zoo.write_unit` returns."""
    h, ids = zoo.header, zoo.header.run_ids(unit)
    theta = torch.empty(len(ids), h.plan.num_checkpoints, h.spec.D, dtype=DTYPES[h.dtype])
    steps = torch.empty(theta.shape[:2], dtype=torch.int64)
    metrics = {name: torch.empty(theta.shape[:2]) for name in h.metrics}
    for k, run_id in enumerate(ids):
        run = source.read(run_id)
        steps[k], theta[k] = run.steps, run.theta.to(theta.dtype)
        found = _measured(task, theta[k]) if task and h.remeasurable else run.metrics
        for name in h.metrics:
            metrics[name][k] = found[name]
    rows = Rows(torch.tensor(list(ids)), steps, theta, metrics)
    return zoo.write_unit(unit, rows, [source.names[run_id] for run_id in ids])


def _measured(task: Task, theta: Tensor) -> dict[str, Tensor]:
    """Metrics of checkpoints as they are stored."""
    parts = [task.metrics_of(part.float()) for part in theta.split(EVALUATED_TOGETHER)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _default_column(metrics: Sequence[str], task: Task | None) -> str:
    wanted = [f"{split}_{task.metric}" for split in SPLITS] if task else []
    wanted += ["validation_loss", "test_loss"]
    return next((name for name in wanted if name in metrics), metrics[0])
