"""`theta import`, `theta export` and full disks from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_factory import RunPlan, Task
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import Zoo
from cluster.cli import run
from cluster.factory import CheckpointFactory
from cluster.factory_config import FactoryConfig
from cluster.sweeps.contest import train_alone
from cluster.train_config import GeneratorConfig
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig
from tests.disks import grow, small_disk
from tests.published import supervised_run, write_run

from .processes import wait_for, zoo_bytes
from .test_cli import Refused, refused  # noqa: F401

ARCH = (1024, 16, 160, 10)  # digits-mlp-v0


@pytest.fixture
def published(tmp_path: Path) -> Path:
    for seed in range(5):
        write_run(tmp_path / "set", {f"{seed:06d}": supervised_run(seed, size=sum(ARCH))}, ARCH)
    return tmp_path / "set"


def result_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "result.json").read_text())


def test_import_says_what_came_and_what_did_not(published: Path, tmp_path: Path) -> None:
    (published / "000001" / "runs.json").unlink()
    args = ["import", "--lmdb", str(published), "--out", str(tmp_path / "zoo"), "--stack-size", "2"]
    assert run(args) == 2
    assert run([*args, "--skip-broken"]) == 0
    result = result_of(tmp_path / "zoo")
    assert (result["runs"], result["checkpoints"], result["runs_imported_now"]) == (4, 20, 4)
    assert result["left_out"] == {"000001": "it has no runs.json: the run crashed, or is not over"}
    Zoo.open(tmp_path / "zoo").sums_path(1).unlink()
    assert run([*args, "--skip-broken"]) == 0
    assert result_of(tmp_path / "zoo")["runs_imported_now"] == 2
    damaged = Zoo.open(tmp_path / "zoo").checkpoints_path(0)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run([*args, "--skip-broken", "--repair"]) == 0
    assert result_of(tmp_path / "zoo")["runs_imported_now"] == 2
    Zoo.open(tmp_path / "zoo").read_unit(0)


def test_imported_zoo_is_shown_and_exported(published: Path, tmp_path: Path) -> None:
    zoo = str(tmp_path / "zoo")
    args = ["--lmdb", str(published), "--task", "digits-mlp-v0", "--evaluate", "--num-checkpoints", "2"]
    assert run(["import", *args, "--out", zoo]) == 0
    assert result_of(tmp_path / "zoo")["prompted"] == "validation_loss"
    assert run(["info", "--zoo", zoo, "--out", str(tmp_path / "info")]) == 0
    assert result_of(tmp_path / "info")["metrics"] == "measured again by the task"
    assert run(["export", "--zoo", zoo, "--out", str(tmp_path / "dataset")]) == 0
    assert (result_of(tmp_path / "dataset")["checkpoints"], result_of(tmp_path / "dataset")["files"]) == (
        10,
        2,
    )


@pytest.mark.ray
def test_a_generator_of_an_imported_zoo_is_evaluated(
    ray_cluster: int,
    refused: Refused,  # noqa: F811
    published: Path,
    tmp_path: Path,
) -> None:
    zoo, generator, out = (tmp_path / name for name in ("zoo", "generator", "evaluation"))
    args = ["--lmdb", str(published), "--task", "digits-mlp-v0", "--evaluate", "--out", str(zoo)]
    assert run(["import", *args]) == 0
    model = DiTConfig(width=16, depth=1, heads=2)
    training = TrainConfig(model=model, steps=3, batch_size=4, precision="float32")
    train_alone(GeneratorConfig(zoo=zoo, out=generator, training=training, sampling_steps=1))
    args = ["evaluate", "--zoo", str(zoo), "--generator", str(generator), "--out", str(out)]
    assert "its runs cannot be made anew" in refused(*args, "--rivals", "1")
    few = ["--num-networks", "1", "--num-prompts", "2", "--num-seeds", "1"]
    assert run([*args, *few, "--no-audit", "--distance-networks", "0"]) == 0
    result = result_of(out)
    assert result["num_networks"] == 1
    assert result["sgd_total_steps"] == Zoo.open(zoo).read_unit(0).steps.max()
    assert "sgd_total_env_steps" not in result


def test_import_is_byte_identical_after_sigkill(tmp_path: Path) -> None:
    for seed in range(30):
        write_run(tmp_path / "set", {f"{seed:06d}": supervised_run(seed, size=sum(ARCH))}, ARCH)
    args = ["import", "--lmdb", str(tmp_path / "set"), "--stack-size", "1", "--out"]
    command = [sys.executable, "-m", "cluster", *args, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        sums = tmp_path / "killed" / "sums"
        wait_for(lambda: process.poll() is not None or len(list(sums.glob("part-*"))) > 5, 60, "no shards")
        process.kill()
    zoo = Zoo.open(tmp_path / "killed")
    done = zoo.finished_units()
    assert 5 < len(done) < 30
    found = merge(zoo, [verify_unit(zoo, None, unit, sample=0) for unit in done])
    assert found.problems == []
    assert run([*args, str(tmp_path / "killed")]) == 0
    assert run([*args, str(tmp_path / "whole")]) == 0
    assert zoo_bytes(tmp_path / "killed") == zoo_bytes(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob(".tmp-*"))


def test_as_published_zoos_are_refused_where_they_do_not_do(
    refused: Refused,  # noqa: F811
    published: Path,
    tmp_path: Path,
) -> None:
    zoo, args = tmp_path / "zoo", ["import", "--lmdb", str(published)]
    assert run([*args, "--out", str(zoo)]) == 0
    line = refused("train", "--zoo", zoo, "--out", tmp_path / "generator")
    assert "the zoo was imported without a task" in line
    assert "import it again with --evaluate" in refused("evaluate", "--zoo", zoo, "--out", tmp_path / "e")
    other = tmp_path / "other"
    flags = ["--task", "digits-mlp-v0", "--prompted", "train_loss"]
    assert run([*args, *flags, "--out", str(other)]) == 0
    line = refused("train", "--zoo", other, "--out", tmp_path / "generator")
    assert "prompted with 'train_loss', which 'digits-mlp-v0' does not measure" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "give one of --lmdb DIR and --folder DIR, got none"),
        ("--lmdb a --folder b", "got lmdb and folder"),
        ("--folder b", "--folder needs --metrics"),
        ("--folder b --evaluate", "--evaluate and --data-root are about a task"),
        ("--folder b --metrics c.csv", "no folder"),
        ("--lmdb a --metrics c.csv", "--metrics is for --folder"),
        ("--folder b --metrics c.csv --steps-per-epoch 3", "--steps-per-epoch is for --lmdb"),
        ("--lmdb a --stack-size 0", "stack_size is 0; expected at least 1"),
        ("--lmdb a --num-checkpoints 0", "num_checkpoints is 0"),
        ("--lmdb a --task mnist-mlp-v0", "--lmdb names the one that holds the run directories"),
        ("--lmdb a --task digits-mpl-v0", "Did you mean 'digits-mlp-v0'?"),
        ("--lmdb a --out /dev/null/zoo", "cannot write to /dev/null/zoo"),
    ],
)
def test_malformed_values_for_import(refused: Refused, flags: str, words: str, tmp_path: Path) -> None:  # noqa: F811
    out = [] if "--out" in flags else ["--out", tmp_path / "zoo"]
    assert words in refused("import", *out, *flags.split())


def test_malformed_values_for_export(refused: Refused, digits_zoo: Zoo, tmp_path: Path) -> None:  # noqa: F811
    assert "no zoo at" in refused("export", "--zoo", tmp_path / "none", "--out", tmp_path / "dataset")
    flags = ["--zoo", digits_zoo.path, "--out", tmp_path / "dataset"]
    assert "expected at most 300" in refused("export", *flags, "--max-row-group-mb", 500)
    assert "max_shard_mb is 0; expected a positive number" in refused("export", *flags, "--max-shard-mb", 0)


def test_import_onto_a_full_disk_is_one_line_and_goes_on(
    refused: Refused,  # noqa: F811
    published: Path,
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "disk", "100k") as disk:
        args = ["import", "--lmdb", published, "--out", disk / "zoo", "--stack-size", 1]
        line = refused(*args)
        assert line.startswith("theta import: disk full: ")
        assert line.endswith("free space and give the same command again, which goes on from there")
        assert 0 < len(Zoo.open(disk / "zoo").finished_units()) < 5
        grow(disk, "4m")
        assert run([str(arg) for arg in args]) == 0
        assert result_of(disk / "zoo")["runs"] == 5


@pytest.mark.ray
@pytest.mark.slow
def test_factory_stops_at_a_full_disk_and_goes_on(
    ray_cluster: int,
    refused: Refused,  # noqa: F811
    digits: Task,
    tmp_path: Path,
) -> None:
    settings = ["--num-runs", "32", "--stack-size", "2", "--num-steps", "20", "--num-checkpoints", "4"]
    plan = RunPlan(num_steps=20, num_checkpoints=4)
    with small_disk(tmp_path / "disk", "400k") as disk:
        line = refused("make", *settings, "--out", disk / "zoo")
        assert line.startswith("theta make: disk full: ")
        assert "part-" in line
        zoo = Zoo.open(disk / "zoo")
        done = zoo.finished_units()
        assert 0 < len(done) < 16
        found = merge(zoo, [verify_unit(zoo, digits, unit, sample=2) for unit in done])
        assert found.problems == []
        assert found.missing_units == [unit for unit in range(16) if unit not in done]
        grow(disk, "4m")
        config = FactoryConfig(out=disk / "zoo", num_runs=32, stack_size=2, plan=plan)
        assert CheckpointFactory(config, num_actors=1).fit().error is None
        assert zoo.finished_units() == list(range(16))


@pytest.mark.ray
def test_zoos_that_cannot_be_measured_again_are_verified_without(
    ray_cluster: int, published: Path, tmp_path: Path
) -> None:
    zoo = str(tmp_path / "zoo")
    assert run(["import", "--lmdb", str(published), "--out", zoo]) == 0
    assert run(["verify", "--zoo", zoo, "--out", str(tmp_path / "v")]) == 0
    assert (result_of(tmp_path / "v")["ok"], result_of(tmp_path / "v")["remeasured"]) == (True, 0)
