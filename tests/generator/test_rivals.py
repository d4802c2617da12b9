"""Rivals: each optimizer at the rate that is best for it, on training starts."""

from dataclasses import replace

import pytest
import torch

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation import rivals
from generator.evaluation.evaluate import held_out_runs, training_starts
from generator.evaluation.recipe import shortened, train_from
from generator.evaluation.rivals import Arena, first_updates, rival, steps_needed
from generator.medians import median


@pytest.fixture
def arena(digits: Task, small_plan: RunPlan, digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Arena:
    monkeypatch.setattr(rivals, "RATES", (0.1, 1.0, 10.0))
    wanted = torch.full((4,), 1.0)
    return Arena.of(digits, small_plan, 6, training_starts(digits_zoo, 13, 4), wanted, 24)


def test_each_number_of_updates_has_the_rate_that_is_best_on_training_starts(
    arena: Arena, digits_zoo: Zoo
) -> None:
    starts = digits_zoo.read_unit(2).theta[:6, 0]
    curves, rates = first_updates(arena, "adamw", starts, 3)
    assert curves["test_loss"].shape == (6, 4)
    for u, chosen in enumerate(rates, 1):
        medians = {}
        for rate in rivals.RATES:
            plan = replace(arena.with_rate("adamw", rate), schedule="constant")
            rows = train_from(arena.task, shortened(plan, 3, 4), arena.training, 24)
            medians[rate] = float(median(rows.metrics["validation_loss"][:, u]))
        assert medians[chosen] == min(medians.values())
        plan = replace(arena.with_rate("adamw", chosen), schedule="constant")
        rows = train_from(arena.task, shortened(plan, 3, 4), starts, 24)
        assert torch.equal(curves["test_loss"][:, u], rows.metrics["test_loss"][:, u])
    assert rates[0] > 0.1, "one step is not best made small"


def test_steps_needed_are_where_its_own_curve_is_as_good(arena: Arena, digits_zoo: Zoo) -> None:
    starts = digits_zoo.read_unit(2).theta[:6, 0]
    _, rate = steps_needed(arena, "sgd", starts, torch.zeros(6))
    rows = train_from(arena.task, shortened(arena.with_rate("sgd", rate), 60, rivals.CHECKPOINTS), starts, 24)
    curve = rows.metrics["test_loss"]
    reached = curve.cummin(1).values[:, 12]
    needed, _ = steps_needed(arena, "sgd", starts, reached)
    first = (curve <= reached.unsqueeze(1)).int().argmax(1)  # where the best so far was first as good
    # interpolated in log(1 + step), in float32
    torch.testing.assert_close(needed, rows.steps[0][first].float(), rtol=1e-4, atol=1e-4)
    never, _ = steps_needed(arena, "sgd", starts, torch.full((6,), -1.0))
    assert never.isinf().all()


def test_a_goal_out_of_reach_takes_the_rate_that_comes_nearest(arena: Arena, digits_zoo: Zoo) -> None:
    hopeless = replace(arena, wanted=torch.full((4,), -1.0))
    _, rate = steps_needed(hopeless, "sgd", digits_zoo.read_unit(2).theta[:2, 0], torch.zeros(2))
    ends = {}
    for each in rivals.RATES:
        plan = shortened(arena.with_rate("sgd", each), 60, rivals.CHECKPOINTS)
        rows = train_from(arena.task, plan, arena.training, 24)
        ends[each] = float(median(rows.metrics["validation_loss"][:, -1]))
    assert ends[rate] == min(ends.values())


def test_numbers_of_a_rival_are_those_of_its_arrays(
    arena: Arena, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    held_out = held_out_runs(digits_zoo, generator, 6)
    numbers, arrays = rival(arena, "lion", held_out, torch.full((6,), 1.5), 2)
    assert numbers["rival_lion_steps"] == float(median(arrays["rival_lion_steps"]))
    assert numbers["rival_lion_curve"] == median(arrays["rival_lion_test_loss"], 0).tolist()
    start = held_out.metrics["test_loss"][:, 0]
    torch.testing.assert_close(arrays["rival_lion_test_loss"][:, 0], start)
    assert len(numbers["rival_lion_curve_lrs"]) == 2
    assert rivals.known_rivals(arrays) == ["lion"]
