"""Exporting a zoo as a Hugging Face dataset; needs no Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_factory.files import check_writable
from ckpt_factory.interchange import export_dataset
from ckpt_factory.zoo import Zoo

from .command import Command, Outcome
from .progress import ProgressBar


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which zoo to export, and how."""

    zoo: Path = Path("runs/zoo")
    """The zoo."""
    out: Path = Path("runs/dataset")
    """Folder of the Hugging Face dataset. The same command again resumes it."""
    name: str = ""
    """The dataset's name in its card; default says the task."""
    license: str = ""
    """Its license in the card, as the Hub calls it: cc-by-4.0, mit, ...; without it the card claims none."""
    max_shard_mb: float = 500.0
    """Size of a file of weights, in whole shards of the zoo."""
    max_row_group_mb: float = 32.0
    """Size of a row group of weights; the Hub's viewer reads none above 300."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the dataset and return what is in it as numbers."""
    zoo = Zoo.open(config.zoo)
    with ProgressBar("export", zoo.header.num_units, "shards") as bar:
        for done in export_dataset(
            zoo,
            config.out,
            license=config.license,
            name=config.name,
            max_shard_mb=config.max_shard_mb,
            max_row_group_mb=config.max_row_group_mb,
        ):
            bar.update(done)
    files = {each: list((config.out / each).glob("*.parquet")) for each in ("index", "weights")}
    return {
        "task": zoo.header.task,
        "runs": zoo.header.num_runs,
        "checkpoints": zoo.header.num_runs * zoo.header.plan.num_checkpoints,
        "files": sum(map(len, files.values())),
        "index_bytes": sum(path.stat().st_size for path in files["index"]),
        "weights_bytes": sum(path.stat().st_size for path in files["weights"]),
    }


def _check(config: ExportConfig) -> None:
    Zoo.open(config.zoo)
    check_writable(config.out)


def _run(config: ExportConfig) -> Outcome:
    return export(config), config.out, 0


COMMAND = Command(
    ExportConfig,
    _run,
    check=_check,
    starts_ray=False,
    resumes=True,
    examples="theta export --zoo runs/zoo --out runs/dataset --license cc-by-4.0",
)
