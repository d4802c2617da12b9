"""Samplers on Gaussians: mean and covariance after K steps are those of the published recursions.

Data are N(MEAN, cov) and their denoiser is affine, so that every step is an affine map of what came before
plus independent noise. The moments of its end are followed here in double precision, by matrices, from the
papers' formulas; nothing of the samplers' code is used.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from generator.sampling.diffusion import timesteps
from generator.sampling.samplers import SAMPLERS, Denoise

DETERMINISTIC = ("ddim", "dpm-solver++")
NUM = 40_000
MEAN = torch.tensor([0.7, -1.0, 0.2], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
TURN = torch.linalg.qr(torch.tensor([[1.0, 2, 0], [0, 1, 1], [2, 0, 1]], dtype=torch.float64)).Q
COVARIANCES = {
    "isotropic": 0.16 * EYE,
    "anisotropic": torch.diag(torch.tensor([0.0025, 0.16, 2.25], dtype=torch.float64)),
    "correlated": TURN @ torch.diag(torch.tensor([0.0025, 0.16, 2.25], dtype=torch.float64)) @ TURN.mT,
}

Step = tuple[float, float, float, float]
"""What x_s has of x_t, of the predicted x_0, of the one predicted before, and its noise's variance."""


def path(t: float) -> tuple[float, float]:
    """alpha and sigma; nothing of the data is left at 1, and no noise at 0."""
    return (0.0 if t == 1 else math.cos(0.5 * math.pi * t)), math.sin(0.5 * math.pi * t)


def conditional_mean(cov: Tensor, bias: float, t: float) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t] = offset + gain x_t, with a bias."""
    alpha, sigma = path(t)
    gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * EYE)
    return MEAN + bias - alpha * gain @ MEAN, gain


def ddim(t: float, s: float, before: float | None) -> Step:
    """Song et al. 2021, eq. 12: x_s = alpha_s x_0 + sigma_s eps, eps = (x_t - alpha_t x_0) / sigma_t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = path(t), path(s)
    return sigma_s / sigma_t, alpha_s - sigma_s * alpha_t / sigma_t, 0.0, 0.0


def ddpm(t: float, s: float, before: float | None) -> Step:
    """q(x_s | x_t, x_0) by Bayes' rule, of x_s ~ N(alpha_s x_0, sigma_s^2) and x_t ~ N(a x_s, 1 - a^2)."""
    alpha_s, sigma_s = path(s)
    if s == 0:
        return 0.0, 1.0, 0.0, 0.0
    a = path(t)[0] / alpha_s
    variance = 1 / (1 / sigma_s**2 + a**2 / (1 - a**2))
    return variance * a / (1 - a**2), variance * alpha_s / sigma_s**2, 0.0, variance


def published(t: float, s: float, before: float | None) -> Step:
    """The same mean with the variance beta = 1 - a^2, "fixed large" (Ho et al. 2020, section 3.2)."""
    of_x, of_x0, _, _ = ddpm(t, s, before)
    return of_x, of_x0, 0.0, 0.0 if s == 0 else 1 - (path(t)[0] / path(s)[0]) ** 2


def dpm_solver(t: float, s: float, before: float | None) -> Step:
    """Lu et al. 2022b, algorithm 2, with r = h_before / h; of first order where a log-SNR is infinite."""

    def log_snr(time: float) -> float:
        alpha, sigma = path(time)
        return -math.inf if alpha == 0 else math.inf if sigma == 0 else math.log(alpha / sigma)

    h = log_snr(s) - log_snr(t)
    h_before = math.inf if before is None else log_snr(t) - log_snr(before)
    share = 0.0 if math.isinf(h) or math.isinf(h_before) else h / (2 * h_before)  # 1 / (2 r)
    of_data = -path(s)[0] * math.expm1(-h)
    return path(s)[1] / path(t)[1], of_data * (1 + share), -of_data * share, 0.0


STEPS: dict[str, Callable[[float, float, float | None], Step]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "dpm-solver++": dpm_solver,
    "published": published,
}


def moments(name: str, times: list[float], cov: Tensor, bias: float) -> tuple[Tensor, Tensor]:
    """Of x at the last time, from N(0, 1) at the first: of it and the prediction before it, side by side."""
    zeros = torch.zeros_like(EYE)
    mean = torch.zeros(6, dtype=torch.float64)
    spread = torch.block_diag(EYE, zeros)
    before = None
    for t, s in pairwise(times):
        of_x, of_x0, of_former, variance = STEPS[name](t, s, before)
        offset, gain = conditional_mean(cov, bias, t)
        turn = torch.cat(
            [torch.cat([of_x * EYE + of_x0 * gain, of_former * EYE], 1), torch.cat([gain, zeros], 1)]
        )
        mean = turn @ mean + torch.cat([of_x0 * offset, offset])
        spread = turn @ spread @ turn.mT + torch.block_diag(variance * EYE, zeros)
        before = t
    return mean[:3], spread[:3, :3]


def denoiser(cov: Tensor, bias: float) -> Denoise:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        offset, gain = conditional_mean(cov, bias, float(t))
        return offset + x @ gain.mT

    return denoise


def whitened(seed: int) -> Tensor:
    """Noise whose mean is 0 and whose covariance is 1 exactly, so that an affine map of it has no luck."""
    x = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.mT, upper=False).mT


@pytest.mark.parametrize("bias", [0.0, 0.3], ids=["unbiased", "biased"])
@pytest.mark.parametrize("kind", COVARIANCES)
@pytest.mark.parametrize("steps", [2, 5, 10])
@pytest.mark.parametrize("name", STEPS)
def test_mean_and_covariance_are_those_of_the_published_recursion(
    name: str, steps: int, kind: str, bias: float
) -> None:
    """At the end and before the last step, which takes noise away."""
    cov, times = COVARIANCES[kind], timesteps(steps)
    for stop in (steps, steps + 1):
        rng = torch.Generator().manual_seed(stop)
        x = SAMPLERS[name].sample(denoiser(cov, bias), whitened(1), times[:stop], rng=rng)
        mean, spread = moments(name, times[:stop].tolist(), cov, bias)
        variances = spread.diagonal()
        if name in DETERMINISTIC:
            close = 1e-5 * (1 + variances.max())  # times are float32
            mean_close, spread_close = close.expand(3), close.expand(3, 3)
        else:  # standard errors of NUM draws, five of them, and float32
            mean_close = 5 * (variances / NUM).sqrt() + 1e-5
            spread_close = 5 * ((torch.outer(variances, variances) + spread**2) / NUM).sqrt() + 1e-5
        assert ((x.mean(0) - mean).abs() < mean_close).all()
        assert ((x.T.cov() - spread).abs() < spread_close).all()


def test_every_sampler_is_checked() -> None:
    """Here, or with the uncertainty that it needs."""
    assert set(STEPS) == {name for name, sampler in SAMPLERS.items() if sampler.covariance is None}


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm-solver++"])
def test_the_recursions_converge_to_the_data(name: str) -> None:
    """And with a bias to data about another mean: what a wrong prediction costs, and no sampler mends."""
    cov = COVARIANCES["correlated"]
    errors = []
    for steps in (20, 80, 320):
        mean, spread = moments(name, timesteps(steps).tolist(), cov, 0.0)
        torch.testing.assert_close(mean, MEAN, rtol=0, atol=5e-2)
        errors.append(float((spread - cov).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03  # .024 of ddpm, of variances up to 2.25
    biased, _ = moments(name, timesteps(320).tolist(), cov, 0.3)
    assert ((biased - MEAN).abs() > 0.3).any()
