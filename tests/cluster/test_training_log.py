"""The training log, of which a bar reads the end, and the batches that runs are read in."""

import json
from pathlib import Path

import pytest

from cluster.data import runs_per_batch
from cluster.training_log import TAIL_BYTES, last_entry, read_log


def test_the_end_of_a_log_says_what_was_reported_last(tmp_path: Path) -> None:
    log = tmp_path / "training.jsonl"
    assert last_entry(log) is None
    log.touch()
    assert last_entry(log) is None
    log.write_text('{"step": 1, "lo')
    assert last_entry(log) is None, "torn"
    entries = [{"step": step, "loss": 1 / step, "progress": step / 1000} for step in range(1, 1001)]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert log.stat().st_size > 2 * TAIL_BYTES
    assert last_entry(log) == read_log(log)[-1] == entries[-1]
    with log.open("a") as file:
        file.write('{"step": 1001, "lo')
    assert last_entry(log) == entries[-1]
    with log.open("r+b") as file:  # the rest of it is not looked at
        file.write(b"\xff" * (log.stat().st_size - TAIL_BYTES))
    assert last_entry(log) == entries[-1]


@pytest.mark.parametrize(("run_bytes", "runs"), [(1, 64), (2**19, 64), (2**20, 32), (2**25, 1), (2**30, 1)])
def test_a_batch_is_of_64_runs_or_of_32_mib(run_bytes: int, runs: int) -> None:
    assert runs_per_batch(run_bytes) == runs
