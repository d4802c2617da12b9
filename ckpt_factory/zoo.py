"""Zoo: the directory of Parquet shards that a factory fills and everything downstream reads."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .files import TEMPORARY, atomic_path, check_same, write_text
from .header import ZooHeader
from .schema import DTYPES, SCHEMA_VERSION, checkpoint_schema, checkpoint_table, runs_schema, theta_tensor
from .train import Rows

ROW_GROUP_BYTES = 4 * 2**20
HEADER = "zoo.json"


@dataclass(frozen=True)
class Zoo:
    """A zoo on disk.

    checkpoints/task=<id>/part-00017.parquet   one row per checkpoint, row groups of whole runs; the id
                                               percent-encoded, as readers of such folders expect
    runs/part-00017.parquet                    one row per run
    sums/part-00017.sha256                     checksums of both and of zoo.json; written last: unit done
    zoo.json                                   the header
    """

    path: Path
    header: ZooHeader

    @classmethod
    def open(cls, path: Path | str) -> "Zoo":
        """Open a zoo.

        Raises:
            ValueError: no zoo there, or one of another schema version.
        """
        path = Path(path)
        try:
            text = (path / HEADER).read_text(encoding="utf-8")
            fields = json.loads(text)
            version = fields.get("schema_version") if isinstance(fields, dict) else None
        except FileNotFoundError:
            cure = f"make one with `theta make --out {path}`"
            if path.is_dir() and any(path.iterdir()):
                cure = "that folder holds something else: give the zoo's own folder"
            raise ValueError(f"no zoo at {path} (it has no {HEADER}); {cure}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path / HEADER} cannot be read ({error}); restore it or make the zoo anew"
            ) from None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"zoo {path} has schema version {version}, this thetaforge reads {SCHEMA_VERSION}; "
                "make it anew, or read it with the version that wrote it"
            )
        try:
            return cls(path, ZooHeader.from_json(text))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            why = " ".join(str(error).split())[:160]
            raise ValueError(
                f"{path / HEADER} is not a zoo's header ({why}); restore it or make the zoo anew"
            ) from None

    @classmethod
    def create(cls, path: Path | str, header: ZooHeader) -> "Zoo":
        """Begin a zoo, or go on with the same one; one from before settings could be `unused` goes on as
        it began.

        Raises:
            ValueError: another zoo is there already; the message says what differs.
        """
        path = Path(path)
        if not (path / HEADER).exists():
            write_text(path / HEADER, header.to_json())
        zoo = cls.open(path)
        if not zoo.header.unused:
            header = replace(header, unused=())
        old, new = json.loads(zoo.header.to_json()), json.loads(header.to_json())
        old, new = old | old.pop("plan"), new | new.pop("plan")
        empty = {"unused": [], "hyper": {}}  # then they are not in the text
        check_same(f"{path} holds another zoo", empty | old, empty | new)
        held = (path / HEADER).read_text(encoding="utf-8")
        if held != header.to_json():  # the same settings, but not the very bytes
            write_text(path / HEADER, header.to_json())
        zoo.remove_leftovers()
        return zoo

    def remove_leftovers(self) -> None:
        """Remove the half-written files of killed processes; nobody may be writing."""
        writers = (self.checkpoints_path, self.runs_path, self.sums_path)
        for folder in (self.path, *(path(0).parent for path in writers)):
            for written in (HEADER, "part-*"):  # and nothing else: the folder may hold more than the zoo
                for leftover in folder.glob(f"{TEMPORARY}{written}-{'[0-9a-f]' * 32}"):
                    leftover.unlink(missing_ok=True)

    def checkpoints_path(self, unit: int) -> Path:
        task = self.header.task  # a module's colon has always been a dot here
        folder = quote(task if "?" in task else task.replace(":", "."), safe="")
        return self.path / "checkpoints" / f"task={folder}" / f"part-{unit:05d}.parquet"

    def runs_path(self, unit: int) -> Path:
        return self.path / "runs" / f"part-{unit:05d}.parquet"

    def sums_path(self, unit: int) -> Path:
        return self.path / "sums" / f"part-{unit:05d}.sha256"

    def finished_units(self) -> list[int]:
        """The units that are done; resuming makes the others, and nothing else decides."""
        found = []
        for path in (self.path / "sums").glob("part-*.sha256"):
            number = path.stem.removeprefix("part-")
            if (
                number.isdecimal()
                and int(number) < self.header.num_units
                and path == self.sums_path(int(number))
            ):
                found.append(int(number))
        return sorted(found)

    def unreadable_units(self) -> list[str]:
        """What is wrong with finished units at a first look, at their footers; `verify` reads them whole."""
        found = []
        for unit in self.finished_units():
            try:
                self.row_groups(unit)
            except ValueError as error:
                found.append(str(error))
        return found

    @cached_property
    def schema(self) -> pa.Schema:
        h = self.header
        return checkpoint_schema(h.task, h.spec, h.metrics, h.dtype)

    @cached_property
    def runs_columns(self) -> list[str]:
        """Names of the columns of the runs table."""
        h = self.header
        return runs_schema(h.task, h.spec, h.unit_settings(0)[0], h.metrics).names

    def write_unit(self, unit: int, rows: Rows, names: Sequence[str] | None = None) -> dict[str, int]:
        """Commit the checkpoints of one stack. Its bytes are a function of the header: twice writes the same.

        Args:
            names: of imported runs, those that they had.

        Returns:
            {"runs": ..., "checkpoints": ..., "diverged": ..., "bytes": ...}

        Raises:
            DiskFullError: there is no space for it; the unit is as if it had not been begun.
        """
        ids, shape = list(self.header.run_ids(unit)), tuple(rows.theta.shape)
        num_checkpoints = self.header.plan.num_checkpoints
        if rows.run_ids.tolist() != ids or shape != (len(ids), num_checkpoints, self.header.spec.D):
            raise ValueError(
                f"unit {unit} is {num_checkpoints} checkpoints each of the runs {ids[0]} to {ids[-1]}, got "
                f"theta {shape} of the runs {rows.run_ids.tolist()}"
            )
        if rows.theta.dtype != DTYPES[self.header.dtype]:  # their bytes would be stored as they are
            raise ValueError(f"this zoo holds theta as {self.header.dtype}, got {rows.theta.dtype}")
        table = checkpoint_table(
            self.schema,
            rows.run_ids.repeat_interleave(num_checkpoints).numpy(),
            rows.steps.flatten().numpy(),
            {name: rows.metrics[name].flatten().numpy() for name in self.header.metrics},
            rows.theta.flatten(0, 1),
        )
        runs_per_group = max(1, ROW_GROUP_BYTES // rows.theta[0].nbytes)
        with atomic_path(self.checkpoints_path(unit)) as temporary:
            pq.write_table(
                table,
                temporary,
                row_group_size=runs_per_group * num_checkpoints,
                compression="none",
                use_dictionary=False,
                write_statistics=["run_id", "step", *self.header.metrics],  # pyright: ignore[reportArgumentType]
                write_page_checksum=True,
            )
        with atomic_path(self.runs_path(unit)) as temporary:
            pq.write_table(self.runs_table(unit, rows, names), temporary, write_page_checksum=True)
        files = [self.path / HEADER, self.checkpoints_path(unit), self.runs_path(unit)]
        write_text(
            self.sums_path(unit),
            "".join(f"{sha256(f)}  {f.relative_to(self.path).as_posix()}\n" for f in files),
        )
        return {
            "runs": len(ids),
            "checkpoints": len(table),
            "diverged": int((~rows.finite()).sum()),
            "bytes": sum(f.stat().st_size for f in files[1:]),
        }

    def runs_table(self, unit: int, checkpoints: Rows, names: Sequence[str] | None = None) -> pa.Table:
        """What the runs table says of a unit with these checkpoints, `names` being those of imported runs."""
        settings, finite = self.header.unit_settings(unit, names), checkpoints.finite().tolist()
        rows = [
            each
            | {"status": "finished" if ok else "diverged"}
            | {f"final_{name}": float(values[i, -1]) for name, values in checkpoints.metrics.items()}
            for i, (each, ok) in enumerate(zip(settings, finite, strict=True))
        ]
        schema = runs_schema(self.header.task, self.header.spec, settings[0], self.header.metrics)
        return pa.Table.from_pylist(rows, schema)

    def row_groups(self, unit: int) -> list[int]:
        """How many runs each row group of a unit's shard holds."""
        metadata = self._open(self.checkpoints_path(unit)).metadata
        num_steps = self.header.plan.num_checkpoints
        return [metadata.row_group(i).num_rows // num_steps for i in range(metadata.num_row_groups)]

    def row_groups_of(self, unit: int, first: int, num_runs: int = 1) -> list[int]:
        """The row groups of a unit's shard that hold so many of its runs, the `first` one being its place."""
        ends = list(accumulate(self.row_groups(unit)))
        return [
            group
            for group, (begin, end) in enumerate(pairwise([0, *ends]))
            if begin < first + num_runs and end > first
        ]

    def read_unit(self, unit: int, row_groups: Iterable[int] | None = None) -> Rows:
        """Checkpoints of a unit, or of some of its row groups, which hold whole runs.

        Raises:
            ValueError: the shard is missing, truncated, corrupt, or of another task.
        """
        path = self.checkpoints_path(unit)
        file = self._open(path)
        try:
            table = file.read() if row_groups is None else file.read_row_groups(list(row_groups))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(_damaged(path, error)) from None
        num_steps = self.header.plan.num_checkpoints
        if len(table) % num_steps:
            raise ValueError(
                _damaged(path, f"{len(table)} rows are not whole runs of {num_steps} checkpoints")
            )
        theta = theta_tensor(table)

        def grid(name: str) -> Tensor:
            return torch.from_numpy(table[name].to_numpy().copy()).view(-1, num_steps)

        run_ids, steps = grid("run_id"), grid("step")
        if (run_ids != run_ids[:, :1]).any() or (steps.diff(dim=1) <= 0).any():
            raise ValueError(_damaged(path, "rows of different runs or steps are mixed up"))
        return Rows(
            run_ids[:, 0],
            steps,
            theta.view(-1, num_steps, self.header.spec.D),
            {name: grid(name) for name in self.header.metrics},
        )

    def read_metrics(self, unit: int) -> dict[str, Tensor]:
        """run_id, step and metrics of a unit's checkpoints, without their parameters."""
        path = self.checkpoints_path(unit)
        names = ["run_id", "step", *self.header.metrics]
        try:
            table = self._open(path).read(columns=names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(_damaged(path, error)) from None
        return {name: torch.from_numpy(table[name].to_numpy().copy()) for name in names}

    def read_runs(self) -> pa.Table:
        """The runs table of all finished units."""
        units = self.finished_units()
        if not units:
            raise ValueError(
                f"zoo {self.path} has no finished shard yet; "
                f"run `{self.header.maker} --out {self.path}` first"
            )
        return pa.concat_tables([self.read_unit_runs(unit) for unit in units])

    def read_unit_runs(self, unit: int) -> pa.Table:
        """The runs table of one unit."""
        path = self.runs_path(unit)
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(_damaged(path, error)) from None
        if table.column_names != self.runs_columns:
            raise ValueError(_damaged(path, "its columns are not those of zoo.json"))
        return table

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(_damaged(path, error)) from None
        if not file.schema_arrow.equals(self.schema, check_metadata=True):
            found = (file.schema_arrow.metadata or {}).get(b"thetaforge.task", b"none").decode()
            raise ValueError(
                f"{path} is of task {found!r} or another schema; this zoo holds {self.header.task!r}"
            )
        return file


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: object) -> str:
    text = " ".join(str(why).split())[:160]
    return (
        f"{path} is damaged ({text}); `theta verify` lists all damage, and the command that made the zoo "
        "makes those shards anew with --repair"
    )
