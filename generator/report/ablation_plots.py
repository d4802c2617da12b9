"""Ablations as a picture: a dot for every training, their mean as a line, the best variant on top."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ckpt_factory.files import atomic_path

from ..comparison.ablation import DEFAULT, Result, summaries
from .plots import LIGHT, STYLE, log_x_axis

LEAST = 1e-4
"""Smaller values are drawn here: an axis of logarithms has no 0."""


def ablation_picture(
    judged: Sequence[Result], metric: str, path: Path, *, compared_with: tuple[str, ...] = (DEFAULT,)
) -> None:
    """Write a PNG: how far prompts are missed, and a metric after one update, both better to the left.

    Args:
        metric: of `one_update`, "test_error"; a panel of it is drawn.
        compared_with: variants that a dotted line goes through, and whose names are bold.
    """
    order = [each.variant for each in summaries(judged)]
    panels: list[tuple[str, Callable[[Result], float]]] = [
        ("1 - prompt alignment", lambda each: 1 - each.alignment),
        (f"{metric.replace('_', ' ')} after one update", lambda each: each.one_update[metric]),
    ]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(
            figsize=(11.0, 1.4 + 0.27 * len(order)), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.05)
        )
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for ax, (title, value) in zip(axes, panels, strict=True):
            _panel(ax, judged, order, value, compared_with)
            ax.set_title(title, loc="left", fontsize=11)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        for label in axes[0].get_yticklabels():
            label.set_fontweight("bold" if label.get_text() in compared_with else "normal")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def _panel(
    ax: Axes,
    judged: Sequence[Result],
    order: Sequence[str],
    value: Callable[[Result], float],
    compared_with: tuple[str, ...],
) -> None:
    drawn: list[float] = []
    for place, name in enumerate(order):
        given = [value(each) for each in judged if each.variant == name]
        finite = np.asarray([max(each, LEAST) for each in given if math.isfinite(each)])
        colour = LIGHT["made"] if name in compared_with else LIGHT["ink"]
        if len(finite):
            drawn += finite.tolist()
            mean = float(finite.mean())
            ax.plot(finite, [place] * len(finite), "o", color=colour, ms=5, alpha=0.55, mew=0)
            ax.plot([mean], [place], "|", color=colour, ms=13, mew=2.2)
            if name in compared_with:
                ax.axvline(mean, color=colour, lw=1, ls=(0, (2, 3)), zorder=0)
        if len(finite) < len(given):
            ax.annotate(
                f"{len(given) - len(finite)} diverged",
                (1, place),
                xycoords=("axes fraction", "data"),
                xytext=(-4, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=8,
                color=LIGHT["muted"],
            )
    log_x_axis(ax, drawn)
    ax.grid(axis="y", lw=0.4, alpha=0.5)
