"""Figures of the evaluation's further parts: rivals, unseen prompts, fine-tuning, costs, walks."""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image
from torch import Tensor

from .plots import LIGHT, SIZE, figure_svg, finite_numbers, legend, plain_digits, plain_log

LOOKS = (
    ("made", "-"),
    ("sgd", "-"),
    ("looked", "-"),
    ("ink", "-"),
    ("muted", "-"),
    ("sgd", (0, (4, 2))),
    ("looked", (0, (4, 2))),
)
"""Colour and line style of curves in their order, the generator's first."""
OF_KIND = {"random": "sgd", "generated": "made", "retrieved": "looked", "trained": "ink"}
"""Colours of kinds of starts."""
FRAME_MS = 120
PICTURE = 360
"""Least pixels of an animation's longer side."""


def rivals(curves: Mapping[str, Float[Tensor, "N U"]], label: str) -> str:
    """A test metric over updates in a row, medians, the first with its middle half."""

    def paint(ax: Axes) -> None:
        levels = []
        for (colour, line), (title, values) in zip(LOOKS, curves.items(), strict=False):
            low, middle, high = _quantiles(values, (0.25, 0.5, 0.75))
            x = np.arange(values.shape[1])
            if not levels:
                ax.fill_between(x, low, high, color=LIGHT[colour], alpha=0.2, lw=0)
            width = 2 if levels else 3
            ax.plot(x, middle, "o", ls=line, color=LIGHT[colour], lw=width, ms=3, label=title)
            levels.append(middle)
        ax.set(xlabel="updates, or optimizer steps", ylabel=label)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_log(ax, _finite(np.concatenate(levels)), label)
        legend(ax)

    return figure_svg("rivals", f"{label} over updates and steps", _one(paint), SIZE)


def prompted(
    name: str,
    prompts: Float[Tensor, " P"],
    achieved: Float[Tensor, "N P"],
    labels: tuple[str, str],
    *,
    level: tuple[str, float] | None = None,
    looked_up: Float[Tensor, " P"] | None = None,
    hole: tuple[float, float] | None = None,
) -> str:
    """Achieved over prompted metric: median and 80 %.

    Args:
        level: a horizontal line, what it is and where.
        looked_up: what the retrieval control gives for the same prompts.
        hole: an interval of prompts to be shaded.
    """
    x = prompts.double().numpy()

    def paint(ax: Axes) -> None:
        low, middle, high = _quantiles(achieved, (0.1, 0.5, 0.9))
        if hole is not None and all(map(math.isfinite, hole)):
            ax.axvspan(*hole, color=LIGHT["grid"], lw=0, zorder=0, label="never seen")
        ax.plot(x, x, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)), label="as prompted")
        if level is not None:
            ax.axhline(level[1], color=LIGHT["looked"], lw=1.6, label=level[0])
        if looked_up is not None:
            ax.plot(x, looked_up.double().numpy(), color=LIGHT["looked"], lw=1.6, label="retrieved")
        ax.fill_between(x, low, high, color=LIGHT["made"], alpha=0.2, lw=0)
        ax.plot(x, middle, "o-", color=LIGHT["made"], lw=2, ms=4, label="generated")
        ax.set(xlabel=labels[0], ylabel=labels[1])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(plain_digits)
        if name == "beyond" and x[-1] < x[0]:
            ax.invert_xaxis()  # from the best on, whichever way that is
        legend(ax)

    return figure_svg(name, f"{labels[1]} over {labels[0]}", _one(paint), SIZE)


def fine_tuning(
    epochs: Sequence[int], curves: Mapping[str, Float[Tensor, "N E"]], label: str, unit: str
) -> str:
    """A test metric over epochs of further training: means, and standard deviations as bars."""

    def paint(ax: Axes) -> None:
        everything = []
        for k, (kind, values) in enumerate(curves.items()):
            mean, std = values.double().mean(0).numpy(), values.double().std(0, correction=0).numpy()
            x = np.arange(len(epochs)) + 0.06 * (k - 1.5)
            look = {"color": LIGHT[OF_KIND[kind]], "lw": 2, "ms": 4, "capsize": 2, "elinewidth": 1}
            ax.errorbar(x, mean, std, fmt="o-", label=kind, **look)
            everything.append(mean)
        ax.set_xticks(range(len(epochs)), [f"{each:,}" for each in epochs])
        ax.set(xlabel=f"{unit} of training", ylabel=label)
        plain_log(ax, _finite(np.concatenate(everything)), label)
        legend(ax)

    return figure_svg(f"finetune-{label}", f"{label} after further training", _one(paint), SIZE)


def costs(
    fixed_s: float, update_s: float, prices: Mapping[str, float], steps: float, most: float, by: str
) -> str:
    """CPU seconds for so many networks, by the generator and by training each, on logarithmic axes.

    Args:
        prices: CPU seconds of an optimizer step, by the way of training.
        most: networks to draw to.
    """
    x = np.geomspace(1, max(10.0, most), 60)

    def paint(ax: Axes) -> None:
        ax.loglog(x, fixed_s + x * update_s, color=LIGHT["made"], lw=3, label="generator, its zoo included")
        for (colour, line), (way, price) in zip(LOOKS[1:], prices.items(), strict=False):
            if math.isfinite(steps) and steps * price > 0:
                ax.loglog(x, x * steps * price, color=LIGHT[colour], ls=line, lw=2, label=f"{by}, {way}")
        ax.set(xlabel="networks", ylabel="CPU seconds", xlim=(1, x[-1]))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(LogLocator(numticks=6))  # more overlap: they are as long as 10,000,000
            axis.set_major_formatter(plain_digits)
        handles, titles = ax.get_legend_handles_labels()
        ax.legend(handles, titles, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=1.4)

    return figure_svg("costs", "CPU seconds over networks", _one(paint), SIZE)


def loop(values: Mapping[str, Float[Tensor, " F"]], label: str) -> str:
    """A metric along a walk, which ends where it begins."""

    def paint(ax: Axes) -> None:
        for (colour, line), (title, each) in zip(LOOKS, values.items(), strict=False):
            y = np.append(each.double().numpy(), each[0].item())
            ax.plot(np.linspace(0, 360, len(y)), y, color=LIGHT[colour], ls=line, lw=2, label=title)
        ax.set(xlabel="angle on the loop of noises, degrees", ylabel=label, xlim=(0, 360))
        ax.set_xticks([0, 90, 180, 270, 360])
        ax.yaxis.set_major_formatter(plain_digits)
        legend(ax)

    return figure_svg("walk", f"{label} along the walk", _one(paint), SIZE)


def animation(frames: Sequence[Float[np.ndarray, "n m"]], scale: float) -> bytes:
    """A GIF of weights on one diverging scale, that repeats; the same input gives the same bytes."""
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad=LIGHT["panel"])
    factor = max(1, PICTURE // max(frames[0].shape))
    pictures = []
    for frame in frames:
        levels = np.ma.masked_invalid((frame / scale + 1) / 2)
        pixels = (255 * colours(levels)[..., :3]).round().astype(np.uint8)
        large = Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))
        pictures.append(large.quantize(64, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _one(paint: Callable[[Axes], None]) -> Callable[[Figure], None]:
    return lambda figure: paint(figure.subplots())


def _quantiles(values: Float[Tensor, "N P"], shares: tuple[float, ...]) -> list[np.ndarray]:
    """Of each column's finite numbers; NaN, which is not drawn, where there is none."""
    columns = [finite_numbers(column) for column in values.T]
    found = [np.quantile(each, shares) if each.size else np.full(len(shares), np.nan) for each in columns]
    return list(np.array(found).T)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
