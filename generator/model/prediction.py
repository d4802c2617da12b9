"""What output layers predict, and how the errors of their predictions are weighed.

All of it is a choice of the loss and of what the output layers have to say, not of the denoiser: knowing one
of x_0, eps and v, given x_t, is knowing all.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..sampling.diffusion import PathName, alpha_sigma

PredictionName = Literal["clean", "v", "noise"]
WeightingName = Literal["none", "min-snr"]
LEAST_ALPHA = 6.35e-3
"""Predicted noise says nothing of the data where alpha is 0: it is read as if alpha were this, that of the
last published step, beyond it."""
LEAST_SIGMA = 1e-4
GAMMA = 5.0
"""The signal-to-noise ratio that min-SNR cuts off at (Hang et al. 2023)."""


def clean_update(
    prediction: PredictionName,
    path: PathName,
    out: Float[Tensor, "B Z"],
    u_t: Float[Tensor, "B Z"],
    t: Float[Tensor, " B"],
) -> Float[Tensor, "B Z"]:
    """The clean update that an output means.

    v is the velocity of the path: alpha eps - sigma u_0 (Salimans and Ho 2022), and eps - u_0 of flow
    matching (Lipman et al. 2023) on the path "flow".
    """
    if prediction == "clean":
        return out
    alpha, sigma = alpha_sigma(t.unsqueeze(1))
    if prediction == "noise":
        return (u_t - sigma * out) / alpha.clamp_min(LEAST_ALPHA)
    if path == "flow":
        return (u_t - sigma * out) / (alpha + sigma)
    return alpha * u_t - sigma * out


def error_scale(
    prediction: PredictionName, path: PathName, weighting: WeightingName, t: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """What errors of the clean update are multiplied by before they are squared.

    Without a weighting it makes them errors of what is predicted: of noise alpha / sigma times as large, of v
    1 / sigma, on the path "flow" (alpha + sigma) / sigma. min-SNR weighs squared errors of clean updates by
    min(SNR, 5), of noise by min(SNR, 5) / SNR, of v by min(SNR, 5) / (SNR + 1) (Hang et al. 2023, sec. 3.4),
    which is the same weight of the clean update for all of them.
    """
    alpha, sigma = alpha_sigma(t)
    sigma = sigma.clamp_min(LEAST_SIGMA)
    if weighting == "min-snr":
        return (alpha / sigma).clamp_max(GAMMA**0.5)
    if prediction == "clean":
        return torch.ones_like(t)
    if prediction == "noise":
        return alpha.clamp_min(LEAST_ALPHA) / sigma
    return (alpha + sigma) / sigma if path == "flow" else 1 / sigma
