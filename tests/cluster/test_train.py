"""Training with Ray Train on a real cluster: resumed after any kill as if it had never stopped."""

import dataclasses
import json
import os
import random
import threading
from pathlib import Path

import pytest
import ray
import safetensors.torch
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from cluster import cli, train
from cluster.data import read_runs
from cluster.fitted import FITTED
from cluster.train_config import GeneratorConfig
from generator.artefact import MODEL, WeightGenerator
from generator.card import model_card
from generator.evaluation.evaluate import training_starts

from .conftest import TRAINING, mirror_coordinates
from .processes import descendants, kill, wait_for

pytestmark = pytest.mark.ray


def config(zoo: Zoo, out: Path, **changes: object) -> GeneratorConfig:
    return dataclasses.replace(
        GeneratorConfig(zoo=zoo.path, out=out, held_out=0.25, num_workers=2, training=TRAINING), **changes
    )


def model_of(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / MODEL)


def test_training_writes_an_artefact_that_loads_and_its_loss_falls(trained: Path, digits_zoo: Zoo) -> None:
    generator = WeightGenerator.load(trained)
    assert generator.origin.num_training_runs == 18, "the last quarter of 24 runs is held out"
    curve = train.read_log(trained / train.LOG)
    assert [entry["step"] for entry in curve] == list(range(20, 241, 20))
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    facts = json.loads((trained / "config.json").read_text())["training"]
    assert facts["pairs"] == 240 * 32 * 2
    assert facts["cpu_s"] == 2 * curve[-1]["process_s"]


def test_finished_training_is_not_repeated_and_another_is_refused(trained: Path, digits_zoo: Zoo) -> None:
    before = (trained / MODEL).stat().st_mtime_ns
    (trained / FITTED).touch()  # as if it had been killed when it had just saved its generator
    assert train.fit(config(digits_zoo, trained))["steps"] == 240
    assert (trained / MODEL).stat().st_mtime_ns == before
    assert not (trained / FITTED).exists()
    with pytest.raises(ValueError, match=r"holds another training, with rank 128 \(now 0\)"):
        train.fit(config(digits_zoo, trained, rank=0))


def test_a_hole_is_left_out_of_all_that_is_learned_from(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path
) -> None:
    hole = (1.0, 2.0)
    generator = train.prepare(config(digits_zoo, tmp_path, hole=hole), digits_zoo)
    assert generator.origin.hole == hole
    facts = ("parameters", "training_runs", "held_out_runs", "steps", "pairs", "train_s")
    assert "between 1 and 2 nothing was learned from" in model_card(generator, dict.fromkeys(facts, 1))
    parts = ray.put(generator.to_parts())
    row = {"unit": 0, "group": 0}
    for run in read_runs(row, zoo_path=digits_zoo.path, parts=parts):
        assert not ((run["metric"] > 1.0) & (run["metric"] < 2.0)).any()
        assert run["metric"].max() >= 2.0
    with pytest.raises(ValueError, match="of 144 training checkpoints; expected some"):
        train.fit(config(digits_zoo, tmp_path / "none", hole=(8.0, 9.0)))


def test_prompts_calibrated_after_training_are_met_more_closely(
    trained: Path, measured: Path, digits: Task, digits_zoo: Zoo
) -> None:
    """After 240 steps too little is made of prompts; on the starts calibrated on it shows."""
    torch.testing.assert_close(model_of(measured), model_of(trained), rtol=0, atol=0)
    generator = WeightGenerator.load(measured)
    assert generator.calibration is not None
    theta = training_starts(digits_zoo, 18, 18)
    metric = digits.evaluate(theta, "validation")["loss"]
    low, high = generator.calibration.got[[0, -1]].tolist()
    missed = []
    for each in (generator, dataclasses.replace(generator, calibration=None)):
        errors = []
        for prompt in torch.linspace(low, high, 7).tolist():
            made = each.update(theta, metric, prompt, rng=seeded(0))
            errors.append(float(digits.evaluate(made, "validation")["loss"].mean()) - prompt)
        missed.append(max(map(abs, errors)))
    assert missed[0] < 0.8 * missed[1]  # .62 measured


def test_sigkill_of_a_train_worker_changes_nothing_in_the_result(
    trained: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            train.fit(config(digits_zoo, tmp_path))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=fit)
    thread.start()
    reports = random.randint(3, 7)  # of 12
    wait_for(lambda: len(train.read_log(tmp_path / train.LOG)) >= reports, 120, "no progress")
    workers = descendants(os.getpid(), "ray::RayTrainWorker")
    assert len(workers) == 2
    kill(workers[1])
    before = len((tmp_path / train.LOG).read_text().splitlines()) + 1  # a report may have been under way
    assert len(train.read_log(tmp_path / train.LOG)) < 12, "it was killed in the middle"
    thread.join(180)
    assert not errors
    after = [json.loads(line)["step"] for line in (tmp_path / train.LOG).read_text().splitlines()[before:]]
    assert after[-1] == 240
    assert min(after) > 40, "it went on from a checkpoint, not from the beginning"
    torch.testing.assert_close(model_of(tmp_path), model_of(trained), rtol=0, atol=0)


def test_a_resumed_training_has_the_coordinates_that_it_began_with(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def killed(config: GeneratorConfig, zoo: Zoo, generator: WeightGenerator, *_: object) -> None:
        seen.append(generator)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "make_trainer", killed)
    asked = config(digits_zoo, tmp_path)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.fit(asked)
        mirror_coordinates(monkeypatch)
    (fields, first), (again, second) = (each.to_parts() for each in seen)
    assert again == fields
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    models = [each.model.state_dict() for each in seen]
    torch.testing.assert_close(*models, rtol=0, atol=0)
    (tmp_path / FITTED).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"fitted.safetensors is damaged .* give another --out"):
        train.fit(asked)


def test_hidden_units_give_coordinates_that_are_saved(digits_zoo: Zoo, tmp_path: Path) -> None:
    made = train.prepare(config(digits_zoo, tmp_path, hidden_space=True), digits_zoo)
    assert set(made.coordinates.hidden) == {"fc2"}
    made.save(tmp_path, training={}, card="")
    assert "fc2: by hidden units" in made.coordinates.words
    theta = digits_zoo.read_unit(0).theta[:, -1]
    z = WeightGenerator.load(tmp_path).coordinates.encode(theta)
    torch.testing.assert_close(z, made.coordinates.encode(theta), rtol=0, atol=0)
    plain = train.prepare(config(digits_zoo, tmp_path), digits_zoo)
    assert not torch.allclose(z, plain.coordinates.encode(theta))


def test_what_can_never_run_is_refused_instead_of_waited_for(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"2 row groups of training runs for 3 workers"):
        train.fit(config(digits_zoo, tmp_path / "a", num_workers=3, held_out=0.5))
    with pytest.raises(ValueError, match=r"40 workers need 36 CPUs, the cluster has 3"):
        train.fit(config(digits_zoo, tmp_path / "b", num_workers=40))
    with pytest.raises(ValueError, match=r"2 workers need 2 GPUs"):
        train.fit(config(digits_zoo, tmp_path / "c", use_gpu=True))


@pytest.mark.slow  # Ray Train begins again three times
def test_a_training_that_diverges_is_refused_in_a_line(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ["--width", "32", "--depth", "1", "--steps", "150", "--batch-size", "32", "--num-workers", "1"]
    flags = ["--precision", "float32", "--held-out", "0.25", "--lr", "1e30", "--warmup-steps", "1"]
    where = ["--zoo", str(digits_zoo.path), "--out", str(tmp_path / "out")]
    assert cli.run(["train", *where, *size, *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("theta train:")]
    assert line.startswith("theta train: training diverged near step ")
    assert line.endswith("lower --lr, which is 1e+30")
    assert not (tmp_path / "out" / MODEL).exists()
