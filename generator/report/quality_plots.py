"""The quality of samplers as a picture: alignment and each tensor's weights by the number of evaluations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ckpt_factory.files import atomic_path

from ..sampling.samplers import SAMPLERS
from .plots import STYLE, log_x_axis

COLOURS = ("#2563a8", "#c2570c", "#0f766e", "#7052c8", "#a3195b", "#5b6475", "#b8860b", "#1b1f27")
COLUMNS = 3
MOST_TENSORS = 8
"""Of networks with more of them, only the first are drawn."""
WORST_ALIGNMENT = -0.5
Row = Mapping[str, Any]


def quality_picture(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of what `sampler_quality` found; optimal trajectories are dashed."""
    tensors = list(dict.fromkeys(name for row in rows for name in row["tensors"]))[:MOST_TENSORS]
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("prompt alignment", lambda row: row["prompt_alignment"])
    ]
    panels += [(f"distance of {name}", _distance_of(name)) for name in tensors]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    with matplotlib.style.context(["default", STYLE]):
        size = (5 * columns, 3.6 * lines + 0.6)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for ax, (title, value) in zip(axes, panels, strict=False):
            _panel(ax, rows, title, value)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        low, high = axes[0].get_ylim()
        axes[0].set_ylim(max(low, WORST_ALIGNMENT), min(high, 1.02))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def _distance_of(tensor: str) -> Callable[[Row], float | None]:
    def distance(row: Row) -> float | None:
        found = row["tensors"].get(tensor)
        return None if found is None else found["wasserstein"]

    return distance


def _panel(ax: Axes, rows: Sequence[Row], title: str, value: Callable[[Row], float | None]) -> None:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in sorted(rows, key=lambda row: row["evaluations"]):
        if (found := value(row)) is not None:
            lines.setdefault((row["sampler"], row["trajectory"]), []).append((row["evaluations"], found))
    colours = dict(zip(SAMPLERS, COLOURS, strict=True))
    for (sampler, trajectory), points in lines.items():
        optimal = trajectory == "optimal"
        ax.plot(
            *zip(*points, strict=True),
            color=colours[sampler],
            linestyle="--" if optimal else "-",
            marker="o",
            markersize=3,
            linewidth=1.4,
            label=f"{sampler}, optimal" if optimal else sampler,
        )
    log_x_axis(ax, [float(row["evaluations"]) for row in rows])
    ax.set_xlabel("evaluations of the model")
    ax.set_title(title, loc="left", fontsize=11)
