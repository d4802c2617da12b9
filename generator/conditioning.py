"""Scaling: the units in which the denoiser sees networks, updates and metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .coordinates import Coordinates
from .training.pairs import Pairs

BEST_BAND = 0.02
"""Share of the metric's range below which distances to the best one look alike."""


@dataclass(frozen=True)
class MetricView:
    """One metric as the denoiser sees it: standardised, and in a second view of it."""

    range: tuple[float, float]
    """Smallest and largest metric of all training checkpoints."""
    log: bool
    """Whether the metric's logarithm is the second view: of losses, where all of them are positive."""
    moments: tuple[float, float, float, float] = (0.0, 1.0, 0.0, 1.0)
    """Mean and standard deviation of the metric, and of its second view."""
    from_best: bool = False
    """Whether the second view is the logarithm of the distance to the best metric, for returns."""

    @classmethod
    def fit(
        cls, metric: Float[Tensor, " P"], seen: Float[Tensor, " C"], objective: str = "min"
    ) -> "MetricView":
        """From the metrics of training pairs; `seen` are those of all training checkpoints."""
        found = cls(
            range=(float(seen.min()), float(seen.max())),
            log=objective == "min" and bool((metric > 0).all()),
            from_best=objective == "max",
        )
        first, second = found.features(metric).unbind(1)
        moments = (
            x for view in (first, second) for x in (float(view.mean()), float(view.std().clamp_min(1e-8)))
        )
        return replace(found, moments=tuple(moments))  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "MetricView":
        """From what config.json says."""
        low, high = fields["range"]
        mean, std, other_mean, other_std = fields["moments"]
        moments = (mean, std, other_mean, other_std)
        return cls(range=(low, high), log=fields["log"], moments=moments, from_best=fields["from_best"])

    def features(self, value: Float[Tensor, " B"]) -> Float[Tensor, "B 2"]:
        """Standardised metric and a second view of it: the one tells bad ones apart, the other good ones."""
        mean, std, other_mean, other_std = self.moments
        low, high = self.range
        other = torch.zeros_like(value)
        if self.log:
            other = value.clamp_min(max(low, 1e-6) / 10).log()
        elif self.from_best:  # rising with the metric, too; many returns are the best there is
            other = -((high - value).clamp_min(0) + BEST_BAND * max(high - low, 1e-6)).log()
        return torch.stack([(value - mean) / std, (other - other_mean) / other_std], -1)


@dataclass(frozen=True)
class Scaling:
    """Per-tensor scales of start networks and of updates, and the views of M metrics, the main one first.

    The denoiser predicts (z* - z_start) / update_scale, an update of unit size; a scale is one number for
    each parameter tensor, a layer's weight and bias sharing theirs where they are function-space coordinates.
    """

    start_mean: Float[Tensor, " Z"]
    start_scale: Float[Tensor, " Z"]
    update_scale: Float[Tensor, " Z"]
    views: tuple[MetricView, ...]

    @classmethod
    def fit(
        cls,
        coordinates: Coordinates,
        pairs: Pairs,
        seen: Float[Tensor, "C M"],
        objectives: Sequence[str] = ("min",),
    ) -> "Scaling":
        """Scales from a sample of training pairs; `seen` are the metrics of all training checkpoints."""
        return cls.fit_parts(coordinates, [pairs], seen, objectives)

    @classmethod
    def fit_parts(
        cls,
        coordinates: Coordinates,
        parts: Iterable[Pairs],
        seen: Float[Tensor, "C M"],
        objectives: Sequence[str] = ("min",),
    ) -> "Scaling":
        """As `fit`, from parts of a sample, of which none is kept."""
        sums, told = torch.zeros(3, coordinates.Z, dtype=torch.float64), []
        for pairs in parts:
            start, update = pairs.start.double(), (pairs.target - pairs.start).double()
            sums += torch.stack([start.sum(0), start.square().sum(0), update.square().sum(0)])
            told.append((pairs.start_metric, pairs.prompt))
        num = sum(len(prompt) for _, prompt in told)
        start_mean, start_scale, update_scale = (torch.zeros(coordinates.Z) for _ in range(3))
        groups: dict[str, list[Tensor]] = {}
        for name, index in coordinates.slots():
            layer = name.rpartition(".")[0]
            groups.setdefault(layer if layer in coordinates.layers else name, []).append(index)
        for indices in groups.values():
            index = torch.cat(indices)
            count = num * len(index)
            total, squares, moved = sums[:, index].sum(1).tolist()
            start_mean[index] = total / count
            start_scale[index] = std_of(count, total, squares)
            update_scale[index] = max(1e-8, (moved / count) ** 0.5)
        metric = torch.cat([torch.cat(each) for each in zip(*told, strict=True)])
        views = (MetricView.fit(*each) for each in zip(metric.T, seen.T, objectives, strict=True))
        return cls(start_mean, start_scale, update_scale, tuple(views))

    def to(self, device: torch.device | str) -> "Scaling":
        """The same with its scales on a device, so that no use of them copies them there."""
        names = ("start_mean", "start_scale", "update_scale")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def metric_range(self) -> tuple[float, float]:
        """Smallest and largest main metric of all training checkpoints."""
        return self.views[0].range

    @property
    def num_features(self) -> int:
        """What the denoiser knows of metrics and prompts, in numbers."""
        return 4 if len(self.views) == 1 else 5 * len(self.views)

    def start(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (z - self.start_mean.to(z)) / self.start_scale.to(z)

    def update(self, start: Float[Tensor, "B Z"], target: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return (target - start) / self.update_scale.to(start)

    def unscale_update(self, u: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
        return u * self.update_scale.to(u)

    def condition(self, metric: Float[Tensor, "B M"], prompt: Float[Tensor, "B M"]) -> Float[Tensor, "B F"]:
        """Features of the start networks' metrics and of prompts: four of each channel, and of several also
        whether each is prompted, 1, or not, 0, all four then being 0. A prompt of NaN is none.
        """
        channels = zip(self.views, metric.unbind(1), prompt.unbind(1), strict=True)
        features = [
            torch.cat([view.features(was), view.features(wanted)], -1) for view, was, wanted in channels
        ]
        if len(features) == 1:
            return features[0]
        prompted = ~prompt.isnan().unsqueeze(-1)
        known = torch.stack(features, 1).where(prompted, 0.0)  # (B, M, 4)
        return torch.cat([known, prompted.to(known)], -1).flatten(1)


def std_of(count: int, total: float, squares: float) -> float:
    """The standard deviation of so many numbers, at least 1e-8, from their sum and that of their squares."""
    return max(1e-8, max(0.0, squares - total**2 / count) ** 0.5 / max(1, count - 1) ** 0.5)


@dataclass(frozen=True)
class Calibration:
    """The metric that networks have, in the mean, that were made for what was asked; both ascend."""

    asked: Float[Tensor, " P"]
    got: Float[Tensor, " P"]
    stretch: float = 1.0
    """What updates were, and are to be, multiplied by."""

    def of_length(self) -> "Calibration":
        """Updates of the same length, for prompts as they are."""
        return replace(self, asked=self.asked[:0], got=self.got[:0])

    def ask(self, prompt: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """What to ask for to get what is prompted: interpolated, and of what was never got the nearest.

        Where several asks got the same, their mean. Without any ask, what is prompted.
        """
        if not len(self.got):
            return prompt
        asked, got = self.asked.to(prompt), self.got.to(prompt)
        levels, group = got.unique_consecutive(return_inverse=True)
        means = torch.zeros_like(levels).index_add_(0, group, asked) / group.bincount()
        if len(levels) == 1:
            return means.expand(prompt.shape)
        right = torch.searchsorted(levels, prompt.contiguous()).clamp(1, len(levels) - 1)
        share = (prompt - levels[right - 1]) / (levels[right] - levels[right - 1])
        return torch.lerp(means[right - 1], means[right], share.clamp(0, 1))
