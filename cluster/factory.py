"""CheckpointFactory: Ray actors train the stacks of a zoo and commit one shard for each."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from ckpt_factory import Task, make, train_stack, with_options
from ckpt_factory.card import write_card
from ckpt_factory.files import DiskFullError, check_writable, full_disk_named, json_lines
from ckpt_factory.schema import DTYPES
from ckpt_factory.tasks.options import MissingOptionError
from ckpt_factory.train import check_plan
from ckpt_factory.verify import discard_damaged
from ckpt_factory.zoo import HEADER, Zoo, ZooHeader

from .command import Command, Outcome
from .factory_config import PRESETS, FactoryConfig
from .progress import ProgressBar, followed, rate, say
from .tasks import know_policies, task_of_zoo
from .under_way import EVERY_S, UnderWay
from .units import ATTEMPTS, run_units

LOG = "factory.log.jsonl"
"""What a clock says, times and hosts: kept out of the shards, whose bytes a repetition gives again."""


@dataclass(frozen=True, kw_only=True)
class ZooResult:
    """What a factory made; named like Ray's own results."""

    path: Path
    metrics: dict[str, Any]
    error: str | None = None
    """Which units were set aside and why, if any."""


@ray.remote(num_cpus=1)
class FactoryActor:
    """Trains stacks, one thread, data from the object store."""

    def __init__(self, zoo_path: Path, data: Any, data_root: Path | None, device: str):
        torch.set_num_threads(1)
        self.device = device
        self.zoo = Zoo.open(zoo_path)
        self.task = task_of_zoo(self.zoo, data_root, data=data)

    def run(self, unit: int) -> dict[str, Any]:
        started, cpu = time.time(), time.process_time()
        header, plan = self.zoo.header, self.zoo.header.runs_plan
        runs = plan.runs(header.run_ids(unit))
        progress = UnderWay.of_zoo(self.zoo.path).notes_of(unit)
        self.task.fault()  # of a unit that failed
        rows = train_stack(
            self.task, plan, runs, dtype=DTYPES[header.dtype], device=self.device, progress=progress
        )
        facts: dict[str, Any] = self.zoo.write_unit(unit, rows)
        if fault := self.task.fault():
            facts["fault"] = fault
        clock = {"started": started, "wall_s": time.time() - started, "cpu_s": time.process_time() - cpu}
        return {"unit": unit, **facts, **clock, "host": os.uname().nodename, "pid": os.getpid()}


def check(config: FactoryConfig) -> tuple[ZooHeader, Task]:
    """What is to be made; what a stack would refuse is refused here, before anything is written."""
    check_writable(config.out)
    task = make(_task_id(config), data_root=config.data_root)
    header = ZooHeader.of_task(
        task, config.plan, num_runs=config.num_runs, stack_size=config.stack_size, dtype=config.dtype
    )
    check_plan(task, config.plan, "cuda" if config.use_gpu else "cpu")
    if (config.out / HEADER).exists():
        Zoo.create(config.out, header)  # refuses another zoo
    return header, task


def _task_id(config: FactoryConfig) -> str:
    """The task with its options, or what to give in terms of the command line."""
    know_policies(config.task)
    try:
        return with_options(config.task, **{"env": config.env} | config.options)
    except MissingOptionError as error:
        cure = "--env CartPole-v1, or --env module:MyEnv-v0 for one of your own"
        if error.option != "env":
            cure = f"--options {error.option} VALUE"
        raise ValueError(f"task {error.task!r} needs option {error.option}: give {cure}") from None


class CheckpointFactory:
    """Makes a zoo on the connected Ray cluster: `CheckpointFactory(config).fit()`.

    Units are a pure function of the config: killed at any moment and started again, it makes the missing
    ones, and the zoo is the same, byte for byte, as an uninterrupted one. A unit whose actor dies or that
    raises is tried again; after three times it is set aside and named in the result, and the rest is
    finished. A full disk ends it at once: what was committed stays, and the same command goes on from there.
    """

    def __init__(self, config: FactoryConfig, *, num_actors: int | None = None):
        self.config = config
        self.num_actors = num_actors

    def fit(self) -> ZooResult:
        started = time.monotonic()
        header, task = check(self.config)
        if self.config.use_gpu and not ray.cluster_resources().get("GPU"):
            raise ValueError(
                "use_gpu is given, but this cluster has no GPU; leave it out, or add a node with one"
            )
        zoo = Zoo.create(self.config.out, header)
        for note in (*task.notes, header.runs_plan.mixing(header.num_runs)):
            if note:
                say(note, label="note")
        if self.config.repair:
            for unit, problem in discard_damaged(zoo):
                say(f"making shard {unit} anew: {problem}")
        elif damaged := zoo.unreadable_units():
            say(f"{damaged[0]}", label="warning")
        done = set(zoo.finished_units())
        todo = [unit for unit in range(zoo.header.num_units) if unit not in done]
        if done:
            say(f"resuming {zoo.path}: {len(done)} of {zoo.header.num_units} shards are there already")
        reports, failed = self._make(zoo, task, todo) if todo else ([], {})
        zoo.remove_leftovers()  # of actors that were killed
        metrics = _metrics(zoo, reports, time.monotonic() - started)
        write_card(zoo)
        if lost := lost_runs(zoo, metrics):
            say(lost, label="warning")
        error = "; ".join(f"shard {unit} set aside: {why}" for unit, why in sorted(failed.items())) or None
        return ZooResult(path=zoo.path, metrics=metrics | {"units_failed": sorted(failed)}, error=error)

    def _make(self, zoo: Zoo, task: Task, todo: list[int]) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """Reports of the units made, and of those set aside the reason."""
        reports: list[dict[str, Any]] = []
        failed: dict[int, str] = {}
        data = ray.put(task.data)
        kind, gpus = ("GPU", 1) if self.config.use_gpu else ("CPU", 0)
        num_actors = self.num_actors or max(1, int(ray.cluster_resources().get(kind, 1)))
        actor = FactoryActor.options(num_gpus=gpus)
        device = "cuda" if self.config.use_gpu else "cpu"
        left = set(todo)
        with (
            full_disk_named(zoo.path / LOG),
            (zoo.path / LOG).open("a", encoding="utf-8") as log,
            _bar(zoo, left),
        ):
            for unit, report in run_units(
                lambda: actor.remote(zoo.path.absolute(), data, self.config.data_root, device),
                todo,
                num_actors,
                fatal=(DiskFullError,),
            ):
                if isinstance(report, RayError):
                    UnderWay.of_zoo(zoo.path).note(unit, 0.0)
                    failed[unit] = _reason(report)
                    say(f"shard {unit} failed {ATTEMPTS} times and is set aside: {failed[unit]}")
                    continue
                left.discard(unit)
                reports.append(report)
                log.write(json.dumps(report) + "\n")
                log.flush()
        return reports, failed


@contextlib.contextmanager
def _bar(zoo: Zoo, left: set[int]) -> Iterator[None]:
    """While the block runs, a bar of the runs of all units but those left, and of what is done of these."""
    under_way, started = UnderWay.of_zoo(zoo.path), time.monotonic()
    runs_of = {unit: len(zoo.header.run_ids(unit)) for unit in range(zoo.header.num_units)}

    def done() -> float:
        shares = under_way.shares()
        return sum(shares.get(unit, 0.0) * runs if unit in left else runs for unit, runs in runs_of.items())

    before = sum(runs for unit, runs in runs_of.items() if unit not in left)

    def update(bar: ProgressBar) -> None:
        now = done()
        bar.update(now, rate(now - before, time.monotonic() - started, "run"))

    bar = ProgressBar("zoo", zoo.header.num_runs, "runs")
    with under_way.kept(), followed(bar, update, every_s=EVERY_S):
        update(bar)
        yield
        update(bar)


def _metrics(zoo: Zoo, reports: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
    runs = zoo.read_runs() if zoo.finished_units() else None
    made = sum(report["runs"] for report in reports)
    reports_of_all = logged(zoo)  # of this and of earlier sessions
    runs_logged, cpu_s = (sum(each[name] for each in reports_of_all) for name in ("runs", "cpu_s"))
    return {
        "task": zoo.header.task,
        "runs": len(runs) if runs else 0,
        "checkpoints": (len(runs) if runs else 0) * zoo.header.plan.num_checkpoints,
        "diverged_runs": runs["status"].to_pylist().count("diverged") if runs else 0,
        "bytes": sum(zoo.checkpoints_path(unit).stat().st_size for unit in zoo.finished_units()),
        "runs_made_now": made,
        "cpu_s_per_run": cpu_s / runs_logged if runs_logged else None,
        "runs_per_cpu_s": runs_logged / cpu_s if runs_logged else None,
        "wall_s": wall_s,
    }


def lost_runs(zoo: Zoo, metrics: Mapping[str, Any]) -> str:
    """How many runs something broke for, what it was and what helps; empty where nothing did.

    Runs that diverged by themselves, some of many, belong to a zoo of many recipes.
    """
    struck = [each for each in logged(zoo) if each.get("fault") and each["diverged"]]
    anew = "then make the zoo anew in another --out"
    if struck:
        causes = list(dict.fromkeys(each["fault"] for each in struck))
        more = f" and {len(causes) - 1} other causes, see {zoo.path / LOG}" if len(causes) > 1 else ""
        num_lost = sum(each["diverged"] for each in struck)
        lost = f"{num_lost} of {metrics['runs']} runs were lost: {causes[0]}{more}"
        return f"{lost}; mend the environment, {anew}"
    if all_lost(metrics):
        return (
            f"all {metrics['runs']} runs were lost: their parameters or metrics are not finite; lower --lr "
            f"or mend the task, {anew}"
        )
    return ""


def all_lost(metrics: Mapping[str, Any]) -> bool:
    """Whether a zoo has runs, and none of them finished."""
    return 0 < metrics["runs"] == metrics["diverged_runs"]


def logged(zoo: Zoo) -> list[dict[str, Any]]:
    """The last report of every unit."""
    return list({report["unit"]: report for report in json_lines(zoo.path / LOG)}.values())


def _reason(error: RayError) -> str:
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}"


def _run(config: FactoryConfig) -> Outcome:
    try:
        made = CheckpointFactory(config).fit()
    except KeyboardInterrupt:
        if (config.out / HEADER).exists() and Zoo.open(config.out).finished_units():
            raise
        raise KeyboardInterrupt("nothing is saved yet; the same command begins again") from None
    if made.error:
        say(made.error, label="incomplete", style="red")
    return made.metrics | {"error": made.error}, made.path, int(bool(made.error) or all_lost(made.metrics))


COMMAND = Command(
    FactoryConfig,
    _run,
    presets=PRESETS,
    check=check,
    resumes=True,
    examples="theta make --preset digits --out runs/zoo\n"
    "theta make --preset mnist --data-root data --out runs/zoo-mnist --address auto\n"
    "theta make --preset cartpole --out runs/zoo-cartpole\n"
    "theta make --preset gym --env MountainCar-v0 --out runs/zoo-car",
)
