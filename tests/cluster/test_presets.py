"""What the presets promise of the zoos that they make."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from cluster.factory import check
from cluster.factory_config import PRESETS, diverse


def test_held_out_runs_of_the_diverse_preset_have_every_optimizer_and_batch_size() -> None:
    config = diverse()
    plan, num_held_out = config.plan, config.num_runs // 10
    held_out = plan.runs(range(config.num_runs - num_held_out, config.num_runs))
    combinations = {(run.optimizer, run.batch_size) for run in held_out}
    assert combinations == set(product(plan.optimizer, plan.batch_size))


@pytest.mark.parametrize("name", ["cartpole", "pendulum", "mountaincar_continuous", "gym"])
def test_presets_of_policies_can_be_followed(name: str, tmp_path: Path) -> None:
    config = replace(PRESETS[name](), out=tmp_path / "zoo")
    env = "CartPole-v1" if name == "gym" else None
    header, task = check(replace(config, env=env))
    assert header.task == task.id
    assert header.prompted == "validation_return"
    assert list(tmp_path.iterdir()) == []
