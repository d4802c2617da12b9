"""Tasks that keep no `data`, as a user's may do: workers then load it from its folder."""

from pathlib import Path

import pytest
import torch

from ckpt_factory import RunPlan, Task, make, register
from ckpt_factory.tasks import Quadratic
from ckpt_factory.zoo import Zoo
from cluster.factory import FactoryActor
from cluster.prompt import PromptConfig, prompt_remotely
from cluster.train import prepare
from cluster.train_config import GeneratorConfig
from cluster.verify import verify_remotely
from tests.conftest import write_zoo

TASK = "tests.cluster.test_tasks:steep-v0"


def load(folder: Path | None) -> float:
    if folder is None:
        raise ValueError("the steepness is in a folder: give --data-root")
    return float((folder / "steepness.txt").read_text())


def steep(steepness: float) -> Task:
    task = Quadratic()
    task.curvature = task.curvature * steepness
    return task


register("steep-v0", steep, load=load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steep")
    (folder / "steepness.txt").write_text("3.0")
    return folder


@pytest.fixture(scope="module")
def zoo(folder: Path) -> Zoo:
    plan = RunPlan(num_steps=6, batch_size=(1,), num_checkpoints=3)
    return write_zoo(folder / "zoo", make(TASK, data_root=folder), plan, num_runs=16, stack_size=8)


def test_tasks_say_what_data_they_were_made_from_or_that_they_keep_none(digits: Task, folder: Path) -> None:
    assert make("digits-mlp-v0", data=digits.data).data is digits.data
    assert make(TASK, data_root=folder).data is None


def test_a_factory_makes_units_of_them(zoo: Zoo, folder: Path) -> None:
    before = zoo.sums_path(1).read_bytes()
    zoo.sums_path(1).unlink()
    actor = FactoryActor.__ray_metadata__.modified_class(zoo.path, None, folder, "cpu")
    assert actor.run(1)["runs"] == 8
    assert zoo.sums_path(1).read_bytes() == before


def test_their_zoos_are_verified(zoo: Zoo, folder: Path) -> None:
    found = verify_remotely._function(zoo.path, None, folder, 0, 4)
    assert (found.problems, found.remeasured) == ([], 4)


def test_their_networks_are_prompted(zoo: Zoo, folder: Path, tmp_path: Path) -> None:
    config = GeneratorConfig(zoo=zoo.path, data_root=folder, held_out=0.5)
    prepare(config, zoo).save(tmp_path, training={}, card="")
    asked = PromptConfig(generator=tmp_path, data_root=folder)
    theta = zoo.read_unit(1).theta[:2, 0]
    made = prompt_remotely._function(asked, None, theta, {"loss": torch.ones(2)})
    assert made.theta.shape == theta.shape
