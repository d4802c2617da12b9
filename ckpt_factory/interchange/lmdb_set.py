"""The published checkpoint sets (Peebles et al. 2022): run directories, an LMDB and runs.json in each."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..spec import ParamSpec
from ..tasks.base import Task
from .source import Progress, Run, Source, Survey, evenly, silent

KINDS = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}
"""What JSON calls things."""
KEY = re.compile(r"(?:ep(\d+)_)?it(\d+)\.pt")
"""A checkpoint's key behind its run's name: the epoch, where there are epochs, and the iteration in it."""
MLP_784_10_10 = {"fc1.weight": (10, 784), "fc1.bias": (10,), "fc2.weight": (10, 10), "fc2.bias": (10,)}
CONVNET = {
    "conv1.weight": (16, 3, 3, 3),
    "conv2.weight": (32, 16, 3, 3),
    "fc.weight": (10, 32),
    "fc.bias": (10,),
}
POLICY = {
    "log_std": (1,),
    "actor.0.weight": (32, 4),
    "actor.0.bias": (32,),
    "actor.2.weight": (32, 32),
    "actor.2.bias": (32,),
    "actor.4.weight": (1, 32),
    "actor.4.bias": (1,),
}
PUBLISHED = tuple(ParamSpec(tuple(net), tuple(net.values())) for net in (MLP_784_10_10, CONVNET, POLICY))
"""The networks of the published sets, which themselves say nothing but the sizes of tensors."""


class Moment(NamedTuple):
    """When a checkpoint was saved: at iteration `it` of an epoch, or of the run where epoch is -1."""

    epoch: int
    it: int

    def step(self, steps_per_epoch: int) -> int:
        return self.it if self.epoch < 0 else self.epoch * steps_per_epoch + self.it


@dataclass(frozen=True)
class Layout:
    """What all runs of a set have in common."""

    sizes: tuple[int, ...]
    keys: tuple[str, ...]
    """Of the metrics, as the set calls them."""


@dataclass
class Look:
    """What is known of a set while its directories are looked at one after the other."""

    survey: Survey
    places: dict[str, Path] = field(default_factory=dict)
    """Run -> its directory."""
    layout: Layout | None = None
    """Of the first sound run; the others have to have it too."""
    highest: int = -1
    """Iteration within an epoch."""
    last: dict[str, Moment] = field(default_factory=dict)
    """Run -> when its last checkpoint was saved."""

    def at(self, directory: Path, task: Task | None, steps_per_epoch: int | None) -> None:
        try:
            entries = _read_runs(directory)
        except ValueError as error:
            self.survey.broken[directory.name] = str(error)
            return
        for name, entry in entries.items():
            if name in self.places:
                self.survey.broken[f"{name} of {directory.name}"] = (
                    f"it is in {self.places[name].name} already"
                )
                continue
            try:
                checkpoints = _checkpoints(name, entry)
                moments = _moments(name, checkpoints, steps_per_epoch)
                self.layout = _check_run(directory, checkpoints, self.layout, task)
            except ValueError as error:
                self.survey.broken[name] = str(error)
                continue
            self.places[name] = directory
            seen = [(*moment, sorted(checkpoints[key].items())) for moment, key in moments.items()]
            self.survey.add(name, seen, self.layout.sizes, (directory / "data.mdb").stat().st_size)
            self.highest = max([self.highest, *(moment.it for moment in moments if moment.epoch >= 0)])
            self.last[name] = max(moments)

    def conclude(self, steps_per_epoch: int | None) -> tuple[int, int]:
        """How many checkpoints are taken of each run, and how many iterations an epoch has."""
        per_epoch = steps_per_epoch or max(self.highest, 1)
        self.survey.hash.update(f"steps per epoch {per_epoch}".encode())
        for name in [name for name in self.survey.counts if self.last[name].step(per_epoch) >= 2**31]:
            del self.survey.counts[name]
            self.survey.broken[name] = (
                f"its last checkpoint is of step {self.last[name].step(per_epoch)}; expected below 2**31"
            )
        count = self.survey.conclude()
        if self.highest < 0 and steps_per_epoch is not None:
            raise ValueError("--steps-per-epoch is for sets with epochs; the iterations of this one count on")
        return count, per_epoch


def open_lmdb_set(
    folder: Path | str,
    *,
    task: Task | None = None,
    num_checkpoints: int | None = None,
    steps_per_epoch: int | None = None,
    skip_broken: bool = False,
    progress: Progress = silent,
) -> Source:
    """Look through a set in the published format, one run directory at a time.

    Args:
        folder: holds the run directories 000000, 000001, ..., or fused ones 000000_000001_... .
        task: what the networks learned; sizes of tensors are held against its spec. Without it the spec is
            that of the published network with such sizes, or a list of flat tensors.
        num_checkpoints: take so many of each run, evenly spread over its checkpoints; default all.
        steps_per_epoch: iterations of an epoch; default the highest that any checkpoint was saved at.
        skip_broken: leave out runs that crashed or cannot be read, instead of refusing the set.

    Raises:
        ValueError: lmdb is not installed, there are no runs, or some cannot be imported; the message says
            which and why.
    """
    _lmdb()
    folder = Path(folder)
    directories = run_directories(folder)
    look = Look(Survey(str(folder), skip_broken=skip_broken, num_checkpoints=num_checkpoints))
    for i, directory in enumerate(directories):
        progress(i, len(directories))
        look.at(directory, task, steps_per_epoch)
    progress(len(directories), len(directories))
    count, per_epoch = look.conclude(steps_per_epoch)
    survey, places, layout = look.survey, look.places, look.layout
    assert layout is not None, "a run was sound"
    names, columns = list(survey.counts), [_column(key) for key in layout.keys]
    spec = task.spec if task else _spec_of(layout.sizes)

    def read(run_id: int) -> Run:
        name = names[run_id]
        try:
            return _read_run(places[name], name, layout, count, per_epoch)
        except ValueError as error:
            raise ValueError(f"{folder}: run {name} has changed since it was looked at: {error}") from None

    return Source(
        label=f"the LMDB set {folder.resolve().name}",
        spec=spec,
        metrics=tuple(column for column, _ in columns),
        names=names,
        num_checkpoints=count,
        digest=survey.hash.hexdigest()[:16],
        read=read,
        skipped=survey.broken,
    )


def run_directories(folder: Path) -> list[Path]:
    """The directories of a set, in the order of their names.

    Raises:
        ValueError: no such folder, it is a single run's, or holds none.
    """
    if not folder.is_dir():
        raise ValueError(
            f"no folder {folder}; --lmdb names the one that holds the run directories 000000, ..."
        )
    if (folder / "data.mdb").exists():
        raise ValueError(
            f"{folder} is a single run directory; give the folder that holds it: {folder.parent}"
        )
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise ValueError(
            f"{folder} holds no run directories; expected 000000, 000001, ... with data.mdb in each"
        )
    return found


def _read_runs(directory: Path) -> dict[str, Any]:
    """What the runs.json of a directory says of each of its runs; all of it for a run that it lacks."""
    if not (directory / "data.mdb").is_file():
        raise ValueError("it has no data.mdb")
    for name in ("runs.json", "DONE.txt"):
        if not (directory / name).is_file():
            raise ValueError(f"it has no {name}: the run crashed, or is not over")
    try:
        document = json.loads((directory / "runs.json").read_bytes())  # NaN and Infinity are understood
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"its runs.json cannot be read ({error})") from None
    if isinstance(document, dict) and "checkpoints" in document:
        return {directory.name: document}
    fused = document if isinstance(document, dict) else {}
    return {name: fused.get(name, document) for name in directory.name.split("_")}


def _checkpoints(name: str, entry: Any) -> dict[str, dict[str, Any]]:
    """The metrics of a run's checkpoints: {key: {metric: value}}."""
    checkpoints = entry.get("checkpoints") if isinstance(entry, dict) else None
    if not isinstance(checkpoints, dict) or not all(isinstance(each, dict) for each in checkpoints.values()):
        raise ValueError(
            f"its runs.json has no checkpoints of run {name}: expected "
            f'{{"checkpoints": {{"{name}/ep000_it00000.pt": {{metric: number}}, ...}}}}, found '
            f"{_found(entry, checkpoints)}"
        )
    return checkpoints


def _found(entry: Any, checkpoints: Any) -> str:
    """What stands in the place of a run's checkpoints, at the outermost level that is not as expected."""
    if not isinstance(entry, dict):
        return f"a {KINDS.get(type(entry), 'value')}"
    if "checkpoints" not in entry:
        return f"an object with the keys {', '.join(map(repr, list(entry)[:4])) or 'none'}"
    if isinstance(checkpoints, dict):
        key = next(key for key, each in checkpoints.items() if not isinstance(each, dict))
        return f"a {KINDS.get(type(checkpoints[key]), 'value')} as the metrics of {key!r}"
    return f"a {KINDS.get(type(checkpoints), 'value')} as checkpoints"


def _moments(name: str, checkpoints: Mapping[str, Any], steps_per_epoch: int | None) -> dict[Moment, str]:
    """When the checkpoints of a run were saved -> their keys, in the order of time."""
    moments = {}
    for key in checkpoints:
        run, _, file = key.rpartition("/")
        match = KEY.fullmatch(file)
        if run != name or match is None:
            raise ValueError(
                f"its checkpoint {key!r} is not called {name}/ep000_it00000.pt or {name}/it00000.pt"
            )
        moment = Moment(-1 if match[1] is None else int(match[1]), int(match[2]))
        if moment.epoch > 0 and moment.it < 1:
            raise ValueError(
                f"its checkpoint {key!r} is of iteration 0, but epochs after the first begin at 1"
            )
        if moment.epoch >= 0 and steps_per_epoch is not None and moment.it > steps_per_epoch:
            raise ValueError(f"its checkpoint {key!r} is beyond --steps-per-epoch {steps_per_epoch}")
        moments[moment] = key
    if len({moment.epoch < 0 for moment in moments}) > 1 or len(moments) < len(checkpoints):
        raise ValueError("its checkpoints cannot be put in order by their names")
    return dict(sorted(moments.items()))


def _check_run(
    directory: Path, checkpoints: Mapping[str, Any], layout: Layout | None, task: Task | None
) -> Layout:
    """What a run has in common with the runs before it; looks at every entry, reads none of the vectors."""
    if not checkpoints:
        raise ValueError("it has no checkpoints")
    with _entries(directory) as get:
        for key, metrics in checkpoints.items():
            stored = get(f"{key}_arch")
            arch = np.frombuffer(stored[: len(stored) // 4 * 4], "<f4")
            whole = np.isfinite(arch) & (arch >= 1) & (arch == arch.round())
            if not len(arch) or len(stored) % 4 or not whole.all():
                raise ValueError(f"{key}_arch does not hold sizes of tensors")
            found = Layout(tuple(map(int, arch)), tuple(sorted(metrics)))
            if task is not None and found.sizes != task.spec.sizes:
                raise ValueError(
                    f"its tensors have {list(found.sizes)} elements, those of task {task.id!r} "
                    f"{list(task.spec.sizes)}"
                )
            layout = layout or found
            if found.sizes != layout.sizes:
                raise ValueError(
                    f"its tensors have {list(found.sizes)} elements, of runs before {list(layout.sizes)}"
                )
            if found.keys != layout.keys:
                raise ValueError(
                    f"{key} has the metrics {list(found.keys)}, checkpoints before it {list(layout.keys)}"
                )
            for metric, value in metrics.items():
                if not _is_number(value):
                    raise ValueError(f"{metric} of {key} is {str(value)[:40]!r}; expected a number")
            if len(get(key)) != 4 * sum(layout.sizes):
                raise ValueError(f"{key} has {len(get(key))} bytes, expected {4 * sum(layout.sizes)}")
    assert layout is not None, "there was a checkpoint"
    return layout


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool | str) and float(value) is not None
    except (TypeError, ValueError, OverflowError):
        return False


def _read_run(directory: Path, name: str, layout: Layout, count: int, steps_per_epoch: int) -> Run:
    checkpoints = _checkpoints(name, _read_runs(directory).get(name))
    moments = list(_moments(name, checkpoints, None).items())
    if len(moments) < count:
        raise ValueError(f"it has {len(moments)} checkpoints, had at least {count}")
    taken = [moments[i] for i in evenly(len(moments), count)]
    theta = torch.empty(count, sum(layout.sizes))
    with _entries(directory) as get:
        for row, (_, key) in zip(theta.numpy(), taken, strict=True):
            row[:] = np.frombuffer(get(key), "<f4")
    metrics = {}
    for key in layout.keys:
        column, factor = _column(key)
        values = [float(checkpoints[name][key]) * factor for _, name in taken]
        metrics[column] = torch.tensor(values)
    steps = torch.tensor([moment.step(steps_per_epoch) for moment, _ in taken])
    return Run(steps, theta, metrics)


@contextmanager
def _entries(directory: Path) -> Iterator[Any]:
    """`get(key)` of a directory's LMDB: a view of the value that lasts as long as the block."""
    lmdb = _lmdb()
    try:
        with lmdb.open(str(directory), readonly=True, lock=False, readahead=False) as environment:
            size = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
            if (directory / "data.mdb").stat().st_size < size:  # a look beyond its end would kill the process
                raise ValueError(f"its data.mdb is truncated, it should have {size} bytes")
            with environment.begin(buffers=True) as transaction:

                def get(key: str) -> memoryview:
                    value = transaction.get(key.encode())
                    if value is None:
                        raise ValueError(f"its data.mdb has no entry {key}")
                    return value

                yield get
    except lmdb.Error as error:
        raise ValueError(f"its data.mdb cannot be read ({' '.join(str(error).split())[:160]})") from None


def _lmdb() -> Any:
    try:
        import lmdb  # noqa: PLC0415  an extra
    except ImportError:
        raise ValueError("LMDB sets are read with lmdb: pip install 'thetaforge[lmdb]'") from None
    return lmdb


def _column(key: str) -> tuple[str, float]:
    """A metric's column in the zoo, and the factor to its unit: errors are percent in the published sets."""
    name = key.removeprefix("avg_")
    if name.endswith("_err"):
        return f"{name}or", 0.01
    return (f"{name}urn" if name.endswith("_ret") else name), 1.0


def _spec_of(sizes: tuple[int, ...]) -> ParamSpec:
    for spec in PUBLISHED:
        if spec.sizes == sizes:
            return spec
    return ParamSpec(tuple(f"tensor_{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))
