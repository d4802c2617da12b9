"""Importing checkpoints that were trained elsewhere into a zoo; needs no Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckpt_factory import Task, make, spec
from ckpt_factory.card import write_card, zoo_summary
from ckpt_factory.files import check_writable
from ckpt_factory.interchange import (
    Source,
    begin_import,
    import_unit,
    open_folder,
    open_lmdb_set,
    run_directories,
)
from ckpt_factory.verify import discard_damaged

from .command import Command, Outcome
from .progress import ProgressBar, say
from .tasks import know_policies


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which checkpoints to import, and as what."""

    lmdb: Path | None = None
    """A set in the published LMDB format: the folder of its run directories 000000, 000001, ..., in each
    data.mdb, runs.json and DONE.txt, as ckpt_factory/README.md describes them."""
    folder: Path | None = None
    """A folder of networks instead: state_dicts as .safetensors, .pt or .pth."""
    metrics: Path | None = None
    """Their table, .csv or .json: columns file, run and step (both optional), all others are metrics."""
    out: Path = Path("runs/imported")
    """Folder of the zoo. The same command again resumes it."""
    task: str | None = None
    """Id of the learning problem, whose parameters the networks have; without it a zoo holds what there is,
    but no generator can be trained on it."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    evaluate: bool = False
    """Measure all metrics with the task, on its validation and test data; otherwise they are those given."""
    num_checkpoints: int | None = None
    """Checkpoints taken of each run, evenly spread, the first and the last among them; default all."""
    steps_per_epoch: int | None = None
    """Of an LMDB set; default the highest iteration within an epoch that is in it."""
    prompted: str | None = None
    """The column that prompts will be about; default the task's metric, or the first that is known."""
    objective: Literal["min", "max"] | None = None
    """Whether that is good small or large; default as of the task, "max" for returns."""
    skip_broken: bool = False
    """Leave out runs that crashed, cannot be read or do not fit, and name them, instead of stopping."""
    stack_size: int = 32
    """Runs in a shard; as many are in memory at a time."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How parameters are stored; with --evaluate, metrics are those of the stored values."""
    repair: bool = False
    """First look for damaged shards, and import those anew."""

    def __post_init__(self) -> None:
        for name in ("stack_size", "num_checkpoints", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")


def check(config: ImportConfig) -> None:
    """Whether the options go together, and the zoo's folder can be written.

    Raises:
        ValueError: which do not, and what to give.
    """
    given = [name for name in ("lmdb", "folder") if getattr(config, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of --lmdb DIR and --folder DIR, got {' and '.join(given) or 'none'}")
    if config.folder is not None and config.metrics is None and not config.evaluate:
        raise ValueError(
            "--folder needs --metrics FILE.csv or .json, or --task and --evaluate to measure them"
        )
    if config.lmdb is not None and config.metrics is not None:
        raise ValueError("--metrics is for --folder: an LMDB set has its own")
    if config.folder is not None and config.steps_per_epoch is not None:
        raise ValueError("--steps-per-epoch is for --lmdb: a folder's table has a column step")
    if config.task is None and (config.evaluate or config.data_root is not None):
        raise ValueError("--evaluate and --data-root are about a task: name it with --task")
    check_writable(config.out)
    if config.task is not None:
        spec(config.task)
    if config.lmdb is not None:
        run_directories(config.lmdb)  # before the task's images are asked for


def open_source(config: ImportConfig, task: Task | None) -> Source:
    """Look through what is to be imported, with a progress bar."""
    shared: dict[str, Any] = {"num_checkpoints": config.num_checkpoints, "skip_broken": config.skip_broken}
    bar: ProgressBar | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = ProgressBar("look", total, "runs").__enter__()
        bar.update(done)

    try:
        if config.lmdb is not None:
            per_epoch = config.steps_per_epoch
            return open_lmdb_set(
                config.lmdb, task=task, steps_per_epoch=per_epoch, progress=progress, **shared
            )
        assert config.folder is not None, "one of both was given"
        return open_folder(config.folder, config.metrics, task=task, progress=progress, **shared)
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def import_zoo(config: ImportConfig) -> dict[str, Any]:
    """Import the units that are missing and write the card: what the zoo holds, and which runs it lacks.

    Killed at any moment, the zoo is valid, and the same call goes on from there.
    """
    check(config)
    task = _task(config)
    source = open_source(config, task)
    zoo = begin_import(
        source,
        config.out,
        task=task,
        evaluate=config.evaluate,
        stack_size=config.stack_size,
        dtype=config.dtype,
        prompted=config.prompted,
        objective=config.objective,
    )
    if config.repair:
        for unit, problem in discard_damaged(zoo):
            say(f"importing shard {unit} anew: {problem}")
    elif damaged := zoo.unreadable_units():
        say(damaged[0], label="warning")
    for name, why in list(source.skipped.items())[:10]:
        say(f"run {name} is left out: {why}", label="warning")
    for file in source.strays[:10]:
        say(f"{file} is left out: it is not in the table", label="warning")
    finished = set(zoo.finished_units())
    done = sum(len(zoo.header.run_ids(unit)) for unit in finished)
    if finished:
        say(f"resuming {zoo.path}: {len(finished)} of {zoo.header.num_units} shards are there already")
    before = done
    with ProgressBar("import", zoo.header.num_runs, "runs") as bar:
        bar.update(done)
        for unit in range(zoo.header.num_units):
            if unit not in finished:
                done += import_unit(zoo, source, task, unit)["runs"]
                bar.update(done)
    write_card(zoo)
    summary = zoo_summary(zoo)
    kept = ("task", "runs", "checkpoints", "parameters", "diverged_runs", "bytes", "dtype")
    return {key: summary[key] for key in kept} | {
        "runs_imported_now": done - before,
        "prompted": zoo.header.prompted,
        "runs_left_out": len(source.skipped),
        "left_out": dict(source.skipped),
        "files_left_out": len(source.strays) or None,
    }


def _task(config: ImportConfig) -> Task | None:
    if config.task is None:
        return None
    know_policies(config.task)
    return make(config.task, data_root=config.data_root)


def _run(config: ImportConfig) -> Outcome:
    return import_zoo(config), config.out, 0


COMMAND = Command(
    ImportConfig,
    _run,
    check=check,
    starts_ray=False,
    resumes=True,
    examples="theta import --lmdb checkpoint_datasets/mnist --task mnist-mlp-v0 --data-root data "
    "--out runs/imported\n"
    "theta import --folder networks --metrics metrics.csv --out runs/imported",
)
