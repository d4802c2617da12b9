"""RunPlan: what run i is, a pure function of the seed and i."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ckpt_factory import RunPlan, RunSettings

RANGES = RunPlan(lr=(1e-3, 1e-1), weight_decay=(1e-6, 1e-2), init_scale=(0.25, 4.0))


def test_a_run_is_a_pure_function_of_seed_and_id() -> None:
    again = pickle.loads(pickle.dumps(RANGES))
    late_first = [again.run(i) for i in reversed(range(20))]
    assert [RANGES.run(i) for i in range(20)] == late_first[::-1]
    assert len({RANGES.run(i).lr for i in range(20)}) == 20
    other = RunPlan(seed=1, lr=RANGES.lr)
    assert other.run(0).lr != RANGES.run(0).lr


def test_a_number_of_checkpoints_or_steps_does_not_change_the_runs() -> None:
    longer = RunPlan(num_steps=900, num_checkpoints=5, lr=RANGES.lr)
    assert longer.run(7).lr == RANGES.run(7).lr


@pytest.fixture(scope="module")
def many_runs() -> list[RunSettings]:
    return [RANGES.run(i) for i in range(1000)]


@pytest.mark.parametrize("name", ["lr", "weight_decay", "init_scale"])
def test_settings_are_log_uniform_in_their_range(many_runs: list[RunSettings], name: str) -> None:
    low, high = getattr(RANGES, name)
    values = np.array([getattr(run, name) for run in many_runs])
    assert low <= values.min()
    assert values.max() <= high
    position = (np.log(values) - np.log(low)) / (np.log(high) - np.log(low))
    assert kstest(position, "uniform").pvalue > 1e-3  # one fixed sample: not a matter of luck


def test_settings_are_drawn_independently(many_runs: list[RunSettings]) -> None:
    logs = np.log([[run.lr, run.weight_decay, run.init_scale] for run in many_runs])
    # the standard error of a correlation of 1000 draws is 0.03
    assert np.abs(np.corrcoef(logs.T) - np.eye(3)).max() < 0.1


def test_equal_bounds_fix_the_value() -> None:
    plan = RunPlan(lr=(0.3, 0.3), weight_decay=(0.0, 0.0))
    assert {plan.run(i).lr for i in range(5)} == {0.3}
    assert {plan.run(i).weight_decay for i in range(5)} == {0.0}


def test_groups_of_runs_share_their_order_and_no_init() -> None:
    plan = RunPlan(group_size=3)
    runs = [plan.run(i) for i in range(6)]
    assert [run.order_id for run in runs] == [0, 0, 0, 1, 1, 1]
    orders = [torch.rand(4, generator=rng) for rng in plan.order_rngs(runs)]
    assert len(orders) == 2
    assert not torch.equal(*orders)
    inits = {tuple(torch.rand(4, generator=rng).tolist()) for rng in plan.init_rngs(runs)}
    assert len(inits) == 6
    assert not inits & {tuple(order.tolist()) for order in orders}


def test_rngs_of_a_run_do_not_depend_on_who_else_is_in_the_stack() -> None:
    plan = RunPlan()
    runs = [plan.run(i) for i in range(8)]
    for rngs in (plan.init_rngs, plan.order_rngs):
        together = [torch.rand(3, generator=rng) for rng in rngs(runs)]
        alone = torch.rand(3, generator=rngs(runs[5:6])[0])
        assert torch.equal(together[5], alone)


@given(st.data(), st.integers(1, 3000), st.sampled_from(["log", "uniform"]))
def test_steps_are_distinct_ordered_and_as_many_as_asked_for(
    data: st.DataObject, num_steps: int, spacing: str
) -> None:
    count = data.draw(st.integers(2, min(num_steps + 1, 400)))
    steps = RunPlan(num_steps=num_steps, num_checkpoints=count, spacing=spacing).steps()
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (0, num_steps)
    assert all(a < b for a, b in pairwise(steps))
    assert all(type(step) is int for step in steps)  # they go into json


def test_log_spaced_steps_see_the_beginning() -> None:
    plan = RunPlan(num_steps=1000, num_checkpoints=31)
    assert plan.steps()[:4] == [0, 1, 2, 3]
    assert sum(step <= 31 for step in plan.steps()) >= 15  # half of the logarithm of 1000
    uniform = RunPlan(num_steps=1000, num_checkpoints=11, spacing="uniform")
    assert uniform.steps() == list(range(0, 1001, 100))


def test_schedule_is_the_published_cosine() -> None:
    plan = RunPlan(num_steps=10, num_checkpoints=2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        # CosineAnnealingLR multiplies its way along: rounding of ten doubles
        assert math.isclose(plan.lr_at(step), schedule.get_last_lr()[0], abs_tol=1e-12)
        optimizer.step()
        schedule.step()
    assert {RunPlan(schedule="constant").lr_at(step) for step in (0, 200, 449)} == {1.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": (0.2, 0.1)}, r"lr is \(0.2, 0.1\); expected low <= high"),
        ({"lr": (0.0, 0.1)}, "lr"),
        ({"lr": (-0.1, 0.1)}, "lr"),
        ({"lr": (0.1, float("inf"))}, "lr"),
        ({"lr": (float("nan"), 0.1)}, "lr"),
        ({"weight_decay": (0.0, 0.1)}, "both 0"),
        ({"init_scale": (0.0, 0.0)}, "init_scale"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"batch_size": (0,)}, r"batch_size is \(0,\)"),
        ({"group_size": 0}, "group_size"),
        ({"momentum": (1.0, 1.0)}, r"momentum is \(1.0, 1.0\); expected 0 <= low <= high < 1"),
        ({"momentum": (-0.1, 0.5)}, "momentum"),
        ({"seed": -1}, "seed is -1"),
        ({"num_checkpoints": 1}, "num_checkpoints is 1; 450 steps allow 2 to 451"),
        ({"num_steps": 4, "num_checkpoints": 6}, "4 steps allow 2 to 5"),
    ],
)
def test_an_impossible_plan_says_what_is_expected(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunPlan(**fields)
