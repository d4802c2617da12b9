"""Sweeps with Ray Tune on a real cluster: trials side by side, judged alike, resumed after any kill."""

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import safetensors.torch
import torch

from ckpt_factory.zoo import Zoo
from cluster.sweeps.trials import RESULT, name_of, trial_config
from cluster.sweeps.tune import check, judge_of, make_tuner, sweep
from cluster.sweeps.tune_config import PRESETS, TuneConfig
from cluster.training_log import LOG, read_log
from generator.artefact import MODEL, WeightGenerator
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig

from .processes import descendants, kill, wait_for

TRAINING = TrainConfig(
    model=DiTConfig(base_width=32), steps=40, batch_size=32, warmup_steps=5, precision="float32"
)

PATIENCE_S = 1800.0
"""How long to wait for what comes in half a minute: on a machine that does much else, for long."""


def config(zoo: Zoo, out: Path, **changes: object) -> TuneConfig:
    small = {"held_out": 0.25, "num_reports": 4, "held_out_pairs": 64, "num_networks": 3, "num_prompts": 3}
    small |= {"sampling_steps": 1, "sizes": ("0.1M",), "training": TRAINING}
    return TuneConfig(zoo=zoo.path, out=out, **small | changes)


def rates(zoo: Zoo, out: Path, **changes: object) -> TuneConfig:
    return config(zoo, out, **{"learning_rates": (1e-3, 1e-2), "shares": (0.5, 1.0)} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "optuna"}, "num_trials is None with search 'optuna'"),
        ({"num_trials": 3}, "num_trials is 3 with search 'grid'"),
        ({"search": "optuna", "num_trials": 3}, r"learning_rates are \(\) with search 'optuna'"),
        ({"search": "optuna", "num_trials": 3, "num_seeds": 2}, "Optuna repeats nothing"),
        ({"shares": (0.0, 1.0)}, r"shares are \(0.0, 1.0\); expected some between 0 and 1"),
        ({"shares": ()}, r"shares are \(\)"),
        ({"learning_rates": (0.1, 0.1)}, "expected each once"),
        ({"learning_rates": (-0.1,)}, "expected positive, finite numbers"),
        ({"learning_rates": (math.inf,)}, r"\(inf,\); expected positive, finite numbers"),
        ({"learning_rates": (math.nan,)}, r"\(nan,\); expected positive, finite numbers"),
        ({"num_reports": 0}, "num_reports is 0"),
        ({"scheduler": "asha", "num_reports": 2}, "num_reports is 2 with scheduler 'asha'"),
        ({"calibrate": 8}, "calibrate is 8; trials are judged without"),
        ({"moments": 8}, "moments is 8; trials are judged without"),
        ({"sizes": ("1M",), "training": TrainConfig(model=DiTConfig(depth=2))}, "width, depth and heads"),
        ({"learning_rates": (1e-3,), "training": TrainConfig(lr=1e-2)}, "lr 0.01 with learning_rates"),
        ({"training": TrainConfig(report_every=7)}, r"report_every and checkpoint_every \(7, 1000\) with"),
        ({"held_out": 2.0}, "held_out is 2.0"),
    ],
)
def test_impossible_sweeps_say_what_is_expected(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneConfig(**changes)


def test_a_sweep_is_every_combination_of_what_is_swept() -> None:
    grid = TuneConfig(sizes=("0.1M", "1M"), learning_rates=(1e-3, 1e-2), shares=(0.1, 0.5, 1.0), num_seeds=2)
    assert grid.total == 24
    assert grid.axes["tokens"] == ("units",)
    assert grid.axes["seed"] == (0, 1)
    assert TuneConfig().total == 1
    assert all(make().total > 1 for make in PRESETS.values())


def test_trials_are_told_apart_by_their_folders_and_see_their_share_of_the_same_runs() -> None:
    base = TuneConfig(held_out=0.1, sizes=("0.1M", "1M")).base()
    points = [
        {"size": size, "tokens": tokens, "lr": lr, "share": share, "seed": seed}
        for size in ("0.1M", "1M")
        for tokens in ("units", "chunks")
        for lr in (1e-3, 1.0000001e-3)
        for share in (0.5, 1)
        for seed in (0, 1)
    ]
    assert len({name_of(point) for point in points}) == len(points)
    half, whole = (trial_config(base, point | {"share": share}) for share in (0.5, 1) for point in points[:1])
    assert whole.held_out == 0.1
    assert half.held_out == pytest.approx(0.55)
    assert half.training.model == DiTConfig(width=32, heads=1, base_width=128)
    assert half.training.report_every == half.training.checkpoint_every == 400


def test_what_no_trial_could_do_is_refused_before_ray_is_started(digits_zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a share of 0.01 of zoo .* is not one run; give larger --shares"):
        check(config(digits_zoo, tmp_path, shares=(0.01, 1.0)))
    with pytest.raises(ValueError, match="no zoo at"):
        check(dataclasses.replace(config(digits_zoo, tmp_path), zoo=tmp_path / "none"))


@pytest.fixture(scope="session")
def swept(
    ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuneConfig, dict]:
    """Two shares of the data, without interruption. Read only."""
    done = config(digits_zoo, tmp_path_factory.mktemp("sweeps") / "two", shares=(0.5, 1.0))
    result, status = sweep(done)
    assert status == 0
    return done, result


@pytest.mark.ray
def test_a_sweep_ends_with_a_table_plots_and_a_generator_for_every_trial(
    swept: tuple[TuneConfig, dict],
) -> None:
    done, result = swept
    assert (result["trials_finished"], result["trials_stopped"], result["trials_failed"]) == (2, 0, 0)
    assert [(row["share"], row["training_runs"]) for row in result["trials"]] == [(0.5, 9), (1.0, 18)]
    for row in result["trials"]:
        assert row["steps"] == 40
        assert row["cpu_s"] > 0
        assert row["width"] == 32
        assert 0 < row["held_out_loss"] < 3
        assert row["alignment"] <= 1
        assert [entry["step"] for entry in row["curve"]] == [10, 20, 30, 40]
        generator = WeightGenerator.load(done.out / "trials" / row["name"])
        assert generator.origin.num_training_runs == row["training_runs"]
        assert sum(p.numel() for p in generator.model.parameters()) == row["parameters"]
    best = min(result["trials"], key=lambda row: row["held_out_loss"])
    assert result["best_trial"] == best["name"]
    with (done.out / "trials.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in result["trials"]]
    for name in ("scaling.png", "tune.html"):
        assert (done.out / name).stat().st_size > 5000


@pytest.mark.ray
def test_a_finished_sweep_is_not_repeated_and_another_is_refused(
    swept: tuple[TuneConfig, dict], digits_zoo: Zoo
) -> None:
    done, result = swept
    models = {path: path.stat().st_mtime_ns for path in done.out.glob(f"trials/*/{MODEL}")}
    again, status = sweep(done)
    assert status == 0
    assert again["trials"] == result["trials"]
    assert {path: path.stat().st_mtime_ns for path in models} == models
    with pytest.raises(ValueError, match=r"holds another sweep, with num_seeds 1 \(now 2\)"):
        sweep(dataclasses.replace(done, num_seeds=2))


def models(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.parent.name: safetensors.torch.load_file(path) for path in out.glob(f"trials/*/{MODEL}")}


@pytest.fixture(scope="session")
def whole(
    ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TuneConfig, dict]:
    """Two rates on two shares of the data, four trials, without interruption. Read only."""
    done = rates(digits_zoo, tmp_path_factory.mktemp("sweeps") / "whole")
    result, status = sweep(done)
    assert status == 0
    return done, result


def begin(digits_zoo: Zoo, out: Path) -> subprocess.Popen[str]:
    """The sweep of the fixture as a `theta` of its own that joins this session's cluster."""
    words = "tune --held-out 0.25 --num-reports 4 --held-out-pairs 64 --num-networks 3 --num-prompts 3 "
    words += "--sampling-steps 1 --sizes 0.1M --base-width 32 --steps 40 --batch-size 32 --warmup-steps 5 "
    words += "--precision float32 --learning-rates 1e-3 1e-2 --shares 0.5 1.0"
    paths = ("--zoo", digits_zoo.path, "--out", out, "--address", ray.get_runtime_context().gcs_address)
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", *words.split(), *paths],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def logs(out: Path) -> list[int]:
    """How many reports each trial has made."""
    return [len(read_log(path)) for path in out.glob(f"trials/*/{LOG}")]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        lambda out: sum(logs(out)) >= 2,
        lambda out: any(out.glob(f"trials/*/{RESULT}")),
    ],
    ids=["in the middle of the first trials", "after the first trial"],
)
def test_a_sweep_goes_on_after_sigkill_of_its_driver_as_if_it_had_not_been(
    whole: tuple[TuneConfig, dict], digits_zoo: Zoo, tmp_path: Path, moment: Callable[[Path], bool]
) -> None:
    done, result = whole
    process = begin(digits_zoo, tmp_path)
    try:
        wait_for(lambda: process.poll() is not None or moment(tmp_path), PATIENCE_S, "no progress")
        assert process.poll() is None, process.communicate()[0]
    finally:
        kill(process.pid)
        process.communicate()
    wait_for(lambda: not descendants(os.getpid(), "ray::RayTrainWorker"), PATIENCE_S, "trials outlived it")
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"trials/*/{RESULT}")}
    assert len(finished) < 4, "it was killed in the middle"
    resumed, status = sweep(dataclasses.replace(done, out=tmp_path))
    assert status == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what was done is not done again"
    same = ("name", "status", "steps", "held_out_loss", "alignment", "one_update_test_loss")
    for row, first in zip(resumed["trials"], result["trials"], strict=True):
        assert {key: row[key] for key in same} == {key: first[key] for key in same}
    torch.testing.assert_close(models(tmp_path), models(done.out), rtol=0, atol=0)


@pytest.mark.ray
def test_a_sweep_whose_folder_was_moved_gives_back_what_its_trials_hold_there(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path
) -> None:
    asked = rates(digits_zoo, tmp_path / "before")
    make_tuner(asked, judge_of(asked, digits_zoo))
    (tmp_path / "before").rename(tmp_path / "after")
    moved = dataclasses.replace(asked, out=tmp_path / "after")
    tuner = make_tuner(moved, judge_of(moved, digits_zoo))
    (callback,) = tuner._local_tuner.get_run_config().callbacks  # pyright: ignore
    drawn = {name: values[0] for name, values in moved.axes.items()}
    assert callback.folder_of(drawn).is_relative_to(tmp_path / "after")


@pytest.mark.ray
@pytest.mark.slow
def test_asha_stops_rates_that_are_behind_and_finishes_the_best(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path
) -> None:
    """More are stopped than there are CPUs: each leaves its own to the next."""
    lrs = (1e-2, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11)
    longer = dataclasses.replace(TRAINING, steps=200)
    asked = config(
        digits_zoo, tmp_path, learning_rates=lrs, scheduler="asha", num_reports=10, training=longer
    )
    result, status = sweep(asked)
    assert status == 0
    assert result["trials_stopped"] > ray_cluster
    assert result["trials_finished"] + result["trials_stopped"] == 7
    assert result["best_trial"] == "0.1M-units-lr0.01-share1.0-seed0"
    stopped = [row for row in result["trials"] if row["status"] == "stopped"]
    assert all(0 < row["steps"] < 200 and row["lr"] < 1e-2 for row in stopped)


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_draws_rates_between_the_ends(ray_cluster: int, digits_zoo: Zoo, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    asked = rates(digits_zoo, tmp_path, shares=(1.0,), search="optuna", num_trials=3)
    result, status = sweep(asked)
    assert status == 0
    drawn = [row["lr"] for row in result["trials"]]
    assert len(set(drawn)) == 3
    assert all(1e-3 <= lr <= 1e-2 for lr in drawn)
    assert json.loads((tmp_path / "request.json").read_text())["search"] == "optuna"
