"""Samplers: exact on a Gaussian, whose optimal denoiser is known in closed form."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.diffusion import add_noise, alpha_sigma, timesteps
from generator.samplers import SAMPLERS, sample_ddim, sample_ddpm

MEAN, STD = 0.7, 0.4


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def path(t: float) -> tuple[float, float]:
    """alpha and sigma, in double precision."""
    return max(math.cos(0.5 * math.pi * t), 0.0), math.sin(0.5 * math.pi * t)


def gain(t: float) -> float:
    """E[x_0 | x_t] = MEAN + gain (x_t - alpha MEAN) for x_0 ~ N(MEAN, STD^2)."""
    alpha, sigma = path(t)
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)


def optimal(x: Tensor, t: Tensor) -> Tensor:
    assert t.ndim == 0
    return MEAN + gain(float(t)) * (x - path(float(t))[0] * MEAN)


def test_the_path_keeps_variance_and_ends_in_noise() -> None:
    alpha, sigma = alpha_sigma(torch.linspace(0, 1, 11))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(11))
    assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (1, 0, 0, 1)
    assert (alpha.diff() < 0).all()


def test_noise_is_added_along_the_path() -> None:
    t = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(20_000)
    x = add_noise(torch.full((60_000, 1), 3.0), t, rng=rng_of(0)).view(3, 20_000)
    for row, time in zip(x, (0.0, 0.5, 1.0), strict=True):
        alpha, sigma = path(time)
        # standard errors of 20,000 draws: .007 and .005; five of them
        assert abs(row.mean() - 3 * alpha) < 0.035
        assert abs(row.std() - sigma) < 0.025
    assert torch.equal(x[0], torch.full((20_000,), 3.0))


def test_timesteps_fall_from_one_to_zero() -> None:
    for num in (1, 2, 7):
        t = timesteps(num)
        assert len(t) == num + 1
        assert (t[0], t[-1]) == (1, 0)
        assert (t.diff() < 0).all()
    with pytest.raises(ValueError, match="sampling steps: got 0"):
        timesteps(0)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_ddim_is_the_deterministic_map_of_the_published_recursion(steps: int) -> None:
    """x_s = alpha_s x_0 + sigma_s eps, scalar by scalar in double precision."""
    x = torch.tensor([[-1.5], [0.0], [2.0]])
    times = timesteps(steps)
    expected = []
    for value in x.flatten().double().tolist():
        for t, s in pairwise(times.tolist()):
            x0 = MEAN + gain(t) * (value - path(t)[0] * MEAN)
            eps = (value - path(t)[0] * x0) / path(t)[1]
            value = path(s)[0] * x0 + path(s)[1] * eps
        expected.append(value)
    ours = sample_ddim(optimal, x, times, rng=rng_of(0)).flatten()
    # float32 along up to 20 steps
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_ddim_with_many_steps_is_the_probability_flow() -> None:
    """The flow keeps quantiles: the noise x of N(0, 1) ends at MEAN + STD x of N(MEAN, STD^2)."""
    x = torch.tensor([[-1.5], [0.0], [2.0]])
    ours = sample_ddim(optimal, x, timesteps(500), rng=rng_of(0))
    # the error of Euler's method, of order 1 / steps: 0.6 % measured with 500 steps
    torch.testing.assert_close(ours, MEAN + STD * x, rtol=0, atol=0.01)


def ddpm_moments(times: list[float]) -> tuple[float, float]:
    """Mean and variance at the end, through q(x_s | x_t, x_0) of Ho et al. 2020, eqs. 6 and 7."""
    mean, variance = 0.0, 1.0
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = path(t), path(s)
        step = alpha_t / alpha_s
        beta = 1 - step**2
        of_x0, of_xt = alpha_s * beta / sigma_t**2, step * sigma_s**2 / sigma_t**2
        slope = of_xt + of_x0 * gain(t)
        mean = slope * mean + of_x0 * MEAN * (1 - gain(t) * alpha_t)
        variance = slope**2 * variance + sigma_s**2 / sigma_t**2 * beta
    return mean, variance


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_ddpm_has_the_mean_and_variance_of_the_published_posterior(steps: int) -> None:
    num = 40_000
    noise = torch.randn(num, 1, generator=rng_of(1))
    x = sample_ddpm(optimal, noise, timesteps(steps), rng=rng_of(2))
    mean, variance = ddpm_moments(timesteps(steps).tolist())
    # standard errors of num draws, five of them; and float32
    assert abs(x.mean() - mean) < 5 * math.sqrt(variance / num) + 1e-5
    assert abs(x.var() - variance) < 5 * variance * math.sqrt(2 / num) + 1e-5


def test_the_variance_of_ddpm_converges_to_the_datas() -> None:
    variances = [ddpm_moments(timesteps(steps).tolist())[1] for steps in (1, 10, 100, 1000)]
    errors = [abs(v - STD**2) for v in variances]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 2e-3  # of order 1 / steps: .013 with 100 steps, .0015 with 1000
    noise = torch.randn(20_000, 1, generator=rng_of(1))
    x = sample_ddpm(optimal, noise, timesteps(200), rng=rng_of(2))
    # bias of 200 steps .007, standard error of 20,000 draws .0016: five of them
    assert abs(float(x.var()) - STD**2) < 0.015
    assert abs(float(x.mean()) - MEAN) < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_what_the_denoiser_says_of_pure_noise(name: str) -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    ours = SAMPLERS[name](optimal, x, timesteps(1), rng=rng_of(0))
    torch.testing.assert_close(ours, torch.full((5, 3), MEAN))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_denoiser_is_asked_once_a_step_at_falling_times(name: str) -> None:
    asked = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        assert x.shape == (5, 3)
        return optimal(x, t)

    x = torch.randn(5, 3, generator=rng_of(0))
    assert SAMPLERS[name](denoise, x, timesteps(4), rng=rng_of(0)).shape == (5, 3)
    assert asked == [1.0, 0.75, 0.5, 0.25]


def test_randomness_comes_from_rng_alone() -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    first, again, other = (sample_ddpm(optimal, x, timesteps(6), rng=rng_of(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rng = rng_of(1)
    sample_ddim(optimal, x, timesteps(6), rng=rng)
    assert torch.equal(rng.get_state(), rng_of(1).get_state())  # DDIM is deterministic


def test_samplers_do_not_change_the_noise_they_are_given() -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    before = x.clone()
    for sample in SAMPLERS.values():
        sample(optimal, x, timesteps(3), rng=rng_of(1))
    assert torch.equal(x, before)
