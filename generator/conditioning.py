"""Scaling: the units in which the denoiser sees networks, updates and metrics."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .coordinates import Coordinates
from .pairs import Pairs


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
    """Whether all metrics were positive, so that their logarithm is a second view of them."""
    metric_moments: tuple[float, float, float, float]
    """Mean and standard deviation of the metric, and of its logarithm."""

    @classmethod
    def fit(cls, coordinates: Coordinates, pairs: Pairs, seen: Float[Tensor, " C"]) -> "Scaling":
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
        logs = bool((metric > 0).all())
        log = metric.log() if logs else torch.zeros_like(metric)
        moments = (metric.mean(), metric.std().clamp_min(1e-8), log.mean(), log.std().clamp_min(1e-8))
        return cls(
            start_mean,
            start_scale,
            update_scale,
            (float(seen.min()), float(seen.max())),
            logs,
            (float(moments[0]), float(moments[1]), float(moments[2]), float(moments[3])),
        )

    def start(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (z - self.start_mean.to(z)) / self.start_scale.to(z)

    def update(self, start: Float[Tensor, "B Z"], target: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (target - start) / self.update_scale.to(start)

    def unscale_update(self, u: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return u * self.update_scale.to(u)

    def metric(self, value: Float[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        """Standardised metric and log-metric: the one tells bad ones apart, the other good ones."""
        mean, std, log_mean, log_std = self.metric_moments
        smallest = max(self.metric_range[0], 1e-6) / 10
        log = value.clamp_min(smallest).log() if self.log_metric else torch.zeros_like(value)
        return torch.stack([(value - mean) / std, (log - log_mean) / log_std], -1)
