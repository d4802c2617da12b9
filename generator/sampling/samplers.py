"""Samplers: from noise to data with a denoiser that predicts clean data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .diffusion import alpha_sigma

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, Z), t ()) -> the expected clean x_0 (B, Z)."""
Covariance = Callable[[Tensor], Tensor]
"""t () -> how uncertain x_0 is given x_t, the variance of each coordinate (Z,)."""


def sample_ddim(
    denoise: Denoise, x: Float[Tensor, "B Z"], timesteps: Float[Tensor, " T"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """DDIM, deterministic (Song et al. 2021, eq. 12 with eta = 0)."""
    return _sample(denoise, x, timesteps, eta=0.0, rng=rng)


def sample_ddpm(
    denoise: Denoise, x: Float[Tensor, "B Z"], timesteps: Float[Tensor, " T"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """Ancestral sampling with the posterior variance (Ho et al. 2020), DDIM's eq. 12 with eta = 1."""
    return _sample(denoise, x, timesteps, eta=1.0, rng=rng)


def sample_analytic_ddim(
    denoise: Denoise,
    x: Float[Tensor, "B Z"],
    timesteps: Float[Tensor, " T"],
    *,
    covariance: Covariance,
    rng: torch.Generator,
) -> Float[Tensor, "B Z"]:
    """Analytic-DPM (Bao et al. 2022, eq. 8) on DDIM: the only noise is what x_0 is uncertain by."""
    return _sample(denoise, x, timesteps, eta=0.0, rng=rng, covariance=covariance)


def sample_analytic_ddpm(
    denoise: Denoise,
    x: Float[Tensor, "B Z"],
    timesteps: Float[Tensor, " T"],
    *,
    covariance: Covariance,
    rng: torch.Generator,
) -> Float[Tensor, "B Z"]:
    """Analytic-DPM (Bao et al. 2022, eq. 8) on ancestral sampling.

    Which covariance it is given is what tells the plain form from the extended one: see `Moments`. The last
    step gives the mean, as in the authors' code; nothing else is clamped.
    """
    return _sample(denoise, x, timesteps, eta=1.0, rng=rng, covariance=covariance)


def sample_dpm_solver(
    denoise: Denoise, x: Float[Tensor, "B Z"], timesteps: Float[Tensor, " T"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """DPM-Solver++(2M), deterministic, of second order (Lu et al. 2022b, algorithm 2).

    In the half log-SNR the way from pure noise and the way to clean data are infinitely long: the steps out
    of the one and into the other are of first order, as is usual for the last one.
    """
    before, h_before = x, torch.tensor(torch.inf)
    for t, s in pairwise(timesteps):
        x0 = denoise(x, t.to(x))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        h = (alpha_s.log() - sigma_s.log()) - (alpha_t.log() - sigma_t.log())
        weight = 0.5 * h / h_before if h.isfinite() and h_before.isfinite() else torch.zeros_like(h)
        data = x0 + weight * (x0 - before)
        # alpha_s (1 - exp(-h)), finite for all h
        x = sigma_s / sigma_t * x + (alpha_s - sigma_s * alpha_t / sigma_t) * data
        before, h_before = x0, h
    return x


def sample_published(
    denoise: Denoise, x: Float[Tensor, "B Z"], timesteps: Float[Tensor, " T"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """Ancestral sampling, variance beta in each step ("fixed large"), none in the last (Ho et al. 2020).

    As published along `respaced(1000)`. Along few steps its noise is too large.
    """
    for t, s in pairwise(timesteps.double()):
        x0 = denoise(x, t.to(x))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        ratio = alpha_t / alpha_s
        beta = 1 - ratio**2
        x = alpha_s * beta / sigma_t**2 * x0 + ratio * sigma_s**2 / sigma_t**2 * x  # eq. 7
        if s > 0:
            x = x + beta.sqrt() * torch.randn(x.shape, generator=rng, device=rng.device).to(x)
    return x


def _sample(
    denoise: Denoise,
    x: Tensor,
    timesteps: Tensor,
    *,
    eta: float,
    rng: torch.Generator,
    covariance: Covariance | None = None,
) -> Tensor:
    for t, s in pairwise(timesteps):
        x0 = denoise(x, t.to(x))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        eps = (x - alpha_t * x0) / sigma_t
        # eq. 16: the share of the noise that is drawn anew
        sigma = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).clamp_min(0).sqrt()
        kept = (sigma_s**2 - sigma**2).clamp_min(0).sqrt()
        if covariance is not None and sigma_s > 0:
            sigma = (sigma**2 + (alpha_s - alpha_t * kept / sigma_t) ** 2 * covariance(t).to(x)).sqrt()
        x = alpha_s * x0 + kept * eps
        if eta or covariance is not None:
            x = x + sigma * torch.randn(x.shape, generator=rng, device=rng.device).to(x)
    return x


@dataclass(frozen=True)
class Sampler:
    """A way to sample, and what it has to know beside the denoiser."""

    sample: Callable[..., Tensor]
    """`sample_x(denoise, x, timesteps, *, rng)`, and with `covariance` where it needs one."""
    covariance: Literal["analytic", "extended"] | None = None
    """Which of the `Moments` it takes for the uncertainty of x_0."""


SAMPLERS = {
    "ddim": Sampler(sample_ddim),
    "ddpm": Sampler(sample_ddpm),
    "dpm-solver++": Sampler(sample_dpm_solver),
    "analytic-ddim": Sampler(sample_analytic_ddim, "analytic"),
    "analytic-ddpm": Sampler(sample_analytic_ddpm, "analytic"),
    "extended-ddim": Sampler(sample_analytic_ddim, "extended"),
    "extended-ddpm": Sampler(sample_analytic_ddpm, "extended"),
    "published": Sampler(sample_published),
}
SamplerName = Literal[
    "ddim",
    "ddpm",
    "dpm-solver++",
    "analytic-ddim",
    "analytic-ddpm",
    "extended-ddim",
    "extended-ddpm",
    "published",
]
"""For the commands' choices; the keys of SAMPLERS."""
Trajectory = Literal["even", "optimal"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How networks are sampled."""

    steps: int = 10
    """Sampling steps, evaluations of the model. One gives the mean of the networks that fit, always the same;
    many give samples."""
    sampler: str = "ddpm"
    """Ancestral (ddpm) or deterministic (ddim) sampling, and the others of SAMPLERS."""
    trajectory: str = "even"
    """Where the steps are: even in time, or optimal by what the model misses (`optimal_trajectory`)."""
    guidance: float = 1.0
    """How far prompts are followed, 1 as the model says. Others need a generator that was trained with prompt
    dropout, and cost two evaluations a step (classifier-free guidance, Ho and Salimans 2022)."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; expected one of {', '.join(SAMPLERS)}")
        if self.trajectory not in ("even", "optimal"):
            raise ValueError(f"unknown trajectory {self.trajectory!r}; expected even or optimal")
        if self.steps < 1:
            raise ValueError(f"sampling steps: got {self.steps}, expected at least 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance is {self.guidance}; expected a finite number, 1 for none")

    @property
    def needs_moments(self) -> bool:
        """Whether a generator has to know how uncertain its predictions are."""
        return SAMPLERS[self.sampler].covariance is not None or self.trajectory == "optimal"

    def changed(self, by: "SamplingChange | Sampling") -> "Sampling":
        """With all that the other one says."""
        return replace(self, **{name: value for name, value in vars(by).items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class SamplingChange:
    """Another sampling than the generator's own, with which its prompts are not calibrated."""

    steps: int | None = None
    """Sampling steps of an update; default the generator's own."""
    sampler: SamplerName | None = None
    """Ancestral (ddpm), deterministic (ddim, dpm-solver++) or analytic sampling (after `theta moments`);
    default the generator's own."""
    trajectory: Trajectory | None = None
    """Steps even in time, or optimal by what the model misses (after `theta moments`); default the
    generator's own."""
    guidance: float | None = None
    """How far prompts are followed, 1 as the model says; others need a generator that was trained with
    --prompt-dropout. Default the generator's own."""

    def __post_init__(self) -> None:
        Sampling().changed(self)  # refuses what no generator is sampled by
