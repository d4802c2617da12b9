"""Learning curves as a picture: one panel for each environment, one line for each algorithm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ckpt_factory.files import atomic_path
from ckpt_factory.plots import COLOURS, GRID, INK, MUTED

from .curves import Panels


def curves_picture(panels: Panels, path: Path) -> None:
    """Write a PNG: mean return over runs with the middle 80 % of them, against steps of the environment."""
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(6.4 * len(panels), 4.4), layout=ConstrainedLayoutEngine(w_pad=0.15))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, panel) in zip(axes, panels.items(), strict=True):
            _panel(ax, title, panel)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})


def _panel(ax: Axes, title: str, panel: Mapping[str, Any]) -> None:
    target, found = panel["target"], panel["algorithms"]
    for colour, (name, each) in zip(COLOURS, found.items(), strict=False):
        curve = each["curve"]
        ax.fill_between(
            curve["env_steps"], curve["low"], curve["high"], color=colour, alpha=0.16, linewidth=0
        )
        label = f"{name}: {_reached(each, target)}"
        ax.plot(curve["env_steps"], curve["mean"], color=colour, linewidth=2, label=label)
    untrained = sum(each["untrained_return"] for each in found.values()) / len(found)
    lines = (  # at the ends where no curve is
        (target, f"good: {target:g}", 0, (2, 3), "left"),
        (untrained, f"untrained: {untrained:.0f}", 1, (-2, -12), "right"),
    )
    for value, text, side, offset, align in lines:
        ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        ax.annotate(
            text,
            (side, value),
            offset,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha=align,
            color=MUTED,
            fontsize=9,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(numticks=12))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, position: thousands(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(title, loc="left", color=INK, fontsize=12)
    ax.set_xlabel("steps of the environment", color=MUTED)
    ax.set_ylabel("return", color=MUTED)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=MUTED)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.16), frameon=False, labelcolor=INK, fontsize=10)


def _reached(each: Mapping[str, Any], target: float) -> str:
    """How soon half of the runs were good, and how many ever were."""
    steps, share = each["env_steps_to_target"], f"{each['runs_that_reached_it']} of {each['runs']} runs"
    when = f"after {thousands(steps)} steps (median)" if steps < float("inf") else "not in the median"
    return f"{target:g} {when}, {share}"


def thousands(value: float) -> str:
    """A number of steps in two figures: 9.2k, 41k, 1.3M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.2g}{letter}" if value < 99.5 * size else f"{value / size:.0f}{letter}"
    return f"{value:.0f}"
