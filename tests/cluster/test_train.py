"""Training with Ray Train on a real cluster: resumed after any kill as if it had never stopped."""

import dataclasses
import json
import os
import random
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckpt_factory.zoo import Zoo
from cluster import train
from cluster.train import GeneratorConfig
from generator.artefact import MODEL, WeightGenerator
from generator.dit import DiTConfig
from generator.train import TrainConfig

from .processes import descendants, kill, wait_for

pytestmark = pytest.mark.ray

TRAINING = TrainConfig(
    model=DiTConfig(width=32, depth=1),
    steps=240,
    batch_size=32,
    warmup_steps=10,
    report_every=10,
    checkpoint_every=40,
    precision="float32",
)


def config(zoo: Zoo, out: Path, **changes: object) -> GeneratorConfig:
    return dataclasses.replace(
        GeneratorConfig(zoo=zoo.path, out=out, held_out=0.25, num_workers=2, training=TRAINING), **changes
    )


def model_of(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / MODEL)


@pytest.fixture(scope="module")
def uninterrupted(ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generators") / "whole"
    train.fit(config(digits_zoo, out))
    return out


def test_training_writes_an_artefact_that_loads_and_its_loss_falls(
    uninterrupted: Path, digits_zoo: Zoo
) -> None:
    generator = WeightGenerator.load(uninterrupted)
    assert generator.origin.num_training_runs == 18, "the last quarter of 24 runs is held out"
    curve = train.read_log(uninterrupted / train.LOG)
    assert [entry["step"] for entry in curve] == list(range(10, 241, 10))
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    assert json.loads((uninterrupted / "config.json").read_text())["training"]["pairs"] == 240 * 32 * 2


def test_finished_training_is_not_repeated_and_another_is_refused(
    uninterrupted: Path, digits_zoo: Zoo
) -> None:
    before = (uninterrupted / MODEL).stat().st_mtime_ns
    assert train.fit(config(digits_zoo, uninterrupted))["steps"] == 240
    assert (uninterrupted / MODEL).stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds another training, with rank 128 \(now 0\)"):
        train.fit(config(digits_zoo, uninterrupted, rank=0))


def test_sigkill_of_a_train_worker_changes_nothing_in_the_result(
    uninterrupted: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            train.fit(config(digits_zoo, tmp_path))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    reports = random.randint(6, 14)  # of 24
    wait_for(lambda: len(train.read_log(tmp_path / train.LOG)) >= reports, 120, "no progress")
    workers = descendants(os.getpid(), "ray::RayTrainWorker")
    assert len(workers) == 2
    kill(workers[1])
    before = len((tmp_path / train.LOG).read_text().splitlines()) + 1  # a report may have been under way
    assert len(train.read_log(tmp_path / train.LOG)) < 24, "it was killed in the middle"
    thread.join(180)
    assert not errors
    after = [json.loads(line)["step"] for line in (tmp_path / train.LOG).read_text().splitlines()[before:]]
    assert after[-1] == 240
    assert min(after) > 40, "it went on from a checkpoint, not from the beginning"
    torch.testing.assert_close(model_of(tmp_path), model_of(uninterrupted), rtol=0, atol=0)


def test_zoo_without_enough_data_for_the_workers_is_one_clear_error(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="row groups of training runs for 40 workers"):
        train.fit(config(digits_zoo, tmp_path, num_workers=40))
