"""The diffusion's path from data to noise, in continuous time t in [0, 1], and the times along it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .linear_schedule import draw_step_times, respaced

PathName = Literal["cosine", "linear", "flow"]


def alpha_sigma(t: Float[Tensor, " *B"]) -> tuple[Float[Tensor, " *B"], Float[Tensor, " *B"]]:
    """Variance-preserving cosine path (Nichol and Dhariwal 2021): x_t = alpha x_0 + sigma eps.

    alpha = cos(pi t / 2), sigma = sin(pi t / 2): at t = 1 nothing of the data is left.
    """
    angle = 0.5 * math.pi * t
    return torch.cos(angle).clamp_min(0), torch.sin(angle)


def add_noise(
    x0: Float[Tensor, "B Z"], t: Float[Tensor, " B"], *, rng: torch.Generator
) -> Float[Tensor, "B Z"]:
    """x_t of clean data at times on its device; the noise is drawn where the generator is."""
    alpha, sigma = alpha_sigma(t.unsqueeze(-1))
    eps = torch.randn(x0.shape, generator=rng, device=rng.device, dtype=x0.dtype).to(x0.device)
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


def flow_time(s: Float[Tensor, " *B"]) -> Float[Tensor, " *B"]:
    """The time t at which data and noise are mixed as 1 - s to s, the straight path of flow matching."""
    return (torch.atan2(s.double(), 1 - s.double()) * (2 / math.pi)).float()


@dataclass(frozen=True)
class Times:
    """A path as what it is here: a distribution of training times, and times to sample along.

    Every path alpha x_0 + sigma eps, divided by (alpha^2 + sigma^2)^(1/2), runs through the points of the
    cosine path, in another time (Kingma et al. 2021): the denoiser sees the same noised updates and the same
    t, and paths differ in how often and where. linear: the published 1,000 steps (Ho et al. 2020). flow:
    alpha = 1 - s, sigma = s (Lipman et al. 2023), s drawn and spaced as t is on the cosine path.
    """

    path: PathName = "cosine"
    shift: float = 4.0
    """Of training times towards noise, see `training_times`; 1 draws uniform ones, or uniform steps."""

    def training(self, num: int, *, rng: torch.Generator) -> Float[Tensor, " num"]:
        """Times at which a model is trained."""
        if self.path == "linear":
            return draw_step_times(num, rng=rng, shift=self.shift)
        times = training_times(num, rng=rng, shift=self.shift)
        return flow_time(times) if self.path == "flow" else times

    def sampling(self, num: int) -> Float[Tensor, " {num}+1"]:
        """Times along which a model is sampled in `num` steps, from noise down to 0."""
        if self.path == "linear":
            return respaced(num)
        return flow_time(timesteps(num)) if self.path == "flow" else timesteps(num)
