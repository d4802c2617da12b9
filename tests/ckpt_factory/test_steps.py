"""RunPlan.steps: which steps of a run are saved, by each of the spacings; and the schedule's steps."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from ckpt_factory import RunPlan

RANDOM = RunPlan(seed=2, num_steps=1000, num_checkpoints=12, spacing="random")


@given(st.data(), st.integers(1, 3000), st.sampled_from(["log", "uniform", "random"]))
def test_steps_are_distinct_ordered_and_as_many_as_asked_for(
    data: st.DataObject, num_steps: int, spacing: str
) -> None:
    count = data.draw(st.integers(2, min(num_steps + 1, 400)))
    run_id = data.draw(st.integers(0, 10**6))
    steps = RunPlan(num_steps=num_steps, num_checkpoints=count, spacing=spacing).steps(run_id)
    assert len(steps) == count
    assert (steps[0], steps[-1]) == (0, num_steps)
    assert all(a < b for a, b in pairwise(steps))
    assert all(type(step) is int for step in steps)  # they go into json


@given(st.data(), st.integers(1, 3000))
def test_candidates_of_metric_spacing_are_four_times_as_many_where_there_are(
    data: st.DataObject, num_steps: int
) -> None:
    count = data.draw(st.integers(2, min(num_steps + 1, 400)))
    plan = RunPlan(num_steps=num_steps, num_checkpoints=count, spacing="metric")
    candidates = min(4 * count, num_steps + 1)
    assert plan.steps(3) == replace(plan, spacing="log", num_checkpoints=candidates).steps()


def test_log_spaced_steps_see_the_beginning() -> None:
    plan = RunPlan(num_steps=1000, num_checkpoints=31)
    assert plan.steps()[:4] == [0, 1, 2, 3]
    assert sum(step <= 31 for step in plan.steps()) >= 15  # half of the logarithm of 1000
    uniform = RunPlan(num_steps=1000, num_checkpoints=11, spacing="uniform")
    assert uniform.steps() == list(range(0, 1001, 100))


def test_random_steps_are_uniform_over_the_run() -> None:
    drawn = np.concatenate([RANDOM.steps(run_id)[1:-1] for run_id in range(100)])
    assert kstest((drawn - 0.5) / 999, "uniform").pvalue > 1e-3  # one fixed sample: not a matter of luck
    few = replace(RANDOM, num_steps=5, num_checkpoints=4)
    inner = [step for run_id in range(300) for step in few.steps(run_id)[1:-1]]
    # every one of 1, 2, 3, 4 in half of the runs: a standard deviation of 9
    assert all(abs(inner.count(step) - 150) < 40 for step in (1, 2, 3, 4))


def test_random_steps_are_drawn_for_each_run() -> None:
    steps = [tuple(RANDOM.steps(run_id)) for run_id in range(20)]
    assert len(set(steps)) == 20
    assert steps == [tuple(RANDOM.steps(run_id)) for run_id in range(20)]
    assert not set(steps) & {tuple(replace(RANDOM, seed=3).steps(run_id)) for run_id in range(20)}
    in_a_group = replace(RANDOM, group_size=4)
    assert steps == [tuple(in_a_group.steps(run_id)) for run_id in range(20)]


@pytest.mark.parametrize("spacing", ["log", "uniform", "metric"])
def test_other_steps_are_the_same_for_every_run(spacing: str) -> None:
    plan = replace(RANDOM, spacing=spacing)
    assert plan.steps(17) == plan.steps(0) == plan.steps()


def test_schedule_is_the_published_cosine() -> None:
    plan = RunPlan(num_steps=10, num_checkpoints=2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        # CosineAnnealingLR multiplies its way along: rounding of ten doubles
        assert plan.lr_at(step) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert {RunPlan(schedule="constant").lr_at(step) for step in (0, 200, 449)} == {1.0}


def test_a_schedule_by_epochs_is_the_published_one() -> None:
    """lr(e) = (1 + cos(pi e / E)) / 2 in epoch e of E (here 5 epochs of 4 steps)."""
    plan = RunPlan(num_steps=20, num_checkpoints=2, schedule_every=4)
    expected = [0.5 * (1 + np.cos(np.pi * epoch / 5)) for epoch in range(5) for _ in range(4)]
    assert [plan.lr_at(step) for step in range(20)] == pytest.approx(expected, abs=1e-12)
