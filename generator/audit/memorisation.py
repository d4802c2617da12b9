"""Memorisation against the number of training runs: the audits of generators that differ in it alone.

Who has seen few runs for a given training time can afford to remember them; with more of them a generator
has to find what they have in common (Zeng et al. 2025 found published generators of weights to memorise).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.files import atomic_path
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..evaluation.evaluate import finished_runs, prompt_alignment, prompt_grid
from ..medians import median
from ..report.plots import LIGHT, SIZE, STYLE, legend
from .audit import AuditSettings, audit_networks, subject_of_grid

PANELS = {
    "distance_ratio": ("nearest distance, over that of held-out", 1.0),
    "copy_rate": ("share of copies", "copy_rate_held_out"),
    "overlap_nearest": ("IoU of mistakes with the nearest", "overlap_nearest_held_out"),
    "prompt_alignment": ("prompt alignment", None),
}
"""What is drawn by the number of runs, in words, and what held-out networks have: a number or a column."""
NUMBERS = (
    *("outcome", "passes", "distance_ratio", "relative_distance", "copy_rate", "copy_rate_held_out"),
    *("overlap_nearest", "overlap_nearest_held_out", "overlap_most", "overlap_most_held_out"),
    *("off_span", "off_span_held_out", "prompt_alignment", "quality_metric", "quality_generated"),
    *("quality_finest", "networks", "searched_runs", "verdict"),
)
"""What of an audit is kept."""


def memorised(
    generator: WeightGenerator,
    zoo: Zoo,
    task: Task,
    *,
    first: int,
    best: float,
    num_networks: int,
    num_prompts: int,
    settings: AuditSettings,
) -> dict[str, Any]:
    """What the audit of a generator against its own training runs finds, with the spread over networks.

    Args:
        first: the held-out runs, whose initialisations are started from, begin here, the same for all
            generators of a comparison, whatever they were trained on.
        best: the best prompt, the same for all of them.

    Raises:
        ValueError: no network for the best prompt is finite.
    """
    held_out = finished_runs(zoo, first, num_networks)
    start = held_out.theta[:, 0]
    grid = prompt_grid(generator, task, start, seed=settings.seed, num_prompts=num_prompts, best=best)
    subject = subject_of_grid(generator, grid, start, most=num_networks, seed=settings.seed)
    result, arrays = audit_networks(subject, held_out, zoo, task, settings)
    if not arrays:
        raise ValueError(f"{result['verdict']} There is nothing to audit: train for longer")
    alignment = prompt_alignment(grid["prompts"], grid[f"test_{generator.metric}"])
    ratio = arrays["distance_generated"] / median(arrays["distance_held_out"])
    spread = {
        "distance_ratio": middle_half(ratio),
        "overlap_nearest": middle_half(arrays["made/overlap_nearest"]),
        "prompt_alignment": middle_half(alignment),
        "copy_rate": wilson(result["copy_rate"], result["networks"]),
    }
    found = {name: result[name] for name in NUMBERS}
    return found | {f"{name}_{end}": ends[i] for name, ends in spread.items() for i, end in enumerate(ENDS)}


ENDS = ("low", "high")


def middle_half(values: Tensor) -> tuple[float, float]:
    """The quartiles of what is finite; NaN where nothing is."""
    kept = values[values.isfinite()].double()
    if not len(kept):
        return math.nan, math.nan
    return float(kept.quantile(0.25)), float(kept.quantile(0.75))


def wilson(share: float, num: int, z: float = 1.0) -> tuple[float, float]:
    """Score interval of a share of `num` trials, `z` standard deviations wide (Wilson 1927)."""
    middle = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return max(0.0, middle - half), min(1.0, middle + half)


def by_number(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """For every number of training runs means over seeds, and their standard deviations as "..._std"."""
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["training_runs"]].append(row)
    found: dict[int, dict[str, Any]] = {}
    for number, group in sorted(groups.items()):
        found[number] = {"seeds": len(group), "passes": sum(row["passes"] for row in group)}
        for name in group[0]:
            values = [row[name] for row in group]
            if all(isinstance(value, float) and math.isfinite(value) for value in values):
                found[number][name] = mean(values)
                found[number][f"{name}_std"] = stdev(values) if len(values) > 1 else None
    return found


def memorisation_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG: distance ratio, copies, mistakes in common and alignment by the number of training runs.

    Points are trainings, the line their mean over seeds, the band the mean of what networks of one training
    spread over: the middle half, of a share the interval of one standard deviation.
    """
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(2 * SIZE[0], 2 * SIZE[1]), layout=ConstrainedLayoutEngine(wspace=0.05))
        for ax, name in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
            _paint(ax, rows, name)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def _paint(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    label, reference = PANELS[name]
    means = {number: each for number, each in by_number(rows).items() if name in each}
    x = np.array(list(means))
    if f"{name}_low" in next(iter(means.values()), {}):
        low, high = (np.array([each[f"{name}_{end}"] for each in means.values()]) for end in ENDS)
        ax.fill_between(x, low, high, color=LIGHT["made"], alpha=0.2, lw=0)
    ax.plot(x, [each[name] for each in means.values()], color=LIGHT["made"], lw=2, label="generated")
    kept = [row for row in rows if row["training_runs"] in means]
    ax.plot(*([row[key] for row in kept] for key in ("training_runs", name)), "o", color=LIGHT["made"], ms=4)
    if isinstance(reference, str):
        ax.plot(x, [each[reference] for each in means.values()], color=LIGHT["sgd"], lw=1.6, label="held-out")
    elif reference is not None:
        ax.axhline(reference, color=LIGHT["sgd"], lw=1.6, label="held-out")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(x.tolist()))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="training runs", ylabel=label)
    if name != "prompt_alignment":
        ax.set_ylim(bottom=0)
    legend(ax)
