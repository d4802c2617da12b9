"""The training log, of which a bar reads the end, what trainings say, and the batches runs are read in."""

import json
from pathlib import Path

import pytest
import torch

from cluster.calibration import in_words
from cluster.data import runs_per_batch
from cluster.training_log import TAIL_BYTES, last_entry, percent_done, read_log, warn_if_warming_up
from generator.conditioning import Calibration


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


def test_a_training_says_what_it_does_before_its_first_report(tmp_path: Path) -> None:
    log = tmp_path / "training.jsonl"
    log.touch()
    done, note = percent_done(log)
    assert done == 0
    assert "workers start" in note
    log.write_text('{"step": 20, "loss": 0.5, "pairs_per_s": 812.4, "progress": 0.25}\n')
    assert percent_done(log) == (25, "loss 0.500, 812 pairs/s per worker")


@pytest.mark.parametrize(("steps", "warns"), [(60, True), (100, True), (101, False), (140, False)])
def test_only_of_what_ended_while_warming_up_it_is_said_that_little_was_learned(
    steps: int, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_if_warming_up(steps, 100)
    assert ("hardly learned anything" in capsys.readouterr().err) == warns


def test_a_calibration_is_told_in_words_that_stand_alone() -> None:
    asked, got = torch.tensor([0.03, 1.0, 2.4]), torch.tensor([0.1392, 1.1, 2.325])
    text = in_words(Calibration(asked, got), "loss")
    assert "asked for a validation loss from 0.03 to 2.4, networks reach 0.1392 to 2.325 in the mean" in text
    assert text.endswith("their updates are as long as predicted")
    assert in_words(Calibration(asked, got, 1.5), "loss").endswith("are 1.5 times as long as predicted")
    assert "prompts as they are" in in_words(Calibration(asked, asked), "loss")
    assert "not calibrated" in in_words(None, "loss")
