"""A zoo as a picture: which metrics its checkpoints cover, how its runs learn, where its recipes end."""

from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from .files import atomic_path
from .header import Imported
from .zoo import Zoo

MOST_UNITS = 64
"""Shards that a picture is drawn from, spread over the zoo."""
BINS = 48
PLAIN = FuncFormatter(lambda value, position: f"{value:g}")
INK, MUTED, GRID = "#1b2130", "#5b6475", "#e3e6ec"
COLOURS = ("#0f766e", "#c2570c", "#7052c8", "#2563a8", "#a3195b")


def zoo_picture(zoo: Zoo, path: Path) -> None:
    """Write a PNG of a zoo's metric coverage, learning curves and, where recipes vary, how runs ended."""
    finished = zoo.finished_units()
    units = finished[:: max(1, len(finished) // MOST_UNITS)]
    sampled = " sampled" if len(units) < len(finished) else ""
    parts = [zoo.read_metrics(unit) for unit in units]
    columns = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
    shape = (-1, zoo.header.plan.num_checkpoints)
    values, steps = columns[zoo.header.prompted].reshape(shape), columns["step"].reshape(shape)
    varied = not isinstance(zoo.header.plan, Imported)
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(15 if varied else 10, 4.2), layout=ConstrainedLayoutEngine(w_pad=0.15))
        axes = figure.subplots(1, 3 if varied else 2)
        _coverage(axes[0], values, zoo.header.prompted, sampled)
        _curves(axes[1], steps, values, zoo.header.prompted, sampled)
        if varied:
            _endings(axes[2], zoo)
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(color=GRID, linewidth=0.8)
            ax.set_axisbelow(True)
            ax.tick_params(which="both", colors=MUTED)
            for axis in (ax.xaxis, ax.yaxis):
                if axis.get_scale() == "log":
                    low, high = sorted(axis.get_view_interval())
                    few = high < 500 * low
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=9))
                    axis.set_minor_formatter(NullFormatter())
                axis.set_major_formatter(PLAIN)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def coverage(zoo: Zoo, bins: int = 24) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(edges, checkpoints in each) of the prompted metric, evenly spaced in its logarithm if all positive."""
    units = zoo.finished_units()
    units = units[:: max(1, len(units) // MOST_UNITS)]
    values = np.concatenate([zoo.read_metrics(unit)[zoo.header.prompted].numpy() for unit in units])
    values = values[np.isfinite(values)]
    if not len(values):
        return np.array([0.0, 1.0]), np.array([0])
    counts, edges = np.histogram(values, _edges(values, bins))
    return edges, counts


def sparkline(counts: NDArray[np.int64]) -> str:
    """Counts as a line of blocks, for a terminal."""
    most = max(1, int(counts.max()))
    return "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(8 * count / most))] for count in counts)


def _edges(values: NDArray, bins: int) -> NDArray[np.float64]:
    """Of bins over all but the outermost thousandths of the values, which may lie anywhere."""
    low, high = (float(v) for v in np.quantile(values, [0.001, 0.999]))
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    if low > 0:
        edges = np.geomspace(low, high, bins + 1)
        edges[[0, -1]] = low, high  # geomspace rounds
        return edges
    return np.linspace(low, high, bins + 1)


def _coverage(ax: Axes, values: NDArray, column: str, sampled: str) -> None:
    finite = values[np.isfinite(values)]
    label = column.replace("_", " ")
    if len(finite):
        edges = _edges(finite, BINS)
        ax.hist(finite, edges.tolist(), weights=np.full(len(finite), 100 / len(finite)), color=COLOURS[0])
        if finite.min() > 0:
            ax.set_xscale("log")
    ax.set_title(f"Coverage: {len(finite):,} checkpoints{sampled}", loc="left", color=INK, fontsize=11)
    ax.set_xlabel(label, color=MUTED)
    ax.set_ylabel("share of checkpoints, %", color=MUTED)


def _curves(ax: Axes, steps: NDArray, values: NDArray, column: str, sampled: str) -> None:
    """Quantiles over runs, at the steps of the first run; other runs' values are interpolated there."""
    finite = np.isfinite(values).all(1)
    ax.set_title(f"Learning: {int(finite.sum()):,} runs{sampled}", loc="left", color=INK, fontsize=11)
    ax.set_xlabel("step", color=MUTED)
    ax.set_ylabel(column.replace("_", " "), color=MUTED)
    if not finite.any():
        return
    at = steps[0]
    curves = np.stack(
        [np.interp(at, row, curve) for row, curve in zip(steps[finite], values[finite], strict=True)]
    )
    low, quarter, middle, three, high = np.quantile(curves, [0.1, 0.25, 0.5, 0.75, 0.9], axis=0)
    ax.fill_between(at, low, high, color=COLOURS[1], alpha=0.18, linewidth=0, label="80 % of runs")
    ax.fill_between(at, quarter, three, color=COLOURS[1], alpha=0.35, linewidth=0, label="middle half")
    ax.plot(at, middle, color=COLOURS[1], label="median")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    if low.min() > 0:
        ax.set_yscale("log")
    ax.legend(frameon=False, labelcolor=MUTED, fontsize=9)


def _endings(ax: Axes, zoo: Zoo) -> None:
    """Last metric against learning rate, one colour an optimizer."""
    runs = zoo.read_runs().select(["lr", "optimizer", "status", f"final_{zoo.header.prompted}"]).to_pydict()
    lr, last = np.array(runs["lr"]), np.array(runs[f"final_{zoo.header.prompted}"])
    optimizer, good = np.array(runs["optimizer"]), np.array(runs["status"]) == "finished"
    for colour, name in zip(COLOURS, sorted(set(runs["optimizer"])), strict=False):
        mine = good & (optimizer == name)
        shown = np.flatnonzero(mine)[:: max(1, int(mine.sum()) // 1000)]
        ax.scatter(lr[shown], last[shown], s=7, alpha=0.5, color=colour, linewidths=0, label=name)
    ax.set_title(
        f"Endings: {int(good.sum()):,} runs, {int((~good).sum()):,} diverged",
        loc="left",
        color=INK,
        fontsize=11,
    )
    ax.set_xscale("log")
    if good.any() and last[good].min() > 0:
        ax.set_yscale("log")
    ax.set_xlabel("peak learning rate", color=MUTED)
    ax.set_ylabel(f"last {zoo.header.prompted.replace('_', ' ')}", color=MUTED)
    ax.legend(frameon=False, labelcolor=MUTED, fontsize=9, markerscale=2.5)
