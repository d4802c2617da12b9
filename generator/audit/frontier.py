"""The frontier of quality against novelty: what baselines reach where they are as new as the networks made.

Quality costs nothing at novelty 0, a copy has it, and novelty costs nothing without quality, as noise shows.
Only both together count (Zeng et al. 2025), so networks are compared with each baseline at equal novelty.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy import ndarray
from torch import Tensor

from ckpt_factory.files import atomic_path

from ..report.plots import LIGHT, SIZE, STYLE, figure_svg, legend, plain_log
from .baselines import BASELINES

AXES = {"mistakes": "1 - IoU of wrong predictions", "weights": "distance to the nearest training network"}
"""What novelty is, the first wherever something is classified: weights may differ and do the very same."""

DRAWS = 1000
"""Bootstrap draws of an interval."""
MARKERS = {"noise": "o", "averages": "s", "Gaussian": "D", "interpolation": "^", "interpolation as is": "v"}
COLOURS = {"noise": "ink", "averages": "looked", "Gaussian": "muted", "interpolation": "looked"}


class Judged(NamedTuple):
    """What is found of some networks."""

    quality: Float[Tensor, " K"]
    """Test error of classifiers, otherwise the prompted metric on the test split."""
    distance: Float[Tensor, " K"]
    """To the nearest network of the pool."""
    overlap: Float[Tensor, " K"]
    """The largest IoU of wrong predictions with a network of the pool, or the nearest of all training; NaN
    where nothing is classified."""
    overlap_nearest: Float[Tensor, " K"]
    """The same with the training checkpoint that is nearest in weights; NaN if that was not asked."""
    off_span: Float[Tensor, " K"]
    """The share outside the span of training networks; NaN if that was not asked."""


class Subjects(NamedTuple):
    """Whom an audit is about, and whom it holds them against."""

    made: Judged
    held_out: Judged
    """Held-out networks of equal validation metric: the yardstick of copying."""
    finest: Judged
    """Held-out networks at their best: what there is to be beaten by, and what a baseline must not reach."""


class Cloud(NamedTuple):
    """Networks of one kind: how new and how good each is; `quality` is higher for better ones."""

    novelty: Float[ndarray, " K"]
    quality: Float[ndarray, " K"]


def cloud_of(judged: Sequence[Float[Tensor, " K"]], axis: str, objective: str) -> Cloud:
    """How new, on one of the two axes, and how good networks are that have both numbers.

    Metrics to be minimised are negated.

    Args:
        judged: a `Judged`, or only what it begins with: quality, distance and overlap.
    """
    quality, distance, overlap, *_ = judged
    sign = -1.0 if objective == "min" else 1.0
    new = (1 - overlap if axis == "mistakes" else distance).double().numpy()
    good = sign * quality.double().numpy()
    kept = np.isfinite(new) & np.isfinite(good)
    return Cloud(new[kept], good[kept])


class Margin(NamedTuple):
    """By how much networks are better than a baseline that is as new, with a 95 % bootstrap interval.

    Infinite where the baseline is never as new.
    """

    value: float
    low: float
    high: float

    def mirrored(self) -> "Margin":
        """By how much they are worse."""
        return Margin(*(0.0 - each for each in (self.value, self.high, self.low)))  # no -0


def quality_at(novelty: Sequence[ndarray], quality: Sequence[ndarray], at: ndarray) -> Float[ndarray, " R"]:
    """The best quality of a family's settings, and of what lies between neighbours, at least as new as `at`.

    -inf where it is never as new. All arrays are (R,), one entry a draw.
    """
    best = np.full(at.shape, -np.inf)
    for new, good in zip(novelty, quality, strict=True):
        best = np.where(new >= at, np.maximum(best, good), best)
    for i in range(len(novelty) - 1):
        a, b = novelty[i], novelty[i + 1]
        crosses = (np.minimum(a, b) <= at) & (at <= np.maximum(a, b)) & (a != b)
        share = (at - a) / np.where(a != b, b - a, 1.0)
        between = quality[i] + share * (quality[i + 1] - quality[i])
        best = np.where(crosses, np.maximum(best, between), best)
    return best


def margin(ours: Cloud, family: Sequence[Cloud], *, seed: int) -> Margin:
    """By how much networks are better than the settings of one baseline at equal novelty, in the mean."""
    family = [cloud for cloud in family if len(cloud.quality)]
    if not len(ours.quality):
        return Margin(-math.inf, -math.inf, -math.inf)
    if not family:
        return Margin(math.inf, math.inf, math.inf)
    rng = np.random.default_rng(seed)
    drawn = [_means(cloud, rng) for cloud in (ours, *family)]
    at, got = drawn[0]
    gaps = got - quality_at([new for new, _ in drawn[1:]], [good for _, good in drawn[1:]], at)
    low, high = np.quantile(gaps[1:], [0.025, 0.975], method="nearest")  # the first draw is the mean itself
    return Margin(float(gaps[0]), float(low), float(high))


def _means(cloud: Cloud, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
    """Means of all networks, then of `DRAWS` samples with replacement."""
    count = len(cloud.quality)
    index = np.concatenate([np.arange(count)[None], rng.integers(0, count, (DRAWS, count))])
    return cloud.novelty[index].mean(1), cloud.quality[index].mean(1)


def paint_frontier(
    ax: Axes,
    made: Cloud,
    finest: Cloud,
    families: Mapping[str, Sequence[Cloud]],
    labels: tuple[str, str],
    rival: str,
    objective: str,
) -> None:
    """Means of every setting, a line along each baseline; what was made and what training makes as points."""
    sign, heights = -1.0 if objective == "min" else 1.0, []
    for name, clouds in families.items():
        points = [(c.novelty.mean(), sign * c.quality.mean()) for c in clouds if len(c.quality)]
        if name not in BASELINES or not points:
            continue
        x, y = zip(*points, strict=True)
        heights += y
        style = "--" if name == "interpolation as is" else "-"
        ax.plot(
            x, y, style, marker=MARKERS.get(name, "x"), color=LIGHT[COLOURS.get(name, "muted")], lw=1.2, ms=4,
            label=name,
        )  # fmt: skip
    for cloud, colour, label in (
        (finest, "sgd", f"held-out {rival}, at its best"),
        (made, "made", "generated"),
    ):
        if len(cloud.quality):
            quality = sign * cloud.quality
            ax.plot(cloud.novelty, quality, "o", color=LIGHT[colour], alpha=0.25, mew=0, ms=3.5)
            ax.plot(cloud.novelty.mean(), quality.mean(), "*", color=LIGHT[colour], ms=13, label=label)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.set_xlim(left=0)
    plain_log(ax, np.array(heights), labels[1])
    legend(ax, 3)


def clouds_of(
    arrays: Mapping[str, Tensor], axis: str, objective: str
) -> tuple[Cloud, Cloud, dict[str, list[Cloud]]]:
    """(networks made, held-out ones at their best, each baseline's settings) from the arrays of an audit."""

    def found(name: str) -> list[Tensor]:
        return [arrays[f"{name}/{field}"] for field in ("quality", "distance", "overlap")]

    made, finest = (cloud_of(found(name), axis, objective) for name in ("made", "finest"))
    families = {
        name: [cloud_of(setting, axis, objective) for setting in zip(*found(name), strict=True)]
        for name in BASELINES
        if f"{name}/quality" in arrays
    }
    return made, finest, families


def frontier_svg(result: Mapping[str, Any], arrays: Mapping[str, Tensor], axis: str, rival: str) -> str:
    """One of the frontiers as an SVG element for the report."""
    title = f"quality against novelty, {AXES[axis]}"

    def paint(figure: Figure) -> None:
        _paint(figure.subplots(), result, arrays, axis, rival)

    return figure_svg(f"frontier-{axis}", title, paint, SIZE)


def frontier_picture(
    path: Path, result: Mapping[str, Any], arrays: Mapping[str, Tensor], rival: str = "SGD"
) -> None:
    """All frontiers of an audit as a PNG."""
    axes = list(result["margins"])
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(
            figsize=(SIZE[0] * len(axes), SIZE[1] + 0.4), layout=ConstrainedLayoutEngine(wspace=0.05)
        )
        for ax, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            _paint(ax, result, arrays, axis, rival)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})


def _paint(ax: Axes, result: Mapping[str, Any], arrays: Mapping[str, Tensor], axis: str, rival: str) -> None:
    name, objective = result["quality_metric"], result["quality_objective"]
    labels = (AXES[axis], f"test {name}".replace("_", " "))
    paint_frontier(ax, *clouds_of(arrays, axis, objective), labels, rival, objective)
