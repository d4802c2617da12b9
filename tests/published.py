"""Writes checkpoint sets in the published format, as the published code does, to read them back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

Checkpoints = Mapping[str, tuple[np.ndarray, dict[str, float]]]
"""Key without the run ("ep000_it00000.pt") -> (flat vector, metrics)."""


def write_run(folder: Path, runs: Mapping[str, Checkpoints], arch: Sequence[int]) -> Path:
    """One run directory; a fused one if there are several runs."""
    directory = folder / "_".join(runs)
    directory.mkdir(parents=True)
    documents: dict[str, Any] = {}
    with lmdb.open(str(directory), map_size=2**28) as environment:
        for run, checkpoints in runs.items():
            for key, (theta, _) in checkpoints.items():
                for suffix, value in (("", theta), ("_arch", np.array(arch))):
                    with environment.begin(write=True) as transaction:  # one each, as published
                        transaction.put(f"{run}/{key}{suffix}".encode(), value.astype(np.float32).tobytes())
            entries = {f"{run}/{key}": metrics for key, (_, metrics) in checkpoints.items()}
            values = [theta for theta, _ in checkpoints.values()]
            metadata = {
                "max_parameter_val": float(max(theta.max() for theta in values)),
                "min_parameter_val": float(min(theta.min() for theta in values)),
            }
            documents[run] = {"checkpoints": entries, "metadata": metadata}
    document = documents if len(runs) > 1 else next(iter(documents.values()))
    (directory / "runs.json").write_text(json.dumps(document, indent=2, sort_keys=True))
    (directory / "DONE.txt").touch()
    return directory


def supervised_run(
    seed: int, *, size: int, moments: Sequence[tuple[int, int]] = ((0, 0), (0, 2), (0, 5), (1, 3), (1, 5))
) -> Checkpoints:
    """Random vectors with metrics, at these (epoch, iteration)."""
    rng = np.random.default_rng(seed)
    return {
        f"ep{epoch:03d}_it{it:05d}.pt": (
            rng.normal(size=size).astype(np.float32),
            {
                "avg_test_err": float(rng.uniform(0, 100)),
                "avg_test_loss": float(rng.uniform(0, 2)),
                "avg_train_err": float(rng.uniform(0, 100)),
                "avg_train_loss": float(rng.uniform(0, 2)),
            },
        )
        for epoch, it in moments
    }
