"""Latent walks: a loop of noises, and nothing else changes."""

import math
from dataclasses import replace

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation.evaluate import held_out_runs
from generator.evaluation.walk import circle, latent_walk, spread
from generator.sampling.samplers import Sampling


def test_the_loop_is_closed_even_and_as_likely_everywhere() -> None:
    noise = circle(20_000, 12, rng=seeded(0))
    following = torch.cosine_similarity(noise, noise.roll(-1, 0))
    # 20,000 normal numbers: inner products of independent ones are within 4 / sqrt(20,000) = 0.03 of 0
    torch.testing.assert_close(following, torch.full((12,), math.cos(2 * math.pi / 12)), atol=0.03, rtol=0)
    torch.testing.assert_close(noise.std(1), torch.ones(12), atol=0.03, rtol=0)
    torch.testing.assert_close(noise[6], -noise[0], atol=1e-4, rtol=0)  # float32 sines of pi


def test_an_update_begins_with_the_noise_it_is_given(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo
) -> None:
    theta = held_out_runs(digits_zoo, generator, 2).theta[:, 0]
    metric = digits.evaluate(theta, "validation")["loss"]
    noise = torch.randn(2, generator.coordinates.Z, generator=seeded(5))
    given = generator.update(theta, metric, 0.5, rng=seeded(9), steps=3, sampler="ddim", noise=noise)
    drawn = generator.update(theta, metric, 0.5, rng=seeded(5), steps=3, sampler="ddim")
    assert torch.equal(given, drawn)


@pytest.mark.parametrize(("steps", "walked"), [(1, 20), (4, 4)])
def test_a_walk_is_sampled_in_steps_that_heed_the_noise(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo, steps: int, walked: int
) -> None:
    own = replace(generator, sampling=Sampling(steps=steps, sampler="ddim"))
    theta = held_out_runs(digits_zoo, generator, 1).theta[0, 0]
    numbers, arrays = latent_walk(own, digits, theta, frames=4, prompt=0.5, seed=0)
    assert numbers["walk_steps"] == walked
    assert (numbers["walk_spread_own"] is not None) == (steps == 1)
    assert torch.equal(arrays["walk_start"], theta)
    metric = digits.evaluate(theta.unsqueeze(0), "validation")["loss"]
    noise = circle(generator.coordinates.Z, 4, rng=seeded(0))
    third = generator.update(
        theta.unsqueeze(0), metric, 0.5, rng=seeded(1), steps=walked, sampler="ddim", noise=noise[2:3]
    )
    # one network or four in the products of the model: float32 rounding, 20 steps of it
    torch.testing.assert_close(arrays["walk_theta"][2:3], third, rtol=1e-3, atol=1e-4)
    errors = arrays["walk_test_error"]
    assert numbers["walk_test_error_least"] == float(errors.min())
    assert numbers["walk_test_error_most"] == float(errors.max())


def test_spread_by_hand() -> None:
    made = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    # 1 from their mean, sqrt(2) from the start
    assert spread(made, torch.tensor([0.0, 1.0])) == pytest.approx(0.5**0.5)
