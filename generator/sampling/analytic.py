"""Moments: how uncertain a denoiser's clean predictions are, by time and tensor; samplers make noise of it.

Analytic-DPM (Bao et al. 2022) takes it from second moments of the predictions, on data that was trained on:
right where these are the true conditional means. Extended Analytic-DPM (Bao et al. 2022b, imperfect mean)
takes their error itself, on data that was held out: the optimum for the means that the model has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .diffusion import alpha_sigma
from .samplers import Denoise

Kind = Literal["analytic", "extended"]


@dataclass(frozen=True)
class Moments:
    """Variances of the velocity v = alpha eps - sigma x_0 given x_t, means over pairs and within tensors.

    Given x_t, knowing one of x_0, eps and v is knowing all: Cov(x_0 | x_t) = sigma^2 Cov(v | x_t). That of
    the velocity is neither 0 at t = 0 nor a ratio of two numbers near 0 at t = 1, as with the published
    Gamma, (sigma / alpha)^2 (1 - E eps^2), and can be interpolated.
    """

    times: Float[Tensor, " T"]
    """Ascending, the last one where sampling begins."""
    analytic: Float[Tensor, "T G"]
    """From second moments of predictions on training pairs, of each of G tensors."""
    extended: Float[Tensor, "T G"]
    """Mean squared errors of predictions on held-out pairs."""
    sizes: Int[Tensor, " G"]
    """Coordinates of each tensor."""
    held_out_from: int
    """The held-out runs from this id on were measured: an evaluation leaves them out."""

    def tensors(self) -> dict[str, Tensor]:
        """What to store, by name; `from_tensors` is the way back."""
        return {field.name: torch.as_tensor(getattr(self, field.name)).contiguous() for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        given = {name: tensors[name] for name in ("times", "analytic", "extended", "sizes")}
        return cls(**given, held_out_from=int(tensors["held_out_from"]))

    def covariance(self, kind: Kind, t: Float[Tensor, " *N"]) -> Float[Tensor, "*N G"]:
        """Variances of x_0 given x_t at any times; before the first one measured, as of there."""
        values = getattr(self, kind)
        t = t.to(self.times)
        right = torch.searchsorted(self.times, t.contiguous()).clamp(1, len(self.times) - 1)
        share = (t - self.times[right - 1]) / (self.times[right] - self.times[right - 1])
        found = torch.lerp(values[right - 1], values[right], share.clamp(0, 1).unsqueeze(-1))
        return alpha_sigma(t)[1].unsqueeze(-1) ** 2 * found


@torch.no_grad()
def velocity_variances(
    denoise: Denoise, x0: Float[Tensor, "B Z"], t: Float[Tensor, ""], *, rng: torch.Generator
) -> tuple[Float[Tensor, " Z"], Float[Tensor, " Z"]]:
    """(analytic, extended) variances of the velocity given x_t at a time, as means over a batch of data.

    The analytic one is E v^2 - E v_hat^2, which is 1 - E eps_hat^2 of Bao et al. 2022, eq. 9, and
    E x_0^2 - E x_0_hat^2, its like for clean data, weighted so that neither end of the path is singular.
    """
    alpha, sigma = alpha_sigma(t)
    eps = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0)
    x = alpha * x0 + sigma * eps
    predicted = denoise(x, t)
    v, v_hat = alpha * eps - sigma * x0, (alpha * x - predicted) / sigma
    return (v**2 - v_hat**2).mean(0), (v - v_hat).square().mean(0)
