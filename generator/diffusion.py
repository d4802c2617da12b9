"""The diffusion's path from data to noise, in continuous time t in [0, 1]."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def alpha_sigma(t: Float[Tensor, " *B"]) -> tuple[Float[Tensor, " *B"], Float[Tensor, " *B"]]:
    """Variance-preserving cosine path (Nichol and Dhariwal 2021): x_t = alpha x_0 + sigma eps.

    alpha = cos(pi t / 2), sigma = sin(pi t / 2): at t = 1 nothing of the data is left.
    """
    angle = 0.5 * math.pi * t
    return torch.cos(angle).clamp_min(0), torch.sin(angle)


def add_noise(
    x0: Float[Tensor, "B Z"], t: Float[Tensor, " B"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    alpha, sigma = alpha_sigma(t.unsqueeze(-1))
    eps = torch.randn(x0.shape, generator=rng, device=x0.device, dtype=x0.dtype)
    return alpha * x0 + sigma * eps


def training_times(num: int, *, rng: torch.Generator, shift: float = 4.0) -> Float[Tensor, " num"]:
    """Uniform times moved towards noise, t -> shift t / (1 + (shift - 1) t) (Esser et al. 2024).

    Little noise hides little of an update, whose coordinates are many: what is hard is learnt near t = 1.
    """
    t = torch.rand(num, generator=rng)
    return shift * t / (1 + (shift - 1) * t)


def timesteps(num: int) -> Float[Tensor, " {num}+1"]:
    """`num` sampling steps: num + 1 times from 1 down to 0."""
    if num < 1:
        raise ValueError(f"sampling steps: got {num}, expected at least 1")
    return torch.linspace(1, 0, num + 1)
