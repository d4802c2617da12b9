"""A sweep as a picture and as a page: losses against parameters, training runs and CPU seconds, with laws."""

import html
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ckpt_factory.files import atomic_path

from ..comparison.power_laws import CONFIDENCE, PowerLaw
from ..comparison.sweep import AXES, QUANTITIES, Trial, best_rates, cpu_frontier
from .plots import LIGHT, STYLE, figure_svg, show, style_sheet, table

SIZE = (13.0, 7.2)
MARKERS = ("o", "s", "^")


def sweep_picture(trials: Sequence[Trial], laws: Mapping[str, PowerLaw], path: Path) -> None:
    """Write a PNG: held-out loss and misalignment, each against all that was spent."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=SIZE, layout=ConstrainedLayoutEngine(wspace=0.05))
        paint(figure, trials, laws)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def sweep_page(trials: Sequence[Trial], laws: Mapping[str, PowerLaw]) -> str:
    """One HTML document that refers to nothing outside; the same input gives the same bytes."""
    title = "losses against parameters, training runs and CPU seconds"
    svg = figure_svg("sweep", title, lambda figure: paint(figure, trials, laws), SIZE)
    names = ("status", "held_out_loss", "alignment", "size", "tokens", "lr", "share", "training_runs", "seed")
    names += ("parameters", "pairs", "cpu_s")
    rows = (
        [html.escape(trial.name), *(show(None if _is_nan(v := trial.row()[n]) else v) for n in names)]
        for trial in trials
    )
    found = (
        [
            html.escape(f"{QUANTITIES[quantity]} in {' and '.join(AXES[axis] for axis in law.names)}{kind}"),
            html.escape(law.in_words()),
            show(law.spread, 2),
            show(law.num_points),
        ]
        for name, law in laws.items()
        for kind, quantity in [_parts(name)]
    )
    heads = ("Law", "exponent", "spread of ln", "points")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>thetaforge sweep</title>
<style>{style_sheet()}</style>
</head>
<body>
<header><div>
<h1><b>θ</b> A sweep of {len(trials)} trainings</h1>
<p class="kind">thetaforge tune: how well generators of several sizes learn from several amounts of data</p>
</div></header>
<main>
<section id="laws"><h2>What it buys</h2>
<p>Held-out loss: what training minimises, on runs that no trial was trained on. Alignment: of networks
prompted from held-out initialisations, test split. Of several learning rates the best one is shown. A law is
floor + scale / x^exponent, the floor 0 where none is named; in brackets an interval of {CONFIDENCE:.0%}
confidence. Laws in CPU seconds follow the frontier, the least loss that was had for a cost; its
points come from the same trainings, so that their interval is too narrow.</p>
<div class="scroll">{svg}</div>
{table(*found, heads=heads)}</section>
<section id="trials"><h2>All trials</h2>
{table(*rows, heads=("Trial", *(name.replace("_", " ") for name in names)))}</section>
</main>
<footer>Held-out runs and the test split throughout.</footer>
</body>
</html>
"""


def paint(figure: Figure, trials: Sequence[Trial], laws: Mapping[str, PowerLaw]) -> None:
    best = best_rates(trials)
    panels = figure.subplots(len(QUANTITIES), len(AXES), squeeze=False)
    for quantity, row in zip(QUANTITIES, panels, strict=True):
        for axis, ax in zip(AXES, row, strict=True):
            ax.set(xlabel=AXES[axis], ylabel=QUANTITIES[quantity])
            if axis == "cpu_s":
                _costs(ax, best, quantity)
            else:
                _lines(ax, best, quantity, axis, "share" if axis == "parameters" else "width")
            for name, law in laws.items():
                if name.partition(": ")[2] == f"{quantity}/{axis}" or name == f"{quantity}/{axis}":
                    _law(ax, law)
            _log_axes(ax)


def _lines(ax: Axes, trials: Sequence[Trial], quantity: str, axis: str, by: str) -> None:
    """One line for every value of `by`: means over seeds, and every trial as a point."""
    kinds, levels = _levels(trials, by)
    for (kind, level), own in _grouped(trials, by).items():
        points: dict[float, list[float]] = defaultdict(list)
        for trial in own:
            if math.isfinite(value := getattr(trial, quantity)):
                points[getattr(trial, axis)].append(value)
        x = sorted(points)
        look = {"color": _colour(levels, level), "marker": MARKERS[kinds.index(kind) % len(MARKERS)]}
        label = _label(own[0], by, kinds)
        ax.plot(x, [np.mean(points[each]) for each in x], lw=1.4, ms=5, label=label, **look)
        spread = [(each, value) for each in x for value in points[each] if len(points[each]) > 1]
        if spread:
            ax.plot(*zip(*spread, strict=True), ls="", ms=3, alpha=0.5, **look)
    _legend(ax)


def _costs(ax: Axes, trials: Sequence[Trial], quantity: str) -> None:
    """Of the trials with most data: their reports on the way, or their ends, and the frontier."""
    share = max((trial.share for trial in trials), default=1)
    own = [trial for trial in trials if trial.share == share]
    kinds, levels = _levels(own, "width")
    for (kind, level), group in _grouped(own, "width").items():
        look = {"color": _colour(levels, level), "marker": MARKERS[kinds.index(kind) % len(MARKERS)], "ms": 4}
        for i, trial in enumerate(group):
            points = [(trial.cpu_s, getattr(trial, quantity))]
            if quantity == "held_out_loss" and trial.curve:
                points = [(entry["cpu_s"], entry[quantity]) for entry in trial.curve]
            label = "_" if i else _label(trial, "width", kinds)
            ax.plot(*zip(*points, strict=True), lw=1, alpha=0.8, label=label, **look)
    cost, loss = cpu_frontier(own, quantity)
    if len(cost) > 1:
        ax.plot(cost, loss, color=LIGHT["ink"], lw=1.2, drawstyle="steps-post", label="frontier")
    _legend(ax)


def _law(ax: Axes, law: PowerLaw) -> None:
    points = [x for line in ax.get_lines() for x in np.asarray(line.get_xdata(), float) if x > 0]
    if points:
        x = np.geomspace(min(points), max(points), 60)
        ax.plot(x, law(x), color=LIGHT["sgd"], lw=1.4, ls=(0, (4, 2)), label="_")
        words = f"- - exponent {law.in_words()}"
        ax.set_title(words, loc="left", color=LIGHT["sgd"], fontsize=8, fontweight="normal", pad=4)


def _log_axes(ax: Axes) -> None:
    for axis, values in ((ax.xaxis, "get_xdata"), (ax.yaxis, "get_ydata")):
        numbers = np.concatenate(
            [np.asarray(getattr(line, values)(), float) for line in ax.get_lines()] or [[]]
        )
        numbers = numbers[np.isfinite(numbers) & (numbers > 0)]
        if not numbers.size or numbers.min() == numbers.max():
            continue
        (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
        few = numbers.max() < 30 * numbers.min()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _digits(value)))


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.07), "borderaxespad": 0.2, "ncols": 3}
        ax.legend(fontsize=7.5, handlelength=1.4, columnspacing=1.2, **place)


def _levels(trials: Sequence[Trial], by: str) -> tuple[list[str], list[float]]:
    values = {float(getattr(trial, by)) for trial in trials}
    return sorted({trial.tokens for trial in trials}), sorted(values)


def _grouped(trials: Sequence[Trial], by: str) -> dict[tuple[str, float], list[Trial]]:
    groups: dict[tuple[str, float], list[Trial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: (trial.tokens, getattr(trial, by))):
        groups[trial.tokens, float(getattr(trial, by))].append(trial)
    return groups


def _label(trial: Trial, by: str, kinds: Sequence[str]) -> str:
    level = f"{trial.training_runs:,} runs" if by == "share" else trial.size or f"width {trial.width}"
    return f"{trial.tokens}, {level}" if len(kinds) > 1 else level


def _colour(levels: Sequence[float], level: float) -> tuple[float, ...]:
    """From violet to yellow-green, readable on light and on dark ground."""
    share = levels.index(level) / max(1, len(levels) - 1)
    return matplotlib.colormaps["viridis"](0.15 + 0.65 * share)


def _digits(value: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _parts(name: str) -> tuple[str, str]:
    """(", of these tokens" or nothing, the quantity) of a law's name."""
    kind, _, rest = name.rpartition(": ")
    return (f", tokens {kind}" if kind else ""), rest.partition("/")[0]


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
