"""Schedules: what each is at its landmarks, and steps of whole epochs."""

import math
from itertools import pairwise

import pytest
import torch

from ckpt_factory import RunPlan
from ckpt_factory.schedules import HALF_LIFE, SCHEDULES, lr_factor

N = 400


def test_cosine_is_that_of_torch_and_of_the_plan() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        assert lr_factor("cosine", step, 10) == pytest.approx(schedule.get_last_lr()[0])
        assert lr_factor("cosine", step, 10) == RunPlan(num_steps=10, num_checkpoints=2).lr_at(step)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_begins_at_one_and_never_rises(name: str) -> None:
    factors = [lr_factor(name, step, N) for step in range(N)]
    assert factors[0] == 1
    assert all(0 < after <= before for before, after in pairwise(factors))


@pytest.mark.parametrize(("name", "power"), [("inverse-time", 1), ("inverse-time-squared", 2)])
def test_inverse_time_has_halved_the_rate_after_its_half_life(name: str, power: int) -> None:
    half = round(HALF_LIFE * N)
    assert lr_factor(name, half, N) == pytest.approx(0.5)
    # factor^(-1/power) is linear in the step: 1 + a t
    slope = (2 ** (1 / power) - 1) / half
    for step in (1, 17, N - 1):
        assert lr_factor(name, step, N) ** (-1 / power) == pytest.approx(1 + slope * step)


@pytest.mark.parametrize(("name", "end"), [("inverse-time", 1 / 5), ("inverse-time-squared", 1 / 7)])
def test_inverse_time_ends_where_it_says(name: str, end: float) -> None:
    # the docstrings round: 1 / 7.07
    assert SCHEDULES[name](N, N) == pytest.approx(end, rel=0.02)


def test_the_published_recipe_steps_its_cosine_once_an_epoch() -> None:
    """lr(e) = (1 + cos(pi e / E)) / 2, 25 epochs of 16 batches."""
    for step in range(N):
        expected = 0.5 * (1 + math.cos(math.pi * (step // 16) / 25))
        assert lr_factor("cosine", step, N, every=16) == pytest.approx(expected)


def test_mistakes_say_what_is_expected() -> None:
    with pytest.raises(ValueError, match=r"unknown schedule 'inverse_time'. Did you mean 'inverse-time'\?"):
        lr_factor("inverse_time", 0, N)
    with pytest.raises(ValueError, match="every is 0; expected at least 1"):
        lr_factor("cosine", 0, N, every=0)
