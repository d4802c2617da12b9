"""Analytic samplers: exact on Gaussians in any number of steps, and the optimum for a biased mean.

Data are N(MEAN, STD^2) in three independent coordinates, whose conditional mean and covariance given x_t are
known; all moments below are closed forms in double precision.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from generator.sampling.analytic import Moments, velocity_variances
from generator.sampling.diffusion import alpha_sigma, timesteps
from generator.sampling.samplers import (
    SAMPLERS,
    Covariance,
    Denoise,
    sample_analytic_ddim,
    sample_analytic_ddpm,
    sample_ddim,
    sample_ddpm,
)

ETAS = {"ddim": 0.0, "ddpm": 1.0}
SAMPLES = {"ddim": sample_analytic_ddim, "ddpm": sample_analytic_ddpm}
NUM = 40_000
MEAN = torch.tensor([0.7, -1.0, 0.2], dtype=torch.float64)
ANISOTROPIC = torch.tensor([0.05, 0.4, 1.5], dtype=torch.float64)
ISOTROPIC = torch.full((3,), 0.4, dtype=torch.float64)


def rng_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int) -> Tensor:
    return torch.randn(NUM, 3, generator=rng_of(seed), dtype=torch.float64)


def denoiser(std: Tensor, *, bias: float = 0.0, share: float = 1.0) -> Denoise:
    """The conditional mean of x_0; with a bias, or with a share of what x_t says only."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(t.double())
        gain = share * alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return MEAN + bias + gain * (x - alpha * MEAN)

    return denoise


def covariance(std: Tensor) -> Covariance:
    def of(t: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(t.double())
        return std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)

    return of


def check_variance(x: Tensor, expected: Tensor) -> None:
    # standard error of a variance of NUM draws, five of them
    assert ((x.var(0) - expected).abs() < 5 * expected * math.sqrt(2 / NUM)).all()


@pytest.mark.parametrize("std", [ISOTROPIC, ANISOTROPIC], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_x_t_has_the_datas_mean_and_variance(name: str, steps: int, std: Tensor) -> None:
    """For the noise left out of the last step alone the end has less: it is the mean given the x_t before."""
    times = timesteps(steps).double()
    for stop in range(2, steps + 1):
        x = SAMPLES[name](denoiser(std), noise(1), times[:stop], covariance=covariance(std), rng=rng_of(stop))
        alpha, sigma = alpha_sigma(times[stop - 1])
        variance = alpha**2 * std**2 + sigma**2
        assert ((x.mean(0) - alpha * MEAN).abs() < 5 * (variance / NUM).sqrt()).all()
        check_variance(x, variance)
    end = SAMPLES[name](denoiser(std), noise(1), times, covariance=covariance(std), rng=rng_of(0))
    check_variance(end, std**2 - covariance(std)(times[-2]))


def test_without_it_few_steps_lose_variance() -> None:
    times = timesteps(4).double()[:-1]
    alpha, sigma = alpha_sigma(times[-1])
    wanted = alpha**2 * ISOTROPIC**2 + sigma**2
    for sample in (sample_ddim, sample_ddpm):
        assert (sample(denoiser(ISOTROPIC), noise(1), times, rng=rng_of(0)).var(0) < 0.9 * wanted).all()


@pytest.mark.parametrize("name", SAMPLES)
def test_one_covariance_for_all_coordinates_is_wrong_where_they_differ(name: str) -> None:
    times = timesteps(4).double()[:-1]
    alpha, sigma = alpha_sigma(times[-1])
    wanted = alpha**2 * ANISOTROPIC**2 + sigma**2

    def pooled(t: Tensor) -> Tensor:
        return covariance(ANISOTROPIC)(t).mean().expand(3)

    x = SAMPLES[name](denoiser(ANISOTROPIC), noise(1), times, covariance=pooled, rng=rng_of(0))
    assert x.var(0)[0] > 1.2 * wanted[0]
    assert x.var(0)[2] < 0.85 * wanted[2]


@pytest.mark.parametrize("t", [0.02, 0.3, 0.8, 1.0])
def test_both_variances_are_the_conditional_one_where_the_mean_is_right(t: float) -> None:
    time, x0 = torch.tensor(t, dtype=torch.float64), MEAN + ANISOTROPIC * noise(3)
    alpha, sigma = alpha_sigma(time)
    for found in velocity_variances(denoiser(ANISOTROPIC), x0, time, rng=rng_of(4)):
        # ten standard errors of NUM draws of a difference of squares of order 1
        assert (
            (sigma**2 * found - covariance(ANISOTROPIC)(time)).abs() < 10 * sigma**2 / math.sqrt(NUM)
        ).all()
    if t < 1:  # Gamma of Bao et al. 2022 in closed form: eps_hat = sigma (x - alpha MEAN) / Var x
        gamma = sigma**2 / (alpha**2 * ANISOTROPIC**2 + sigma**2)
        published = sigma**2 / alpha**2 * (1 - gamma)
        torch.testing.assert_close(published, covariance(ANISOTROPIC)(time))


@pytest.mark.parametrize("wrong", [{"bias": 0.3}, {"share": 0.2}], ids=["biased", "blunt"])
@pytest.mark.parametrize("name", SAMPLES)
def test_extended_has_the_likeliest_noise_for_a_wrong_mean_and_plain_has_not(name: str, wrong: dict) -> None:
    """Of x_s given x_t, with x_0 of the data and x_s of q(x_s | x_t, x_0), the forward process."""
    t, s = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    lam = ETAS[name] * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
    x0, eps = MEAN + ISOTROPIC * noise(5), noise(6)
    x_t = alpha_t * x0 + sigma_t * eps
    x_s = alpha_s * x0 + (sigma_s**2 - lam**2).sqrt() * eps + lam * noise(7)
    denoise = denoiser(ISOTROPIC, **wrong)
    mean = _mean(denoise, x_t, t, s, lam)
    likeliest = (x_s - mean).square().mean(0)
    made = {}
    for kind, values in zip(
        ("analytic", "extended"), velocity_variances(denoise, x0, t, rng=rng_of(8)), strict=True
    ):
        known = sigma_t**2 * values.clamp_min(0)
        x = SAMPLES[name](
            denoise, x_t, torch.stack([t, s]), covariance=lambda t, known=known: known, rng=rng_of(9)
        )
        made[kind] = (x - mean).square().mean(0)
    # the likeliest, the extended variance and what is drawn with it each have a standard error of .7 %
    torch.testing.assert_close(made["extended"], likeliest, rtol=0.05, atol=0)
    # half of it, or twice, where the bias has the sign of the mean or not; blunt ones lack about a tenth
    assert ((made["analytic"] / likeliest - 1).abs() > 0.06).all()


def _mean(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, lam: Tensor) -> Tensor:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    x0 = denoise(x, t)
    return alpha_s * x0 + (sigma_s**2 - lam**2).sqrt() * (x - alpha_t * x0) / sigma_t


@pytest.mark.parametrize("name", SAMPLES)
def test_moments_along_a_trajectory_of_a_biased_mean(name: str) -> None:
    """The recursion coordinate by coordinate, with the covariance of the biased mean: that given x_t plus
    the bias squared."""
    bias, times = 0.3, timesteps(5).double()
    denoise = denoiser(ANISOTROPIC, bias=bias)

    def extended(t: Tensor) -> Tensor:
        return covariance(ANISOTROPIC)(t) + bias**2

    x = SAMPLES[name](denoise, noise(1), times, covariance=extended, rng=rng_of(2))
    for z in range(3):
        mean, variance = 0.0, 1.0
        m, v = float(MEAN[z]), float(ANISOTROPIC[z]) ** 2
        for t, s in pairwise(times.tolist()):
            (a, b), (c, d) = _path(t), _path(s)
            lam2 = ETAS[name] * d**2 / b**2 * (1 - (a / c) ** 2)
            kept = math.sqrt(d**2 - lam2)
            gain = a * v / (a**2 * v + b**2)
            slope = c * gain + kept * (1 - a * gain) / b
            offset = (c - kept * a / b) * (m + bias - gain * a * m)
            more = lam2 + (c - kept * a / b) ** 2 * (v * b**2 / (a**2 * v + b**2) + bias**2)
            mean, variance = slope * mean + offset, slope**2 * variance + (more if s else 0.0)
        # standard errors of NUM draws, five of them
        assert abs(x[:, z].mean() - mean) < 5 * math.sqrt(variance / NUM)
        assert abs(x[:, z].var() - variance) < 5 * variance * math.sqrt(2 / NUM)


def _path(t: float) -> tuple[float, float]:
    return (0.0, 1.0) if t == 1 else (math.cos(0.5 * math.pi * t), math.sin(0.5 * math.pi * t))


def test_moments_interpolate_between_times_and_keep_the_first_before_them() -> None:
    times = torch.tensor([0.25, 0.5, 1.0])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]])
    moments = Moments(times, values, 2 * values, torch.tensor([3, 4]), 7)
    t = torch.tensor([0.0, 0.1, 0.25, 0.375, 0.75, 1.0])
    expected = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [2.0, 3.0], [4.0, 6.0], [5.0, 8.0]])
    expected = torch.sin(0.5 * math.pi * t).unsqueeze(1) ** 2 * expected
    torch.testing.assert_close(moments.covariance("analytic", t), expected)
    torch.testing.assert_close(moments.covariance("extended", t), 2 * expected)
    assert moments.covariance("analytic", torch.tensor(0.5)).shape == (2,)


def test_samplers_that_need_moments_say_which() -> None:
    kinds = {name: sampler.covariance for name, sampler in SAMPLERS.items() if sampler.covariance}
    assert kinds == {f"{kind}-{sampler}": kind for kind in ("analytic", "extended") for sampler in ETAS}
