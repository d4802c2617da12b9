"""What a stored checkpoint costs: Parquet shards against LMDB, safetensors and npy, in turns.

All begin and end with the same thing, a matrix of runs' checkpoints in memory. Files are in the page cache
when they are read, and nothing waits for a disk: fsync is left out everywhere.
"""

import contextlib
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ..nets import MLP
from ..plan import RunPlan
from ..schema import DTYPES
from ..spec import ParamSpec
from ..tasks.base import SPLITS
from ..train import Rows
from ..zoo import Zoo, ZooHeader
from .clock import cpu_seconds, interleaved, medians

READS = 10
"""Single runs that are read when that is measured."""
METRICS = tuple(f"{split}_{name}" for split in SPLITS for name in ("loss", "error"))


class Store(ABC):
    """A way to keep the checkpoints of runs in a folder."""

    @abstractmethod
    def write(self, rows: Rows) -> None:
        """Store all rows, in the place of what was stored before."""

    @abstractmethod
    def read(self) -> Shaped[Tensor, "R S D"]:
        """All checkpoints."""

    @abstractmethod
    def read_run(self, run: int) -> Shaped[Tensor, "S D"]:
        """Those of the run-th run."""

    @abstractmethod
    def num_bytes(self) -> int:
        """What the checkpoints take on disk."""


class ParquetStore(Store):
    """Our zoo: one shard, row groups of whole runs, page checksums, sha256 of the files."""

    def __init__(self, folder: Path, spec: ParamSpec, rows: Rows, dtype: str):
        num_runs, count = rows.theta.shape[:2]
        header = ZooHeader(
            task="mnist-mlp-v0",
            spec=spec,
            metrics=METRICS,
            prompted=METRICS[0],
            objective="min",
            plan=RunPlan(num_steps=count, num_checkpoints=count),
            num_runs=num_runs,
            stack_size=num_runs,
            dtype=dtype,
        )
        self.zoo, self.dtype = Zoo.create(folder, header), DTYPES[dtype]

    def write(self, rows: Rows) -> None:
        self.zoo.write_unit(0, rows._replace(theta=rows.theta.to(self.dtype)))

    def read(self) -> Tensor:
        return self.zoo.read_unit(0).theta

    def read_run(self, run: int) -> Tensor:
        first = 0
        for group, count in enumerate(self.zoo.row_groups(0)):
            if run < first + count:
                return self.zoo.read_unit(0, [group]).theta[run - first]
            first += count
        raise IndexError(run)

    def num_bytes(self) -> int:
        return self.zoo.checkpoints_path(0).stat().st_size


class LmdbStore(Store):
    """One pickled state_dict per checkpoint, a transaction per run."""

    def __init__(self, folder: Path, spec: ParamSpec, shape: tuple[int, ...]):
        import lmdb  # noqa: PLC0415  an extra

        self.spec, self.shape, self.folder = spec, shape, folder
        self.environment = lmdb.open(str(folder), map_size=2**34, sync=False, metasync=False)

    def write(self, rows: Rows) -> None:
        for run, theta in enumerate(rows.theta):
            with self.environment.begin(write=True) as transaction:
                for i, row in enumerate(theta):
                    transaction.put(self._key(run, i), pickle.dumps(_state(self.spec, row)))

    def read(self) -> Tensor:
        with self.environment.begin() as transaction:
            rows = [self._theta(value) for _, value in transaction.cursor()]
        return torch.stack(rows).view(self.shape)

    def read_run(self, run: int) -> Tensor:
        with self.environment.begin() as transaction:
            values = [transaction.get(self._key(run, i)) or b"" for i in range(self.shape[1])]
        return torch.stack([self._theta(value) for value in values])

    def num_bytes(self) -> int:
        info, page = self.environment.info(), self.environment.stat()["psize"]
        return (info["last_pgno"] + 1) * page

    def _key(self, run: int, i: int) -> bytes:
        return f"{run:06d}/{i:06d}".encode()

    def _theta(self, value: bytes) -> Tensor:
        return torch.cat([each.flatten() for each in pickle.loads(value).values()])


class SafetensorsStore(Store):
    """One safetensors file per checkpoint."""

    def __init__(self, folder: Path, spec: ParamSpec, shape: tuple[int, ...]):
        self.folder, self.spec, self.shape = folder, spec, shape

    def write(self, rows: Rows) -> None:
        for run, theta in enumerate(rows.theta):
            for i, row in enumerate(theta):
                safetensors.torch.save_file(_state(self.spec, row), self._path(run, i))

    def read(self) -> Tensor:
        return torch.stack([self.read_run(run) for run in range(self.shape[0])])

    def read_run(self, run: int) -> Tensor:
        states = (safetensors.torch.load_file(self._path(run, i)) for i in range(self.shape[1]))
        return torch.stack([torch.cat([s[key].flatten() for key in self.spec.names]) for s in states])

    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def _path(self, run: int, i: int) -> Path:
        return self.folder / f"{run:06d}-{i:06d}.safetensors"


class NpyStore(Store):
    """All checkpoints as one array: nothing is cheaper, and nothing can be added, checked or found in it."""

    def __init__(self, folder: Path):
        self.path = folder / "theta.npy"

    def write(self, rows: Rows) -> None:
        np.save(self.path, rows.theta.numpy())

    def read(self) -> Tensor:
        return torch.from_numpy(np.load(self.path))

    def read_run(self, run: int) -> Tensor:
        return torch.from_numpy(np.load(self.path, mmap_mode="r")[run].copy())

    def num_bytes(self) -> int:
        return self.path.stat().st_size


def trajectories(
    spec: ParamSpec, num_runs: int, num_checkpoints: int, *, rng: torch.Generator
) -> Float[Tensor, "R S D"]:
    """Random walks from an initialisation: as little to compress as in training, whose low bits are noise."""
    start = torch.randn(num_runs, 1, spec.D, generator=rng) * 0.02
    return start + 1e-3 * torch.randn(num_runs, num_checkpoints, spec.D, generator=rng).cumsum(1)


def measure_storage(
    *, repeats: int, folder: Path, num_runs: int = 12, num_checkpoints: int = 200
) -> dict[str, Any]:
    """Write and read the checkpoints of MNIST networks in all formats, in turns, in a temporary folder.

    Raises:
        ValueError: a format does not give back what was stored.
    """
    rng = torch.Generator().manual_seed(0)
    spec = ParamSpec.of_module(MLP((784, 10, 10)))
    theta = trajectories(spec, num_runs, num_checkpoints, rng=rng)
    rows = Rows(
        torch.arange(num_runs),
        torch.arange(num_checkpoints).expand(num_runs, -1),
        theta,
        {name: torch.rand(num_runs, num_checkpoints, generator=rng) for name in METRICS},
    )
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        stores = dict(_stores(Path(temporary), spec, rows))
        for name, store in stores.items():
            store.write(rows)
            _check(name, store, theta)
        sizes = {name: store.num_bytes() / (num_runs * num_checkpoints) for name, store in stores.items()}
        probes = {
            (name, kind): probe
            for name, store in stores.items()
            for kind, probe in _probes(store, rows, rng).items()
        }
        samples = interleaved(probes, repeats)
    return figures(rows, sizes, samples, spec) | {"without": [] if "lmdb_pickle" in stores else ["lmdb"]}


def figures(
    rows: Rows, sizes: Mapping[str, float], samples: Mapping[tuple[str, str], list[float]], spec: ParamSpec
) -> dict[str, Any]:
    """What the samples say, by their medians; ratios are LMDB's CPU seconds by a format's."""
    found, (num_runs, per_run) = medians(samples), rows.steps.shape
    total = num_runs * per_run
    formats: dict[str, dict[str, float]] = {}
    for name, size in sizes.items():
        megabytes = total * spec.D * (2 if name == "parquet_bfloat16" else 4) / 1e6
        formats[name] = {
            "write_mb_per_cpu_s": megabytes / found[name, "write_s"],
            "scan_mb_per_cpu_s": megabytes / found[name, "scan_s"],
            "write_us_per_checkpoint": found[name, "write_s"] / total * 1e6,
            "scan_us_per_checkpoint": found[name, "scan_s"] / total * 1e6,
            "read_run_ms": found[name, "read_run_s"] * 1e3,
            "bytes_per_checkpoint": size,
        }
        if "lmdb_pickle" in sizes and name != "lmdb_pickle":
            for kind in ("write", "scan", "read_run"):
                ratio = found["lmdb_pickle", f"{kind}_s"] / found[name, f"{kind}_s"]
                formats[name][f"{kind}_times_lmdb"] = ratio
    return {
        "checkpoints": total,
        "parameters": spec.D,
        "checkpoints_per_run": per_run,
        "formats": formats,
        "samples": {f"{name} {kind}": values for (name, kind), values in samples.items()},
    }


def _stores(folder: Path, spec: ParamSpec, rows: Rows) -> Iterator[tuple[str, Store]]:
    shape = tuple(rows.theta.shape)

    def new(name: str) -> Path:
        path = folder / name
        path.mkdir()
        return path

    for dtype in ("float32", "bfloat16"):
        yield f"parquet_{dtype}", ParquetStore(new(f"parquet_{dtype}"), spec, rows, dtype)
    with contextlib.suppress(ImportError):
        yield "lmdb_pickle", LmdbStore(new("lmdb"), spec, shape)
    yield "safetensors_files", SafetensorsStore(new("safetensors"), spec, shape)
    yield "npy", NpyStore(new("npy"))


def _probes(store: Store, rows: Rows, rng: torch.Generator) -> dict[str, Callable[[], float]]:
    some = torch.randint(len(rows.run_ids), (READS,), generator=rng).tolist()
    return {
        "write_s": lambda: cpu_seconds(lambda: store.write(rows)),
        "scan_s": lambda: cpu_seconds(store.read),
        "read_run_s": lambda: cpu_seconds(lambda: [store.read_run(run) for run in some]) / READS,
    }


def _check(name: str, store: Store, theta: Tensor) -> None:
    whole, last = store.read(), store.read_run(len(theta) - 1)
    expected = theta.to(whole.dtype)
    if not (torch.equal(whole, expected) and torch.equal(last, expected[-1])):
        raise ValueError(f"{name} does not give back the checkpoints that were stored")


def _state(spec: ParamSpec, theta: Float[Tensor, " D"]) -> dict[str, Tensor]:
    """A state_dict with memory of its own, as it leaves a module: a view would drag its whole stack along."""
    return {key: value.clone() for key, value in spec.unflatten(theta).items()}
