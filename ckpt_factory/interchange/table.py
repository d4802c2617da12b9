"""The table of metrics beside a folder of networks: CSV or JSON, one row per file."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

KEYS = ("file", "run", "step")
"""Columns that are no metrics; all but the first may be absent."""


class Row(NamedTuple):
    """One network of the folder."""

    file: str
    step: int
    metrics: dict[str, float]


def read_table(path: Path) -> tuple[tuple[str, ...], dict[str, list[Row]]]:
    """The metrics' names, and the rows of each run in the order of their steps, runs as in the table.

    Columns: file (relative to the folder), run and step (both optional: without run each file is one of its
    own, without step the rows of a run are in order), all others numbers. JSON is a list of such objects, or
    an object {file: {the other columns}}.

    Raises:
        ValueError: the table cannot be read, or a row of it is not as described; the message says which.
    """
    try:
        records = _json_records(path) if path.suffix.lower() == ".json" else _csv_records(path)
    except FileNotFoundError:
        raise ValueError(f"no table of metrics {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from None
    if not records:
        raise ValueError(f"{path} has no rows; expected one for each file")
    names = tuple(name for name in records[0][1] if name not in KEYS)
    runs: dict[str, list[Row]] = {}
    seen: dict[object, str] = {}
    for where, record in records:
        missing = [name for name in records[0][1] if name not in record]
        more = [name for name in record if name not in records[0][1]]
        if missing or more:
            raise ValueError(f"{path}, {where}: missing columns {missing}, unknown columns {more}")
        file = _file(path, where, record)
        run = _run(path, where, record["run"]) if "run" in record else file
        rows = runs.setdefault(run, [])
        step = _step(path, where, record["step"]) if "step" in record else len(rows)
        for what in (f"file {file}", f"step {step} of run {run}"):
            if what in seen:
                raise ValueError(f"{path}: {what} is in {seen[what]} and in {where}; it may be there once")
            seen[what] = where
        rows.append(Row(file, step, {name: _number(path, where, name, record[name]) for name in names}))
    return names, {run: sorted(rows, key=lambda row: row.step) for run, rows in runs.items()}


def files_as_runs(files: Iterable[str]) -> dict[str, list[Row]]:
    """Without a table each file is a run of its own."""
    return {file: [Row(file, 0, {})] for file in files}


Records = list[tuple[str, Mapping[str, Any]]]
"""(where it stands, the row) of each row."""


def _csv_records(path: Path) -> Records:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
        reader = csv.DictReader(file, strict=True)
        columns = [name.strip() for name in reader.fieldnames or []]
        if "file" not in columns:
            raise ValueError(f"{path} has no column file; its columns are {columns}")
        if len(set(columns)) < len(columns):
            raise ValueError(f"{path} has a column twice: {columns}")
        reader.fieldnames = columns
        records: Records = []
        for record in reader:
            where = f"line {reader.line_num}"
            if None in record or None in record.values():
                raise ValueError(f"{path}, {where}: expected {len(columns)} cells, {', '.join(columns)}")
            records.append((where, record))
    return records


def _json_records(path: Path) -> Records:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a table ({error})") from None
    if isinstance(document, dict):
        document = [{"file": file, **row} if isinstance(row, dict) else row for file, row in document.items()]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise ValueError(f"{path}: expected a list of objects, or an object of objects by file")
    for i, row in enumerate(document):
        if "file" not in row:
            raise ValueError(f"{path}, entry {i + 1}: it has no file; its keys are {list(row)}")
    return [(f"entry {i + 1}", row) for i, row in enumerate(document)]


def _file(path: Path, where: str, record: Mapping[str, Any]) -> str:
    file = PurePosixPath(str(record["file"]).strip())
    if not file.name or file.is_absolute() or ".." in file.parts:
        raise ValueError(f"{path}, {where}: file is {record['file']!r}; expected a path within the folder")
    return file.as_posix()


def _run(path: Path, where: str, given: object) -> str:
    run = str(given).strip() if isinstance(given, str | int) and not isinstance(given, bool) else ""
    if not run:
        raise ValueError(f"{path}, {where}: run is {given!r}; expected its name or number")
    return run


def _step(path: Path, where: str, given: object) -> int:
    """A whole number; a table with gaps elsewhere is written with 7.0 for 7."""
    try:
        step = _plain_number(given)
    except (TypeError, ValueError, OverflowError):
        step = -1.0
    if not 0 <= step < 2**31 or step != int(step):
        raise ValueError(f"{path}, {where}: step is {given!r}; expected a number 0, 1, 2, ...")
    return int(step)


def _number(path: Path, where: str, name: str, given: object) -> float:
    try:
        return _plain_number(given)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{path}, {where}: {name} is {repr(given)[:40]}; expected a number: all columns but "
            f"{', '.join(KEYS)} are metrics; remove the column if it is none"
        ) from None


def _plain_number(given: object) -> float:
    """Numbers and what spells one; not True, nor 1_0, which Python reads as 10."""
    if isinstance(given, bool) or not isinstance(given, str | int | float) or "_" in str(given):
        raise ValueError
    return float(given)
