"""A user's task, from a module in the folder that `theta` is started in, through the factory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckpt_factory import RunPlan
from ckpt_factory.zoo import Zoo
from cluster.factory import CheckpointFactory
from cluster.factory_config import FactoryConfig

from ..ckpt_factory.test_own_task import own_task_example
from ..conftest import theta_environment

pytestmark = pytest.mark.ray


@pytest.mark.slow
def test_a_module_in_the_users_folder_goes_through_the_factory(tmp_path: Path) -> None:
    """Started as the console script is, whose own folder is searched instead of the user's."""
    (tmp_path / "my_tasks.py").write_text(own_task_example())
    flags = "--task my_tasks:wine-v0 --out zoo --num-runs 4 --stack-size 2 --num-steps 20 --num-cpus 2"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cluster", "make", *flags.split(), "--num-checkpoints", "3"],
        cwd=tmp_path,
        env=theta_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr
    zoo = Zoo.open(tmp_path / "zoo")
    assert zoo.header.task == "my_tasks:wine-v0"
    assert zoo.finished_units() == [0, 1]
    rows = zoo.read_unit(1)
    assert rows.finite().all()
    assert torch.unique(rows.theta[:, 0], dim=0).shape == (2, zoo.header.spec.D)


def test_a_symmetry_that_cannot_be_derived_is_said_where_a_zoo_is_made(
    ray_cluster: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "tests.ckpt_factory.test_modules:recurrent-module-v0"
    plan = RunPlan(num_steps=4, batch_size=(8,), num_checkpoints=2)
    config = FactoryConfig(task=task, out=tmp_path, num_runs=2, stack_size=2, plan=plan)
    made = CheckpointFactory(config, num_actors=1).fit()
    assert made.error is None
    said = capsys.readouterr().err
    assert "note: the symmetry of Recurrent leaves hidden units out: no rule for GRU 'gru'" in said
