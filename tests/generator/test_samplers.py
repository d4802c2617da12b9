"""Samplers: exact on a Gaussian, whose optimal denoiser is known in closed form."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.sampling.diffusion import add_noise, alpha_sigma, timesteps
from generator.sampling.samplers import (
    SAMPLERS,
    Denoise,
    Sampling,
    SamplingChange,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
)

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


def sampled(name: str, x: Tensor, times: Tensor, *, seed: int, denoise: Denoise = optimal) -> Tensor:
    """By any sampler; those that need it are told how uncertain x_0 is."""

    def covariance(t: Tensor) -> Tensor:
        alpha, sigma = path(float(t))
        return torch.full((x.shape[1],), STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2))

    more = {"covariance": covariance} if SAMPLERS[name].covariance else {}
    return SAMPLERS[name].sample(denoise, x, times, rng=rng_of(seed), **more)


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
    ours = sampled(name, x, timesteps(1), seed=0)
    torch.testing.assert_close(ours, torch.full((5, 3), MEAN))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_denoiser_is_asked_once_a_step_at_falling_times(name: str) -> None:
    asked = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        assert x.shape == (5, 3)
        return optimal(x, t)

    x = torch.randn(5, 3, generator=rng_of(0))
    assert sampled(name, x, timesteps(4), seed=0, denoise=denoise).shape == (5, 3)
    assert asked == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("name", SAMPLERS)
def test_randomness_comes_from_rng_alone(name: str) -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    first, again, other = (sampled(name, x, timesteps(6), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in ("ddim", "dpm-solver++"))  # these are deterministic


def test_deterministic_samplers_leave_rng_alone() -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    for sample in (sample_ddim, sample_dpm_solver):
        rng = rng_of(1)
        sample(optimal, x, timesteps(6), rng=rng)
        assert torch.equal(rng.get_state(), rng_of(1).get_state())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_do_not_change_the_noise_they_are_given(name: str) -> None:
    x = torch.randn(5, 3, generator=rng_of(0))
    before = x.clone()
    sampled(name, x, timesteps(3), seed=1)
    assert torch.equal(x, before)


def flow(x: Tensor, t: float, s: float) -> Tensor:
    """Where the probability flow brings x_t at time s: it keeps quantiles of the Gaussian marginals."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path(t), path(s)
    of_t, of_s = (math.sqrt(a**2 * STD**2 + b**2) for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s)))
    return alpha_s * MEAN + of_s / of_t * (x - alpha_t * MEAN)


def test_dpm_solver_is_the_published_recursion() -> None:
    """Algorithm 2 of Lu et al. 2022b, scalar by scalar in double precision."""
    times = [0.95, 0.8, 0.5, 0.3, 0.05]
    expected = []
    for value in (-1.5, 0.0, 2.0):
        lam = [math.log(path(t)[0] / path(t)[1]) for t in times]
        x0 = [MEAN + gain(times[0]) * (value - path(times[0])[0] * MEAN)]
        for i in range(1, len(times)):
            h, (alpha, sigma) = lam[i] - lam[i - 1], path(times[i])
            data = x0[-1]
            if i > 1:
                r = (lam[i - 1] - lam[i - 2]) / h
                data = (1 + 1 / (2 * r)) * x0[-1] - 1 / (2 * r) * x0[-2]
            value = sigma / path(times[i - 1])[1] * value - alpha * (math.exp(-h) - 1) * data
            x0.append(MEAN + gain(times[i]) * (value - alpha * MEAN))
        expected.append(value)
    x = torch.tensor([[-1.5], [0.0], [2.0]])
    ours = sample_dpm_solver(optimal, x, torch.tensor(times), rng=rng_of(0)).flatten()
    # float32 along four steps
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_dpm_solver_converges_with_the_square_of_the_steps() -> None:
    """Between t = 0.8 and 0.2; DDIM, the same of first order, only with the steps."""
    x = torch.tensor([[-1.5], [0.0], [2.0]], dtype=torch.float64)
    errors = {
        sample.__name__: [
            float((sample(optimal, x, times, rng=rng_of(0)) - flow(x, 0.8, 0.2)).abs().max())
            for times in (torch.linspace(0.8, 0.2, steps + 1, dtype=torch.float64) for steps in (20, 40, 80))
        ]
        for sample in (sample_ddim, sample_dpm_solver)
    }
    # ratios of errors at twice the steps: 2 and 4 in the limit
    assert all(1.8 < a / b < 2.2 for a, b in pairwise(errors["sample_ddim"]))
    assert all(3.4 < a / b < 4.6 for a, b in pairwise(errors["sample_dpm_solver"]))
    assert errors["sample_dpm_solver"][0] < 0.1 * errors["sample_ddim"][0]


def test_dpm_solver_goes_all_the_way_from_noise_to_data() -> None:
    """Where the log-SNR is infinite it takes steps of first order, and is not worse than DDIM for it."""
    x = torch.tensor([[-1.5], [0.0], [2.0]], dtype=torch.float64)
    for steps in (2, 3, 5, 20):
        times = timesteps(steps).double()
        by_ddim, ours = (
            sample(optimal, x, times, rng=rng_of(0)) for sample in (sample_ddim, sample_dpm_solver)
        )
        exact = MEAN + STD * x
        assert (ours - exact).abs().max() <= (by_ddim - exact).abs().max() + 1e-9
        if steps == 2:  # both of its steps are of first order
            torch.testing.assert_close(ours, by_ddim)
    assert (ours - exact).abs().max() < 0.5 * (by_ddim - exact).abs().max()


def test_a_sampling_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'euler'; expected one of ddim"):
        Sampling(sampler="euler")
    with pytest.raises(ValueError, match="unknown trajectory 'odd'; expected even or optimal"):
        Sampling(trajectory="odd")
    for kind in (Sampling, SamplingChange):
        with pytest.raises(ValueError, match="sampling steps: got 0, expected at least 1"):
            kind(steps=0)


def test_a_change_says_nothing_of_the_rest() -> None:
    own = Sampling(steps=3, sampler="ddim", trajectory="optimal", guidance=1.5)
    assert own.changed(SamplingChange()) == own
    assert own.changed(SamplingChange(steps=2, guidance=0.0)) == replace(own, steps=2, guidance=0.0)
    assert own.changed(SamplingChange(sampler="ddpm", trajectory="even")) == replace(
        own, sampler="ddpm", trajectory="even"
    )
    assert own.changed(Sampling()) == Sampling()
