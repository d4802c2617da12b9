"""Scaling: the units in which the denoiser sees networks, updates and metrics."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from .coordinates import Coordinates
from .pairs import Pairs

BEST_BAND = 0.02
"""Share of the metric's range below which distances to the best one look alike."""


@dataclass(frozen=True)
class Scaling:
    """Per-tensor scales of start networks and of updates, and the metric's range.

    The denoiser predicts (z* - z_start) / update_scale, an update of unit size; a scale is one number for
    each parameter tensor, a layer's weight and bias sharing theirs where they are function-space coordinates.
    """

    start_mean: Float[Tensor, " Z"]
    start_scale: Float[Tensor, " Z"]
    update_scale: Float[Tensor, " Z"]
    metric_range: tuple[float, float]
    """Smallest and largest metric of all training checkpoints."""
    log_metric: bool
    """Whether the metric's logarithm is a second view of it: of losses, where all of them are positive."""
    metric_moments: tuple[float, float, float, float]
    """Mean and standard deviation of the metric, and of its second view."""
    from_best: bool = False
    """Whether the second view is the logarithm of the distance to the best metric, for returns."""

    @classmethod
    def fit(
        cls, coordinates: Coordinates, pairs: Pairs, seen: Float[Tensor, " C"], objective: str = "min"
    ) -> "Scaling":
        """Scales from a sample of training pairs; `seen` are the metrics of all training checkpoints."""
        update = pairs.target - pairs.start
        start_mean, start_scale, update_scale = (torch.zeros(coordinates.Z) for _ in range(3))
        groups: dict[str, list[Tensor]] = {}
        for name, index in coordinates.slots():
            layer = name.rpartition(".")[0]
            groups.setdefault(layer if layer in coordinates.layers else name, []).append(index)
        for indices in groups.values():
            index = torch.cat(indices)
            start_mean[index] = pairs.start[:, index].mean()
            start_scale[index] = pairs.start[:, index].std().clamp_min(1e-8)
            update_scale[index] = update[:, index].square().mean().sqrt().clamp_min(1e-8)
        metric = torch.cat([pairs.start_metric, pairs.prompt])
        found = cls(
            start_mean,
            start_scale,
            update_scale,
            (float(seen.min()), float(seen.max())),
            objective == "min" and bool((metric > 0).all()),
            (0.0, 1.0, 0.0, 1.0),
            objective == "max",
        )
        first, second = found.metric(metric).unbind(1)
        moments = (
            x for view in (first, second) for x in (float(view.mean()), float(view.std().clamp_min(1e-8)))
        )
        return replace(found, metric_moments=tuple(moments))  # pyright: ignore[reportArgumentType]

    def start(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (z - self.start_mean.to(z)) / self.start_scale.to(z)

    def update(self, start: Float[Tensor, "B Z"], target: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (target - start) / self.update_scale.to(start)

    def unscale_update(self, u: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return u * self.update_scale.to(u)

    def metric(self, value: Float[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        """Standardised metric and a second view of it: the one tells bad ones apart, the other good ones."""
        mean, std, other_mean, other_std = self.metric_moments
        low, high = self.metric_range
        other = torch.zeros_like(value)
        if self.log_metric:
            other = value.clamp_min(max(low, 1e-6) / 10).log()
        elif self.from_best:  # rising with the metric, too; many returns are the best there is
            other = -((high - value).clamp_min(0) + BEST_BAND * max(high - low, 1e-6)).log()
        return torch.stack([(value - mean) / std, (other - other_mean) / other_std], -1)


@dataclass(frozen=True)
class Calibration:
    """The metric that networks have, in the mean, that were made for what was asked; both ascend."""

    asked: Float[Tensor, " P"]
    got: Float[Tensor, " P"]
    stretch: float = 1.0
    """What updates were, and are to be, multiplied by."""

    def ask(self, prompt: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """What to ask for to get what is prompted: interpolated, and of what was never got the nearest.

        Where several asks got the same, their mean.
        """
        asked, got = self.asked.to(prompt), self.got.to(prompt)
        levels, group = got.unique_consecutive(return_inverse=True)
        means = torch.zeros_like(levels).index_add_(0, group, asked) / group.bincount()
        if len(levels) == 1:
            return means.expand(prompt.shape)
        right = torch.searchsorted(levels, prompt.contiguous()).clamp(1, len(levels) - 1)
        share = (prompt - levels[right - 1]) / (levels[right] - levels[right - 1])
        return torch.lerp(means[right - 1], means[right], share.clamp(0, 1))
