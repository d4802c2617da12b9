"""Samplers: from noise to data with a denoiser that predicts clean data."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .diffusion import alpha_sigma

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, Z), t ()) -> the expected clean x_0 (B, Z)."""


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


def _sample(denoise: Denoise, x: Tensor, timesteps: Tensor, *, eta: float, rng: torch.Generator) -> Tensor:
    for t, s in pairwise(timesteps):
        x0 = denoise(x, t.to(x))
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
        eps = (x - alpha_t * x0) / sigma_t
        # eq. 16: the share of the noise that is drawn anew
        sigma = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).clamp_min(0).sqrt()
        x = alpha_s * x0 + (sigma_s**2 - sigma**2).clamp_min(0).sqrt() * eps
        if eta:
            x = x + sigma * torch.randn(x.shape, generator=rng, device=rng.device).to(x)
    return x


SAMPLERS = {"ddim": sample_ddim, "ddpm": sample_ddpm}
SamplerName = Literal["ddim", "ddpm"]
"""For the commands' choices; the keys of SAMPLERS."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How networks are sampled."""

    steps: int = 10
    """Sampling steps, evaluations of the model. One gives the mean of the networks that fit, always the same;
    many give samples."""
    sampler: str = "ddpm"
    """Ancestral (ddpm) or deterministic (ddim) sampling."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; expected one of {', '.join(SAMPLERS)}")
        if self.steps < 1:
            raise ValueError(f"sampling steps: got {self.steps}, expected at least 1")

    def changed(self, steps: int | None, sampler: str | None) -> "Sampling":
        """With other steps or another sampler, where they are given."""
        return Sampling(steps=self.steps if steps is None else steps, sampler=sampler or self.sampler)
