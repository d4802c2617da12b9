"""What a stored checkpoint costs in our format and in others."""

from dataclasses import dataclass
from typing import Any

from ckpt_factory.bench import measure_storage

from ..progress import say
from ..tables import print_table
from .benchmark import RepeatedConfig, benchmark


@dataclass(frozen=True, kw_only=True)
class StorageBenchConfig(RepeatedConfig):
    """Writing and reading checkpoints as Parquet shards, LMDB, safetensors and npy."""


def bench_storage(config: StorageBenchConfig) -> dict[str, Any]:
    """Measure the formats."""
    found = measure_storage(repeats=config.repeats, folder=config.out)
    for name in found["without"]:
        say(f"{name} is not installed and left out; `pip install '.[dev]'` has it")
    kinds = {
        "write MB/s": "write_mb_per_cpu_s",
        "scan MB/s": "scan_mb_per_cpu_s",
        "run ms": "read_run_ms",
        "bytes": "bytes_per_checkpoint",
        "write x": "write_times_lmdb",
        "scan x": "scan_times_lmdb",
    }
    print_table(
        {
            name: {title: each.get(kind) for title, kind in kinds.items()}
            for name, each in found["formats"].items()
        },
        f"storage: {found['checkpoints']:,} checkpoints of {found['parameters']:,} parameters",
        "MB per CPU second, of parameters in the format's precision; ms to read one run of "
        f"{found['checkpoints_per_run']} checkpoints; bytes a checkpoint; x: times as fast as LMDB. "
        "Page cache, no fsync.",
    )
    headline = {f"{name} {kind}": each[kind] for name, each in found["formats"].items() for kind in each}
    return {key: value for key, value in headline.items() if "mb_per" in key or "bytes" in key} | found


COMMAND = benchmark(
    StorageBenchConfig,
    bench_storage,
    examples="theta bench storage\ntheta bench storage --repeats 1 --out runs/bench-storage",
)
