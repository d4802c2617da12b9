"""The factory on a real Ray cluster: the same zoo whatever happens."""

import dataclasses
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray.data

from ckpt_factory import RunPlan
from ckpt_factory.zoo import Zoo
from cluster.cli import run
from cluster.factory import CheckpointFactory, ZooResult
from cluster.factory_config import FactoryConfig

from .broken_tasks import KILLED_ONCE
from .processes import descendants, kill, wait_for, zoo_bytes

pytestmark = pytest.mark.ray

PLAN = RunPlan(num_steps=300, num_checkpoints=10)
BROKEN = FactoryConfig(num_runs=10, stack_size=4, plan=RunPlan(num_steps=4, num_checkpoints=3))


def digits_zoo(out: Path) -> FactoryConfig:
    return FactoryConfig(out=out, num_runs=384, stack_size=32, plan=PLAN)


@pytest.fixture(scope="module")
def whole(ray_cluster: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo made by one actor without interruption; tests copy it or compare with it."""
    out = tmp_path_factory.mktemp("zoos") / "one-actor"
    result = CheckpointFactory(digits_zoo(out), num_actors=1).fit()
    assert result.error is None
    assert result.metrics["runs"] == 384
    return out


def test_three_actors_give_the_same_zoo_as_one(whole: Path, tmp_path: Path) -> None:
    CheckpointFactory(digits_zoo(tmp_path), num_actors=3).fit()
    assert zoo_bytes(tmp_path) == zoo_bytes(whole)


def test_zoo_is_byte_identical_after_sigkill_of_an_actor_mid_stack(whole: Path, tmp_path: Path) -> None:
    results: list[ZooResult] = []
    factory = CheckpointFactory(digits_zoo(tmp_path), num_actors=2)
    thread = threading.Thread(target=lambda: results.append(factory.fit()))
    thread.start()
    wait_for(lambda: list((tmp_path / "sums").glob("*.sha256")), 60, "no first shard")
    time.sleep(random.uniform(0, 1))
    victims = descendants(os.getpid(), "ray::FactoryActor")
    assert victims, "the actors are processes below this one"
    kill(victims[0])
    thread.join(120)
    assert results
    assert results[0].error is None
    assert results[0].metrics["runs_made_now"] == 384
    assert zoo_bytes(tmp_path) == zoo_bytes(whole)


def test_same_config_resumes_and_makes_only_what_is_missing(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    zoo = Zoo.open(tmp_path)
    for path in (zoo.sums_path(3), zoo.checkpoints_path(5), zoo.sums_path(5)):
        path.unlink()
    result = CheckpointFactory(digits_zoo(tmp_path), num_actors=1).fit()
    assert result.metrics["runs_made_now"] == 64
    assert zoo_bytes(tmp_path) == zoo_bytes(whole)


def test_repair_makes_damaged_shards_anew(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shard = Zoo.open(tmp_path).checkpoints_path(7)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = CheckpointFactory(dataclasses.replace(digits_zoo(tmp_path), repair=True), num_actors=1).fit()
    assert result.metrics["runs_made_now"] == 32
    assert zoo_bytes(tmp_path) == zoo_bytes(whole)


@pytest.mark.parametrize("task", ["raises-v0", "kills-v0"])
def test_unit_that_keeps_failing_is_set_aside_and_named_and_the_rest_is_finished(
    ray_cluster: int, task: str, tmp_path: Path
) -> None:
    config = dataclasses.replace(BROKEN, task=f"tests.cluster.broken_tasks:{task}", out=tmp_path)
    result = CheckpointFactory(config, num_actors=1).fit()
    assert result.metrics["units_failed"] == [2]
    assert result.error is not None
    assert result.error.startswith("shard 2 set aside: ")
    assert ("no luck" in result.error) == (task == "raises-v0")
    assert Zoo.open(tmp_path).finished_units() == [0, 1]


def test_unit_whose_actor_is_killed_once_is_made_by_another(ray_cluster: int, tmp_path: Path) -> None:
    mark = Path(tempfile.gettempdir()) / KILLED_ONCE
    mark.unlink(missing_ok=True)
    config = dataclasses.replace(BROKEN, task="tests.cluster.broken_tasks:kills-once-v0", out=tmp_path)
    result = CheckpointFactory(config, num_actors=1).fit()
    assert mark.exists(), "it did kill"
    assert result.error is None
    assert Zoo.open(tmp_path).finished_units() == [0, 1, 2]


def test_diverged_runs_are_kept_and_flagged(ray_cluster: int, tmp_path: Path) -> None:
    config = dataclasses.replace(
        BROKEN, num_runs=8, task="tests.cluster.broken_tasks:diverges-v0", out=tmp_path
    )
    result = CheckpointFactory(config, num_actors=1).fit()
    assert result.metrics["diverged_runs"] == 2
    runs = Zoo.open(tmp_path).read_runs()
    assert [i for i, s in enumerate(runs["status"].to_pylist()) if s == "diverged"] == [2, 6]
    assert result.metrics["checkpoints"] == 8 * 3


def test_what_some_runs_were_lost_to_is_said_and_again_when_the_zoo_is_resumed(
    ray_cluster: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(
        BROKEN, num_runs=8, task="tests.cluster.broken_tasks:struck-v0", out=tmp_path
    )
    for _ in range(2):
        assert CheckpointFactory(config, num_actors=1).fit().error is None
        said = " ".join(capsys.readouterr().err.split())
        assert "warning: 2 of 8 runs were lost: OSError: lightning; mend the environment, then make" in said


def test_a_zoo_whose_runs_are_all_lost_is_kept_and_told_by_the_exit_status(
    ray_cluster: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = "tests.rl_tasks.own_envs:Faulty-raise-v0"
    sizes = "--num-runs 4 --stack-size 2 --num-steps 3 --num-checkpoints 3"
    status = run(["make", "--preset", "gym", "--env", env, "--out", str(tmp_path), *sizes.split()])
    said = " ".join(capsys.readouterr().err.split())
    why = f"RuntimeError: the robot fell off the table (environment {env})"
    assert f"warning: 4 of 4 runs were lost: {why}; mend the environment" in said
    assert status == 1
    assert Zoo.open(tmp_path).finished_units() == [0, 1]


def test_zoo_of_other_settings_is_refused_and_left_as_it_is(ray_cluster: int, tmp_path: Path) -> None:
    config = dataclasses.replace(BROKEN, task="quadratic-v0", out=tmp_path)
    CheckpointFactory(config, num_actors=1).fit()
    before = zoo_bytes(tmp_path)
    other = dataclasses.replace(config, plan=dataclasses.replace(config.plan, seed=1))
    with pytest.raises(ValueError, match=r"holds another zoo, with seed 0 \(now 1\); give another --out"):
        CheckpointFactory(other).fit()
    assert zoo_bytes(tmp_path) == before


def test_ray_data_reads_a_zoo_as_it_is(whole: Path) -> None:
    dataset = ray.data.read_parquet(str(whole / "checkpoints"))
    assert dataset.count() == 384 * 10
    batch = dataset.take_batch(20)
    assert batch["theta"].shape == (20, 1210)
    assert batch["theta"].dtype == np.float32
    assert set(batch["task"]) == {"digits-mlp-v0"}


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    ray_cluster: int, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="this cluster has no GPU"):
        CheckpointFactory(dataclasses.replace(BROKEN, out=tmp_path / "zoo", use_gpu=True)).fit()
    assert not (tmp_path / "zoo").exists()
