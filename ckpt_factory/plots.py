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
from .header import Imported, ZooHeader
from .zoo import Zoo

MOST_UNITS = 64
"""Shards that a picture is drawn from, spread over the zoo."""
BINS = 48
LOG_SPAN = 5
"""From this ratio of its ends on, what is minimised is shown on a logarithmic axis; returns never are."""
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
        _coverage(axes[0], values, zoo.header, sampled)
        _curves(axes[1], steps, values, zoo.header, sampled)
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
    """(edges, checkpoints in each) of the prompted metric, evenly spaced as on the axis of `zoo_picture`."""
    units = zoo.finished_units()
    units = units[:: max(1, len(units) // MOST_UNITS)]
    values = np.concatenate([zoo.read_metrics(unit)[zoo.header.prompted].numpy() for unit in units])
    values = values[np.isfinite(values)]
    if not len(values):
        return np.array([0.0, 1.0]), np.array([0])
    counts, edges = np.histogram(values, _edges(values, bins, zoo.header.objective))
    return edges, counts


def sparkline(counts: NDArray[np.int64]) -> str:
    """Counts as a line of blocks, for a terminal."""
    most = max(1, int(counts.max()))
    return "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(8 * count / most))] for count in counts)


def _range(values: NDArray) -> tuple[float, float]:
    """Of all but the outermost thousandths of the values, which may lie anywhere."""
    low, high = np.quantile(values, [0.001, 0.999])
    return float(low), float(high)


def _is_log(values: NDArray, objective: str) -> bool:
    """Whether values belong on a logarithmic axis: losses that fall by a factor, no shares and no returns."""
    low, high = _range(values)
    return objective == "min" and float(values.min()) > 0 and high > LOG_SPAN * low


def _edges(values: NDArray, bins: int, objective: str) -> NDArray[np.float64]:
    """Of bins over the range of the values."""
    low, high = _range(values)
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    if _is_log(values, objective):
        edges = np.geomspace(low, high, bins + 1)
        edges[[0, -1]] = low, high  # geomspace rounds
        return edges
    return np.linspace(low, high, bins + 1)


def _coverage(ax: Axes, values: NDArray, header: ZooHeader, sampled: str) -> None:
    finite = values[np.isfinite(values)]
    label = header.prompted.replace("_", " ")
    if len(finite):
        edges = _edges(finite, BINS, header.objective)
        ax.hist(finite, edges.tolist(), weights=np.full(len(finite), 100 / len(finite)), color=COLOURS[0])
        if _is_log(finite, header.objective):
            ax.set_xscale("log")
    ax.set_title(f"Coverage: {len(finite):,} checkpoints{sampled}", loc="left", color=INK, fontsize=11)
    ax.set_xlabel(label, color=MUTED)
    ax.set_ylabel("share of checkpoints, %", color=MUTED)


def _curves(ax: Axes, steps: NDArray, values: NDArray, header: ZooHeader, sampled: str) -> None:
    """Quantiles over runs, at the steps of the first run; other runs' values are interpolated there."""
    finite = np.isfinite(values).all(1)
    ax.set_title(f"Learning: {int(finite.sum()):,} runs{sampled}", loc="left", color=INK, fontsize=11)
    ax.set_xlabel("step", color=MUTED)
    ax.set_ylabel(header.prompted.replace("_", " "), color=MUTED)
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
    if _is_log(np.stack([low, high]), header.objective):
        ax.set_yscale("log")
    ax.legend(frameon=False, labelcolor=MUTED, fontsize=9)


def _endings(ax: Axes, zoo: Zoo) -> None:
    """Last metric against learning rate, or how often where no optimizer has several; one colour each."""
    column, objective = f"final_{zoo.header.prompted}", zoo.header.objective
    runs = zoo.read_runs().select(["lr", "optimizer", "status", column]).to_pydict()
    lr, last, optimizer = (np.array(runs[name]) for name in ("lr", column, "optimizer"))
    good, names = np.array(runs["status"]) == "finished", sorted(set(runs["optimizer"]))
    by_name = {name: np.flatnonzero(good & (optimizer == name)) for name in names}
    label = f"last {zoo.header.prompted.replace('_', ' ')}"
    is_log = bool(good.any()) and _is_log(last[good], objective)
    if len(set(zip(runs["lr"], runs["optimizer"], strict=True))) == len(names):
        if good.any():
            edges = _edges(last[good], BINS // 2, objective).tolist()
            parts = [last[rows] for rows in by_name.values()]
            ax.hist(parts, edges, stacked=True, color=COLOURS[: len(names)], label=names)
        ax.set_xscale("log" if is_log else "linear")
        ax.set_xlabel(label, color=MUTED)
        ax.set_ylabel("runs", color=MUTED)
    else:
        for colour, (name, rows) in zip(COLOURS, by_name.items(), strict=False):
            shown = rows[:: max(1, len(rows) // 1000)]
            ax.scatter(lr[shown], last[shown], s=7, alpha=0.5, color=colour, linewidths=0, label=name)
        ax.set_xscale("log")
        ax.set_yscale("log" if is_log else "linear")
        ax.set_xlabel("peak learning rate", color=MUTED)
        ax.set_ylabel(label, color=MUTED)
    title = f"Endings: {int(good.sum()):,} runs, {int((~good).sum()):,} diverged"
    ax.set_title(title, loc="left", color=INK, fontsize=11)
    if ax.get_legend_handles_labels()[0]:  # none where all runs diverged
        ax.legend(frameon=False, labelcolor=MUTED, fontsize=9, markerscale=2.5)
