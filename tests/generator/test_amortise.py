"""Amortisation: when a generator has paid for its zoo and its training."""

import math

import pytest
import torch

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation import amortise
from generator.evaluation.amortise import Spent, amortised, break_even, clocked
from generator.evaluation.evaluate import HeldOut, held_out_runs

CLOCKS = {"cost_sampling_s": 0.02, "cost_step_stacked_s": 0.001, "cost_step_alone_s": 0.01}


def held_out() -> HeldOut:
    """Two runs whose loss halves from 1 with each of their checkpoints at 0, 1, 3 and 7 steps."""
    metric = torch.tensor([[1.0, 0.5, 0.25, 0.125]] * 2)
    steps = torch.tensor([[0, 1, 3, 7]] * 2)
    return HeldOut([8, 9], steps, torch.zeros(2, 4, 1), {"test_loss": metric}, [32, 32])


def test_it_pays_once_what_networks_save_is_what_it_cost() -> None:
    assert break_even(100.0, 0.5) == 200
    assert break_even(100.0, 0.0) == math.inf
    assert break_even(100.0, -1.0) == math.inf


def test_break_even_by_hand() -> None:
    grids = [{"test_loss": torch.tensor([[0.25, 0.5, 0.01]] * 2)}] * 3
    spent = Spent(zoo_s=6.0, training_s=4.0, run_s=0.14)
    numbers, arrays = amortised(held_out(), grids, "test_loss", "min", spent, CLOCKS, num_steps=7)
    torch.testing.assert_close(arrays["cost_quality"], torch.tensor([0.25, 0.5, 0.01]))
    torch.testing.assert_close(arrays["cost_steps"], torch.tensor([3.0, 1.0, math.inf]))
    # 10 s fixed; a step costs 0.02 s as recorded, 0.001 in a stack, 0.01 alone; an update 0.02
    assert numbers["break_even_recorded"] == pytest.approx(10 / (3 * 0.02 - 0.02))
    assert numbers["break_even_alone"] == pytest.approx(10 / (3 * 0.01 - 0.02))
    assert numbers["break_even_stacked"] == math.inf
    assert arrays["break_even_alone"][1] == math.inf
    assert arrays["break_even_alone"][2].isnan(), "no training is known to be as good: there is no price"
    assert numbers["cost_step_recorded_s"] == pytest.approx(0.02)


def test_clocks_measure_updates_and_steps(
    generator: WeightGenerator,
    digits: Task,
    digits_zoo: Zoo,
    small_plan: RunPlan,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(amortise, "LEAST_S", 0.02)
    starts = held_out_runs(digits_zoo, generator, 3).theta[:, 0]
    clocks = clocked(generator, digits, small_plan, starts, 24)
    assert clocks.keys() == CLOCKS.keys()
    assert all(0 < value < 1 for value in clocks.values())
    # a stack of 32 shares what a step costs before it computes anything; it is some ten times less
    assert clocks["cost_step_stacked_s"] < clocks["cost_step_alone_s"]
