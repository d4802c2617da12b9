"""verify: does a zoo hold what it claims? Checksums, counts, finiteness, duplicates, re-measured metrics."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow.parquet as pq
import torch
from torch import Tensor

from .header import Imported
from .plan import RunPlan
from .tasks.base import Task, seeded
from .train import Rows
from .zoo import HEADER, Zoo, sha256

TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""Of a re-measured metric against the stored one: another processor sums in another order."""


@dataclass
class Verification:
    """What was looked at, of one unit or of a whole zoo, and what is wrong with it."""

    units: list[int] = field(default_factory=list)
    runs: int = 0
    checkpoints: int = 0
    diverged: int = 0
    remeasured: int = 0
    worst_difference: float = 0.0
    damaged_units: list[int] = field(default_factory=list)
    missing_units: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Those of the problems that are metrics which differ when they are measured again."""
    last_networks: dict[str, int] = field(default_factory=dict)
    """A hash of each finite run's last network -> its run_id, to find runs that are there twice."""

    @property
    def ok(self) -> bool:
        return not self.problems and not self.missing_units


def verify_unit(zoo: Zoo, task: Task | None, unit: int, *, sample: int, seed: int = 0) -> Verification:
    """Check one finished unit: the checksums of its files, and if they are right what the files say.

    Args:
        task: the zoo's; None where the metrics are not its own (`ZooHeader.remeasurable`): none is measured.
        sample: rows to evaluate again with the task and hold against their stored metrics.
    """
    found = Verification(units=[unit], problems=sums_problems(zoo, unit))
    if not found.problems:
        try:
            _check_content(zoo, task, unit, sample, seed, found)
        except ValueError as error:
            found.problems.append(str(error))
    found.damaged_units = [unit] if found.problems else []
    return found


def discard_damaged(zoo: Zoo) -> Iterator[tuple[int, str]]:
    """Make finished units whose files differ from their checksums unfinished: (unit, what was wrong)."""
    for unit in zoo.finished_units():
        problems = sums_problems(zoo, unit)
        if problems:
            zoo.sums_path(unit).unlink()
            yield unit, problems[0]


def merge(zoo: Zoo, parts: Iterable[Verification]) -> Verification:
    """What the checks of all finished units say of the zoo, with what only shows in the whole."""
    total, parts = Verification(), sorted(parts, key=lambda part: part.units)
    for part in parts:
        for name in ("runs", "checkpoints", "diverged", "remeasured"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        total.worst_difference = max(total.worst_difference, part.worst_difference)
        for name in ("units", "damaged_units", "problems", "differences"):
            getattr(total, name).extend(getattr(part, name))
        for digest, run_id in part.last_networks.items():
            first = total.last_networks.setdefault(digest, run_id)
            if first != run_id:
                total.problems.append(f"run {run_id} ends in the same network as run {first}")
    blamed = [problem for problem in total.problems if problem.startswith(f"{HEADER}:")]
    if len(blamed) == len(total.units) > 0:  # then no shard is to be made anew, nor anything else believed
        total.problems = [f"{HEADER}: its sha256 is not the one that the shards were made with; restore it"]
        total.damaged_units = []
        return total
    measured = [part for part in parts if part.remeasured]
    if measured and all(part.differences for part in measured):  # though their checksums hold
        total.problems = [problem for problem in total.problems if problem not in total.differences]
        total.damaged_units = [part.units[0] for part in parts if len(part.problems) > len(part.differences)]
        total.problems.append(
            f"the shards are intact, their checksums hold, but in all of them metrics differ "
            f"({total.differences[0]}): the task's data or code is not what the zoo was made with"
        )
    total.missing_units = sorted(set(range(zoo.header.num_units)) - set(total.units))
    for path_of, pattern in (
        (zoo.checkpoints_path, "checkpoints/**/*.parquet"),
        (zoo.runs_path, "runs/**/*.parquet"),
        (zoo.sums_path, "sums/**/*.sha256"),
    ):
        expected = {path_of(unit) for unit in range(zoo.header.num_units)}
        for stray in sorted(set(zoo.path.glob(pattern)) - expected):
            total.problems.append(f"{stray.relative_to(zoo.path)}: no file of this zoo; remove it")
    return total


def sums_problems(zoo: Zoo, unit: int) -> list[str]:
    """Which files of a unit are missing or differ from its checksums; no bit escapes a sha256."""
    expected = {
        path.relative_to(zoo.path).as_posix(): path
        for path in (zoo.path / HEADER, zoo.checkpoints_path(unit), zoo.runs_path(unit))
    }
    sums = zoo.sums_path(unit)
    lines = sums.read_bytes().splitlines(keepends=True)
    problems = []
    for name, path in expected.items():
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif f"{sha256(path)}  {name}\n".encode() not in lines:
            problems.append(f"{name}: its sha256 is not the one in {sums.relative_to(zoo.path)}")
    if not problems and len(lines) != len(expected):
        problems.append(f"{sums.relative_to(zoo.path)}: it has more lines than the unit has files")
    return problems


def _planned(plan: RunPlan | Imported, rows: Rows) -> bool:
    """Whether the steps are those that the plan saves; `spacing="metric"` chooses between first and last."""
    if isinstance(plan, Imported):
        return True
    for run_id, steps in zip(rows.run_ids.tolist(), rows.steps.tolist(), strict=True):
        planned = plan.steps(run_id)
        chosen = plan.spacing == "metric" and set(steps) <= set(planned)
        if steps != planned and not (chosen and (steps[0], steps[-1]) == (planned[0], planned[-1])):
            return False
    return True


def _check_content(
    zoo: Zoo, task: Task | None, unit: int, sample: int, seed: int, found: Verification
) -> None:
    name = zoo.checkpoints_path(unit).name
    rows, runs = zoo.read_unit(unit), pq.read_table(zoo.runs_path(unit))
    ids = list(zoo.header.run_ids(unit))
    if rows.run_ids.tolist() != ids or runs["run_id"].to_pylist() != ids:
        raise ValueError(f"{name}: expected runs {ids[0]} to {ids[-1]}, each once, found others")
    if not _planned(zoo.header.plan, rows):
        raise ValueError(f"{name}: its steps are not those of the plan")
    names = runs["name"].to_pylist() if "name" in runs.column_names else None  # imported ones have any
    finite, expected = rows.finite(), zoo.runs_table(unit, rows, names).to_pydict()
    for column, values in runs.to_pydict().items():
        if repr(values) != repr(expected.get(column)):  # by repr, for NaN is not equal to itself
            found.problems.append(f"{name}: {column} in the runs table is not that of plan and checkpoints")
    for run_id, last in zip(rows.run_ids[finite].tolist(), rows.theta[finite, -1], strict=True):
        digest = hashlib.sha256(last.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        if found.last_networks.setdefault(digest, run_id) != run_id:
            found.problems.append(
                f"{name}: run {run_id} ends in the same network as {found.last_networks[digest]}"
            )
    found.runs, found.checkpoints = len(ids), rows.steps.numel()
    found.diverged = int((~finite).sum())
    if task is not None:
        _measure_again(zoo, task, rows, finite, sample, seeded(seed, unit), found)


def _measure_again(
    zoo: Zoo,
    task: Task,
    rows: Rows,
    finite: Tensor,
    sample: int,
    rng: torch.Generator,
    found: Verification,
) -> None:
    name = zoo.checkpoints_path(found.units[0]).name
    precision = "float32" if isinstance(zoo.header.plan, Imported) else zoo.header.plan.precision
    task = task.with_products(precision)
    usable = finite.repeat_interleave(rows.theta.shape[1]).nonzero().squeeze(1)
    picked = usable[torch.randperm(len(usable), generator=rng)[:sample]]
    if len(picked):
        for column, values in task.metrics_of(rows.theta.flatten(0, 1)[picked].float()).items():
            stored = rows.metrics[column].flatten()[picked]
            difference = (values - stored).abs() / (1 + stored.abs())
            worst = float(difference.max())
            found.worst_difference = max(found.worst_difference, worst)
            wrong = int((~(difference <= TOLERANCE[precision])).sum())  # NaN is no agreement
            if wrong > math.ceil(task.sensitive * len(picked)):
                found.differences.append(f"{name}: {column} measured again differs by {worst:.2g}")
        found.problems.extend(found.differences)
    found.remeasured = len(picked)
