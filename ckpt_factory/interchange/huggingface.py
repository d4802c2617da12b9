"""A zoo as a Hugging Face dataset: `index`, small enough for its viewer, and `weights`, Parquet both."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import TEMPORARY, atomic_path, write_text
from ..plots import zoo_picture
from ..zoo import Zoo, sha256
from .dataset_card import PICTURE, dataset_card

VIEWER_LIMIT_MB = 300
"""What the Hub's viewer reads at most for a page: larger row groups are not shown (TooBigContentError)."""
MARK = b"thetaforge.export"
"""Key in the metadata of exported files: which export they belong to."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Whole units of a zoo that make up one exported file of each config."""

    number: int
    of: int
    units: range

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}-of-{self.of:05d}.parquet"


def export_dataset(
    zoo: Zoo,
    out: Path | str,
    *,
    license: str = "",
    name: str = "",
    max_shard_mb: float = 500.0,
    max_row_group_mb: float = 32.0,
) -> Iterator[int]:
    """Write a zoo as a Hugging Face dataset folder; yields units done, of `zoo.header.num_units`.

    One row group at a time is in memory. Files appear whole or not at all; where some of this very export are
    there already, they are kept, so that the same call goes on after an interruption. The card comes last.

    Args:
        license: an identifier of the Hub, "cc-by-4.0", for the card; none is claimed without.
        name: the dataset's name for people.
        max_shard_mb: size of a file of weights; whole units, so at least one.
        max_row_group_mb: size of a row group of weights, uncompressed.

    Raises:
        ValueError: the zoo is unfinished or damaged, a limit is out of range, or there are other files.
        DiskFullError: there is no space for it.
    """
    out = Path(out)
    if not 0 < max_row_group_mb <= VIEWER_LIMIT_MB:
        raise ValueError(
            f"max_row_group_mb is {max_row_group_mb:g}; expected at most {VIEWER_LIMIT_MB}: the Hub's viewer "
            "reads no larger ones"
        )
    if max_shard_mb <= 0:
        raise ValueError(f"max_shard_mb is {max_shard_mb:g}; expected a positive number")
    missing = zoo.header.num_units - len(zoo.finished_units())
    if missing:
        raise ValueError(
            f"zoo {zoo.path} lacks {missing} of {zoo.header.num_units} shards; `{zoo.header.maker}` with the "
            "same settings makes them"
        )
    shards = plan_shards(zoo, max_shard_mb)
    marks = {shard.number: _mark(zoo, shard, max_row_group_mb) for shard in shards}
    _check_folder(out, shards, marks)
    for shard in shards:
        for config, write in (("index", _write_index), ("weights", _write_weights)):
            path = out / config / shard.name
            if not path.exists():
                with atomic_path(path) as temporary:
                    write(zoo, shard, temporary, marks[shard.number], max_row_group_mb)
        yield shard.units[-1] + 1
    write_text(out / "zoo.json", zoo.header.to_json())
    zoo_picture(zoo, out / PICTURE)
    write_text(out / "README.md", dataset_card(zoo, name=name, license=license))


def plan_shards(zoo: Zoo, max_shard_mb: float) -> list[Shard]:
    """Units, in their order, put together to files of about that size."""
    h = zoo.header
    run_mb = 4 * h.spec.D * h.plan.num_checkpoints / 1e6
    per_shard = max(1, int(max_shard_mb / (run_mb * h.stack_size)))
    starts = range(0, h.num_units, per_shard)
    return [
        Shard(number=i, of=len(starts), units=range(start, min(start + per_shard, h.num_units)))
        for i, start in enumerate(starts)
    ]


def index_table(zoo: Zoo, unit: int) -> pa.Table:
    """One row per checkpoint of a unit: run_id, step, metrics, and all that is known of its run."""
    metrics = zoo.read_metrics(unit)
    count = zoo.header.plan.num_checkpoints
    runs = zoo.read_unit_runs(unit)
    of_run = pa.array(np.repeat(np.arange(len(runs)), count))
    columns = {key: pa.array(values.numpy()) for key, values in metrics.items()}
    settings = runs.drop_columns(["run_id"]).take(of_run)
    columns |= {key: settings[key].combine_chunks() for key in settings.column_names}
    return pa.table(columns)


def _write_index(zoo: Zoo, shard: Shard, path: Path, mark: str, max_row_group_mb: float) -> None:
    """A row group per unit."""
    del max_row_group_mb  # some hundred bytes a row, and no more rows than a unit has: far below any limit
    writer = None
    try:
        for unit in shard.units:
            table = index_table(zoo, unit)
            if writer is None:
                schema = table.schema.with_metadata({MARK: mark.encode()})
                writer = pq.ParquetWriter(path, schema, write_page_index=True, write_page_checksum=True)
            writer.write_table(table.replace_schema_metadata(schema.metadata))
    finally:
        if writer is not None:
            writer.close()


def _write_weights(zoo: Zoo, shard: Shard, path: Path, mark: str, max_row_group_mb: float) -> None:
    """run_id, step and theta as lists of D float32, whatever the zoo stores; row groups of whole rows."""
    D = zoo.header.spec.D
    rows_per_group = max(1, int(max_row_group_mb * 1e6 / (4 * D)))
    # `datasets` knows lists of fixed length, neither fixed_shape_tensor nor what fixed-size binary means.
    theta_type = pa.list_(pa.float32(), D)
    schema = pa.schema(
        [("run_id", pa.int64()), ("step", pa.int32()), ("theta", theta_type)],
        metadata={MARK: mark.encode(), b"thetaforge.param_spec": zoo.header.spec.to_json().encode()},
    )
    options = {"compression": "none", "use_dictionary": False, "write_statistics": ["run_id", "step"]}
    with pq.ParquetWriter(path, schema, write_page_index=True, write_page_checksum=True, **options) as writer:
        for unit in shard.units:
            for group in range(len(zoo.row_groups(unit))):
                rows = zoo.read_unit(unit, [group])
                theta = rows.theta.float().flatten().numpy()
                columns = [
                    pa.array(rows.run_ids.repeat_interleave(rows.steps.shape[1]).numpy()),
                    pa.array(rows.steps.flatten().numpy().astype(np.int32)),
                    pa.FixedSizeListArray.from_arrays(pa.array(theta), type=theta_type),
                ]
                writer.write_table(
                    pa.Table.from_arrays(columns, schema=schema), row_group_size=rows_per_group
                )


def _mark(zoo: Zoo, shard: Shard, max_row_group_mb: float) -> str:
    """What a shard is made of: two with the same mark are the same."""
    header = zoo.header.to_json()
    sums = "".join(sha256(zoo.sums_path(unit)) for unit in shard.units)
    text = f"{header} {sums} {shard.name} {max_row_group_mb:g}"
    return hashlib.sha256(text.encode()).hexdigest()


def _check_folder(out: Path, shards: list[Shard], marks: dict[int, str]) -> None:
    """Remove half-written files of a killed export; refuse whole ones of another.

    Raises:
        ValueError: there is a file that is not of this export.
    """
    for config in ("index", "weights"):
        for leftover in (out / config).glob(f"{TEMPORARY}part-*"):
            leftover.unlink(missing_ok=True)
        expected = {shard.name: marks[shard.number] for shard in shards}
        for path in sorted((out / config).glob("*.parquet")):
            try:
                found = (pq.read_schema(path).metadata or {}).get(MARK, b"").decode()
            except (pa.ArrowException, OSError):
                found = ""
            if not found or found != expected.get(path.name):
                raise ValueError(
                    f"{path} is not of this zoo or of other settings; give another --out, or remove it"
                )
