"""The zoo's recipe, to train other starts by."""

from dataclasses import replace

import pytest
import torch

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.zoo import Zoo
from cluster.factory_config import diverse
from generator.evaluation.recipe import (
    better,
    middle_recipe,
    or_worst,
    shortened,
    steps_per_epoch,
    train_from,
)


def test_runs_of_the_zoo_are_made_again_by_its_recipe(digits: Task, digits_zoo: Zoo) -> None:
    rows = digits_zoo.read_unit(1)
    recipe = middle_recipe(digits_zoo.header.runs_plan, 8)
    again = train_from(digits, recipe, rows.theta[:, 0], first_run=8)
    assert torch.equal(again.theta, rows.theta)
    other = train_from(digits, recipe, rows.theta[:, 0], first_run=24)  # batches that no run of the zoo saw
    assert torch.equal(other.theta[:, 0], rows.theta[:, 0])
    assert (other.theta[:, 1] != rows.theta[:, 1]).any(1).all()


def test_the_middle_of_a_diverse_recipe_has_one_value_of_each() -> None:
    recipe = middle_recipe(replace(diverse().plan, hyper={"clip": (0.1, 0.3)}, group_size=4), 6)
    runs = recipe.runs(range(2))
    for name in ("optimizer", "batch_size", "weight_decay", "momentum", "label_noise", "gamma", "hyper"):
        assert getattr(runs[0], name) == getattr(runs[1], name), name
    assert runs[0].lr == pytest.approx((0.02 * 0.15) ** 0.5)
    assert runs[0].hyper == {"clip": pytest.approx(0.2)}
    assert (runs[0].label_noise, runs[0].data_fraction, runs[0].loss) == (0.0, 1.0, "cross-entropy")
    assert recipe.group_size == 2  # the largest that divides both


def test_groups_of_a_shorter_stack_stay_whole(digits: Task) -> None:
    plan = RunPlan(num_steps=4, num_checkpoints=2, group_size=4)
    starts = digits.init([torch.Generator().manual_seed(k) for k in range(6)])
    rows = train_from(digits, shortened(middle_recipe(plan, 6), 4, 99), starts, first_run=10)
    assert rows.run_ids.tolist() == list(range(10, 16))
    assert rows.steps[0].tolist() == [0, 1, 2, 3, 4]


def test_an_epoch_is_a_pass_over_the_data_or_a_rollout(digits: Task, returns: Task) -> None:
    assert steps_per_epoch(digits, 32) == len(digits.examples("train")[1]) // 32 > 20
    assert steps_per_epoch(returns, 32) == 4
    with pytest.raises(ValueError, match="has no labelled examples"):
        steps_per_epoch(make("quadratic-v0"), 32)


def test_what_diverged_is_never_the_best() -> None:
    nan = float("nan")
    assert better("min", [nan, 3.0, 2.0]) == 2
    assert better("max", [2.0, nan, 1.0]) == 0
    values = torch.tensor([1.0, nan])
    assert or_worst(values, "min").tolist() == [1.0, float("inf")]
    assert or_worst(values, "max").tolist() == [1.0, -float("inf")]
