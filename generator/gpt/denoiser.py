"""The published transformer as a denoiser among others: its units, its times, its conditioning."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..chunk_dit import CHUNK
from ..conditioning import MetricView, Scaling
from ..coordinates import Coordinates
from ..diffusion import alpha_sigma
from ..dit import Denoiser, DiTConfig
from ..pairs import Reservoir
from .config import GptConfig
from .model import Gpt
from .schedule import draw_step_times, respaced, step_of

TARGET_STD = 0.538
"""Standard deviation of all numbers of normalised networks."""
STD_CHECKPOINTS = 25_000
"""Checkpoints that it is measured on."""


def published_scaling(coefficient: float, size: int, metric_range: tuple[float, float]) -> Scaling:
    """Networks times one coefficient, neither centred nor scaled by tensors; metrics raw."""
    scale = torch.full((size,), 1 / coefficient)
    return Scaling(
        start_mean=torch.zeros(size),
        start_scale=scale,
        update_scale=scale.clone(),
        views=(MetricView(range=metric_range, log=False),),
    )


def fit_published_scaling(
    coordinates: Coordinates,
    reservoir: Reservoir,
    seen: Float[Tensor, "C 1"],
    objectives: Sequence[str],
    *,
    rng: torch.Generator,
) -> Scaling:
    """The published coefficient of a zoo: TARGET_STD over the standard deviation of all its numbers."""
    std = float(reservoir.checkpoints(STD_CHECKPOINTS, rng=rng).std().clamp_min(1e-8))
    return published_scaling(TARGET_STD / std, coordinates.Z, (float(seen.min()), float(seen.max())))


class GptDenoiser(Denoiser):
    """Gpt behind the interface of updates.

    With the published scaling, updates and start networks have one unit, so that the noised network that Gpt
    wants is the noised update plus alpha times the start network, and its difference is the clean update.
    """

    def __init__(self, coordinates: Coordinates, config: DiTConfig):
        super().__init__(config)
        self.gpt = Gpt(
            GptConfig(
                sizes=coordinates.reduced.spec.sizes,
                chunk=config.chunk or CHUNK,
                width=config.width,
                depth=config.depth,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
            )
        )
        self.register_buffer("order", coordinates.order, persistent=False)
        self.register_buffer("back", coordinates.order.argsort(), persistent=False)

    def training_times(self, num: int, *, rng: torch.Generator) -> Float[Tensor, " num"]:
        return draw_step_times(num, rng=rng)

    def timesteps(self, num: int) -> Float[Tensor, " {num}+1"]:
        return respaced(num)

    def forward(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B 4"],
    ) -> Float[Tensor, "B Z"]:
        order = self.get_buffer("order")
        noised = u_t + alpha_sigma(t)[0].unsqueeze(1) * start
        was, wanted = metrics[:, 0], metrics[:, 2]
        step = step_of(t).to(start)
        difference = self.gpt.difference(noised[:, order], step, start[:, order], was, wanted)
        return difference[:, self.get_buffer("back")]
