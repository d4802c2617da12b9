"""What generators have cost: CPU seconds, as zoo and training have recorded them."""

import json
import shutil
from pathlib import Path

import pytest

from ckpt_factory.zoo import Zoo
from cluster.factory import LOG
from cluster.suite import spent_on
from cluster.train import prepare
from cluster.train_config import GeneratorConfig


@pytest.fixture
def zoo(digits_zoo: Zoo, tmp_path: Path) -> Zoo:
    """With a record of 8 CPU seconds for each of its three units of eight runs."""
    shutil.copytree(digits_zoo.path, tmp_path / "zoo")
    reports = [{"unit": unit, "runs": 8, "cpu_s": 8.0} for unit in range(3)]
    (tmp_path / "zoo" / LOG).write_text("".join(json.dumps(report) + "\n" for report in reports))
    return Zoo.open(tmp_path / "zoo")


def test_a_training_has_cost_its_cpu_seconds_however_long_it_took(zoo: Zoo, tmp_path: Path) -> None:
    made, folder = prepare(GeneratorConfig(zoo=zoo.path, held_out=0.25), zoo), tmp_path / "generator"
    took = {"train_s": 100.0, "config": {"num_workers": 2}}
    made.save(folder, training=took | {"cpu_s": 30.0}, card="")
    spent = spent_on(folder, zoo)
    assert (spent.zoo_s, spent.run_s, spent.training_s) == (24.0, 1.0, 30.0)
    made.save(folder, training=took, card="")
    with pytest.raises(
        ValueError, match=r"no record of the CPU seconds of its training; leave --amortise out"
    ):
        spent_on(folder, zoo)
