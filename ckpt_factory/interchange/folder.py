"""A folder of networks, .safetensors or .pt state_dicts, with a table of their metrics."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..spec import ParamSpec
from ..tasks.base import Task
from .source import BROKEN, CURE, Progress, Run, Source, Survey, evenly, silent
from .table import Row, files_as_runs, read_table

SUFFIXES = (".safetensors", ".pt", ".pth")
FLOATS = {"F16", "BF16", "F32", "F64"}
"""What safetensors calls the dtypes that a parameter may have."""


def open_folder(
    folder: Path | str,
    metrics: Path | str | None,
    *,
    task: Task | None = None,
    num_checkpoints: int | None = None,
    skip_broken: bool = False,
    progress: Progress = silent,
    flag: str = "--folder",
    refusal: str = BROKEN,
    cure: str = CURE,
) -> Source:
    """Look through a folder of networks, one file at a time: names and shapes of all, numbers of none.

    Args:
        metrics: CSV or JSON table of files, runs, steps and metrics (see `read_table`); None: every file is a
            run of one checkpoint, without metrics.
        task: what the networks learned; they have its parameters. Without it, those of the first file.
        num_checkpoints: take so many of each run, evenly spread over its checkpoints; default all.
        flag: what names the folder, for messages.
        refusal: what is wrong with broken runs, for messages.
        cure: what helps against a few of them, for messages.
        skip_broken: leave out runs with files that are missing, cannot be read or do not fit, and files
            without metrics, instead of refusing the folder.

    Raises:
        ValueError: the table is wrong, or some runs cannot be imported; the message says which and why.
    """
    folder = Path(folder)
    there = _files(folder, flag)
    columns, runs = read_table(Path(metrics)) if metrics is not None else ((), files_as_runs(there))
    survey = Survey(
        str(folder), skip_broken=skip_broken, num_checkpoints=num_checkpoints, refusal=refusal, cure=cure
    )
    found = _look(folder, runs, task.spec if task else None, survey, progress)
    listed = {row.file for rows in runs.values() for row in rows}
    survey.strays = [file for file in there if file not in listed]
    count = survey.conclude()
    assert found is not None, "a run was sound"
    spec, names = found, list(survey.counts)

    def read(run_id: int) -> Run:
        rows = runs[names[run_id]]
        return _read_run(folder, [rows[i] for i in evenly(len(rows), count)], spec, columns)

    return Source(
        label=f"the folder {folder.resolve().name}",
        spec=spec,
        metrics=columns,
        names=names,
        num_checkpoints=count,
        digest=survey.hash.hexdigest()[:16],
        read=read,
        skipped=survey.broken,
        strays=survey.strays,
    )


def _files(folder: Path, flag: str) -> list[str]:
    """All networks of a folder, relative to it."""
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; {flag} names the one with the networks' files")
    there = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not there:
        raise ValueError(f"{folder} holds no networks; expected files {', '.join(f'*{s}' for s in SUFFIXES)}")
    return there


def _look(
    folder: Path,
    runs: Mapping[str, Sequence[Row]],
    spec: ParamSpec | None,
    survey: Survey,
    progress: Progress,
) -> ParamSpec | None:
    """Look at every file; the spec that all have to keep to, given or that of the first."""
    for i, (name, rows) in enumerate(runs.items()):
        progress(i, len(runs))
        try:
            for row in rows:
                spec = _check_row(folder, row, spec)
        except ValueError as error:
            survey.broken[name] = str(error).removeprefix(f"{name}: ")  # a run without a table is its file
        else:
            survey.add(name, [(*row, (folder / row.file).stat().st_size) for row in rows])
    progress(len(runs), len(runs))
    return spec


def _read_run(folder: Path, taken: Sequence[Row], spec: ParamSpec, columns: Sequence[str]) -> Run:
    theta = torch.empty(len(taken), spec.D)
    for vector, row in zip(theta, taken, strict=True):
        try:
            state = load_state(folder / row.file)
            vector.copy_(spec.flatten({key: value.float() for key, value in state.items()}))
        except ValueError as error:
            raise ValueError(f"{folder / row.file} has changed since it was looked at: {error}") from None
    measured = {key: torch.tensor([row.metrics[key] for row in taken]) for key in columns}
    return Run(torch.tensor([row.step for row in taken]), theta, measured)


def load_state(path: Path) -> dict[str, Tensor]:
    """A state_dict from .safetensors or .pt; nothing that a file holds is ever run.

    Raises:
        ValueError: it is no state_dict, or would need more than tensors to be unpickled.
    """
    if path.suffix.lower() == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"it is not a readable safetensors file ({_short(error)})") from None
    try:
        # Zip archives, what torch.save writes since 1.6, are mapped: looking at shapes reads no numbers.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        needs = re.search(r"(?:GLOBAL|global|class)\s+`?([\w.]+)", str(error))
        why = f"it needs {needs[1]}, and code" if needs else "it is no pickle of tensors; code"
        raise ValueError(
            f"{why} in a file is never run here: save the state_dict alone, torch.save(net.state_dict(), ...)"
        ) from None
    except (OSError, RuntimeError, EOFError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"torch.load cannot read it ({_short(error)})") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        held = f"a dict of {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else None
        raise ValueError(
            f"it holds {held or type(state).__name__}; expected a state_dict: names of parameters to tensors"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise ValueError(
                f"parameter {name!r} is sparse, nested or without numbers; expected a dense tensor"
            )
    return {name: value.detach() for name, value in state.items()}


def _check_row(folder: Path, row: Row, spec: ParamSpec | None) -> ParamSpec:
    """The spec that a file keeps to, given that of the files before it; reads names and shapes alone."""
    path = folder / row.file
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{row.file} is none of {', '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{row.file} is missing")
    try:
        shapes = _shapes(path)
    except ValueError as error:
        raise ValueError(f"{row.file}: {error}") from None
    if spec is None:
        return ParamSpec(tuple(shapes), tuple(shapes.values()))
    missing = [name for name in spec.names if name not in shapes]
    unknown = [name for name in shapes if name not in spec.names]
    if missing or unknown:
        raise ValueError(f"{row.file}: missing parameters {missing}, unknown {unknown}")
    for name, shape in zip(spec.names, spec.shapes, strict=True):
        if shapes[name] != shape:
            raise ValueError(f"{row.file}: parameter {name!r} has shape {shapes[name]}, expected {shape}")
    return spec


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's parameters, all of them floating point."""
    kinds: dict[str, tuple[tuple[int, ...], Any, bool]] = {}
    if path.suffix.lower() == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
                for name in file.keys():  # noqa: SIM118  it is no dict
                    part = file.get_slice(name)
                    kind = part.get_dtype()
                    kinds[name] = tuple(part.get_shape()), kind, kind in FLOATS
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"it is not a readable safetensors file ({_short(error)})") from None
    else:
        for name, value in load_state(path).items():
            kinds[name] = tuple(value.shape), value.dtype, value.dtype.is_floating_point
    for name, (shape, kind, is_float) in kinds.items():
        if 0 in shape:
            raise ValueError(f"parameter {name!r} has shape {shape}, no numbers")
        if not is_float:
            raise ValueError(f"parameter {name!r} is {kind}; expected floating point (leave counters out)")
    if not kinds:
        raise ValueError("it holds no parameters")
    return {name: shape for name, (shape, _, _) in kinds.items()}


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]
