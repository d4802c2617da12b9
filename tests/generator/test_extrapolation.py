"""Prompts where nothing was seen."""

import statistics
from dataclasses import replace

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.conditioning import Calibration
from generator.evaluation.evaluate import held_out_runs, training_checkpoints
from generator.evaluation.extrapolation import (
    beyond_the_best,
    in_the_hole,
    prompts_around,
    prompts_beyond,
    same_prompts,
)
from generator.medians import median, quartiles
from generator.prompt import prompt_networks

from .conftest import TRAINING_RUNS


def ranged(generator: WeightGenerator, low: float, high: float, objective: str) -> WeightGenerator:
    (view,) = generator.scaling.views
    scaling = replace(generator.scaling, views=(replace(view, range=(low, high)),))
    return replace(generator, scaling=scaling, origin=replace(generator.origin, objective=objective))


def test_prompts_go_from_the_best_to_better_ones(generator: WeightGenerator) -> None:
    losses = prompts_beyond(ranged(generator, 0.2, 2.0, "min"), 3)
    torch.testing.assert_close(losses, torch.tensor([0.2, 0.1, 0.0]))
    returns = prompts_beyond(ranged(generator, -100.0, 300.0, "max"), 3)
    torch.testing.assert_close(returns, torch.tensor([300.0, 350.0, 400.0]))
    signed = prompts_beyond(ranged(generator, -1.0, 3.0, "min"), 2)
    torch.testing.assert_close(signed, torch.tensor([-1.0, -2.0]))


def test_prompts_around_a_hole_stay_in_what_was_seen(generator: WeightGenerator) -> None:
    prompts = prompts_around(ranged(generator, 0.2, 2.0, "min"), (0.4, 1.4))
    assert (prompts.diff() >= 0).all()
    assert float(prompts[0]) == pytest.approx(0.2)
    assert float(prompts[-1]) == pytest.approx(2.0)
    assert int(((prompts > 0.4) & (prompts < 1.4)).sum()) == 5


def test_what_is_achieved_beyond_the_best(generator: WeightGenerator, digits: Task, digits_zoo: Zoo) -> None:
    starts = held_out_runs(digits_zoo, generator, 5).theta[:, 0]
    training = training_checkpoints(digits_zoo, TRAINING_RUNS)
    numbers, arrays = beyond_the_best(generator, digits, starts, training, num=3)
    prompts, tested = arrays["beyond_prompts"], arrays["beyond_test_loss"]
    validated = arrays["beyond_validation_loss"]
    assert float(prompts[0]) == pytest.approx(float(training["validation_loss"].min()))
    best = int(training["validation_loss"].argmin())
    zoo = float(training["test_loss"][best])
    assert numbers["beyond_zoo_test_loss"] == zoo
    chosen = int(validated.median(0).values.argmin())
    assert numbers["beyond_best_prompt"] == float(prompts[chosen])
    assert numbers["beyond_best_test_loss"] == float(median(tested[:, chosen]))
    assert numbers["beyond_share_better"] == sum(float(x) < zoo for x in tested[:, chosen]) / 5
    assert numbers["beyond_best_network_test_loss"] == float(tested.flatten()[validated.argmin()])
    assert numbers["beyond_test_loss_quartiles"] == [quartiles(each) for each in tested.T]
    flat = replace(generator, calibration=Calibration(torch.tensor([0.5, 0.6]), torch.tensor([1.0, 2.0])))
    _, uncalibrated = beyond_the_best(flat, digits, starts, training, num=3)
    assert torch.equal(uncalibrated["beyond_test_loss"], tested), "else all these prompts were one"
    made = prompt_networks(generator, digits, starts, prompts[1].expand(5), rng=seeded(0))
    torch.testing.assert_close(tested[:, 1], made.achieved[-1]["test_loss"])
    assert flat.calibration is not None
    longer = replace(flat, calibration=replace(flat.calibration, stretch=1.5))
    _, stretched = beyond_the_best(longer, digits, starts, training, num=3)
    further = digits.evaluate(torch.lerp(starts, made.theta, 1.5), "test")["loss"]
    torch.testing.assert_close(stretched["beyond_test_loss"][:, 1], further)


def test_a_hole_is_judged_by_what_is_prompted_inside(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo
) -> None:
    starts = held_out_runs(digits_zoo, generator, 4).theta[:, 0]
    training = training_checkpoints(digits_zoo, TRAINING_RUNS)
    values = training["validation_loss"].sort().values
    hole = float(values[20]), float(values[60])
    numbers, arrays = in_the_hole(generator, digits, starts, training, hole)
    assert numbers["hole_left_out"] == 39
    prompts, made = arrays["hole_prompts"], arrays["hole_test_loss"]
    within = [k for k, prompt in enumerate(prompts.tolist()) if hole[0] < prompt < hole[1]]
    assert within == [5, 6, 7, 8, 9]
    errors = [(sum(float(row[k] - prompts[k]) ** 2 for k in within) / 5) ** 0.5 for row in made]
    assert numbers["hole_error"] == pytest.approx(statistics.fmean(errors), rel=1e-4)
    assert numbers["hole_error_std_over_networks"] == pytest.approx(statistics.pstdev(errors), rel=1e-2)
    hits = [hole[0] < float(made[n, k]) < hole[1] for n in range(4) for k in within]
    assert numbers["hole_share_hit"] == pytest.approx(sum(hits) / 20)
    rows = [int((training["validation_loss"] - edge).abs().argmin()) for edge in hole]
    edges = [min((0, 1), key=lambda i: abs(hole[i] - float(prompts[k]))) for k in within]
    expected = training["test_loss"][[rows[i] for i in edges]]
    torch.testing.assert_close(arrays["hole_retrieved"][within], expected)


def test_all_prompts_have_the_same_noise(generator: WeightGenerator, digits: Task, digits_zoo: Zoo) -> None:
    starts = held_out_runs(digits_zoo, generator, 3).theta[:, 0]
    twice = same_prompts(generator, digits, starts, torch.tensor([0.5, 0.5]), seed=3)
    assert torch.equal(twice["test_loss"][:, 0], twice["test_loss"][:, 1])
