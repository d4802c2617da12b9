"""Ray Data feeds the training: row groups of whole runs, encoded into coordinates on the way."""

import itertools
import queue
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.data import DataIterator, Dataset, TaskPoolStrategy

from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator, coordinates_of_parts
from generator.origin import Origin
from generator.training.pairs import Runs
from generator.training.reading import encoded, metrics_of

BATCH_RUNS, BATCH_BYTES = 64, 2**25
"""A batch of runs is of at most so many, and of no more bytes unless a single run has more."""


class RowGroup(NamedTuple):
    """Whole runs that lie together in a shard."""

    unit: int
    group: int
    num_runs: int
    """Training runs among them."""


def partition(zoo: Zoo, num_training_runs: int, *, num_workers: int, seed: int) -> list[list[RowGroup]]:
    """The row groups that hold training runs, shuffled and dealt to the workers.

    The parts are fixed here rather than by whoever asks first, so that a training that is killed and started
    again sees the same data in the same order.

    Raises:
        ValueError: fewer row groups than workers.
    """
    groups = []
    for unit in zoo.finished_units():
        run_id = zoo.header.run_ids(unit)[0]
        for group, num_runs in enumerate(zoo.row_groups(unit)):
            if run_id < num_training_runs:
                groups.append(RowGroup(unit, group, min(num_runs, num_training_runs - run_id)))
            run_id += num_runs
    if len(groups) < num_workers:
        raise ValueError(
            f"zoo {zoo.path} has {len(groups)} row groups of training runs for {num_workers} workers; "
            "make a larger zoo, or ask for fewer --num-workers"
        )
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    return [[groups[i] for i in order[rank::num_workers]] for rank in range(num_workers)]


def training_datasets(
    zoo: Zoo, generator: WeightGenerator, parts: list[list[RowGroup]]
) -> dict[str, Dataset]:
    """A dataset of encoded runs for each worker, "train_0", ...: rows {z (S, Z), metric (S, M)}."""
    read = partial(read_runs, zoo_path=zoo.path.absolute(), parts=ray.put(generator.to_parts()))
    return {
        # One reading process for each worker: every further one would pay for its own imports first.
        name_of(rank): ray.data.from_items([group._asdict() for group in part]).flat_map(
            read, num_cpus=0.1, compute=TaskPoolStrategy(size=1)
        )
        for rank, part in enumerate(parts)
    }


def name_of(rank: int) -> str:
    return f"train_{rank}"


def read_runs(row: dict[str, Any], *, zoo_path: Path, parts: Any) -> list[dict[str, Any]]:
    """The training runs of one row group, encoded. Runs in a Ray Data worker."""
    torch.set_num_threads(1)
    fields, tensors = ray.get(parts)
    coordinates = coordinates_of_parts(fields, tensors)
    zoo = Zoo.open(zoo_path)
    rows = zoo.read_unit(row["unit"], [row["group"]])
    origin = Origin.from_fields(fields["origin"])
    kept = rows.run_ids < origin.num_training_runs
    metric = metrics_of(rows, origin.columns)[kept]
    runs = encoded(coordinates, rows.theta[kept], metric, origin.hole)
    return [{"z": z.numpy(), "metric": metric.numpy()} for z, metric in zip(*runs, strict=True)]


def runs_per_batch(run_bytes: int) -> int:
    return max(1, min(BATCH_RUNS, BATCH_BYTES // run_bytes))


def stream_runs(
    shard: DataIterator | None, *, batch_size: int, epochs: int | None, prefetch: int = 4
) -> Iterator[Runs]:
    """The runs of a worker's dataset, epoch after epoch (None: endlessly), `batch_size` at a time, read ahead
    by a thread."""
    assert shard is not None, "train_loop runs under Ray Train, with its datasets"
    ahead: queue.Queue[Runs | BaseException] = queue.Queue(prefetch)

    def read() -> None:
        try:
            for _ in itertools.count() if epochs is None else range(epochs):
                for batch in shard.iter_batches(batch_size=batch_size, batch_format="numpy"):
                    ahead.put(Runs(torch.tensor(batch["z"]), torch.tensor(batch["metric"])))
        except BaseException as error:  # handed to the training loop, which raises it
            ahead.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        runs = ahead.get()
        if isinstance(runs, BaseException):
            raise runs
        yield runs
