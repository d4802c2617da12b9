"""Weights of networks as pictures for the report."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from ckpt_factory import ParamSpec

from .plots import LIGHT, figure_svg

MOST_UNITS, SMALLEST_IMAGE = 25, 25
LARGEST_MATRIX = (64, 128)


def weights(
    rows: Sequence[Sequence[tuple[str, Float[np.ndarray, "n m"]]]], heads: Sequence[str]
) -> tuple[str, float]:
    """Weights of networks as images on one diverging scale: a row per network, a column per moment.

    Args:
        rows: for each network (caption, picture), as `picture` makes them.
        heads: titles of the columns.

    Returns:
        The SVG, and the weight at either end of the scale.
    """
    magnitudes = np.abs(np.concatenate([image[np.isfinite(image)] for row in rows for _, image in row]))
    scale = (float(np.quantile(magnitudes, 0.995)) if magnitudes.size else 0.0) or 1.0
    height, width = rows[0][0][1].shape
    tall = min(1.6, max(0.5, height / width))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(rows), len(heads), squeeze=False)
        for axes, row in zip(grid, rows, strict=True):
            for ax, (caption, image) in zip(axes, row, strict=True):
                ax.imshow(image, "RdBu_r", vmin=-scale, vmax=scale, interpolation="none", aspect="auto")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                ax.set_xlabel(caption, fontsize=8.5)
        for ax, head in zip(grid[0], heads, strict=True):
            ax.set_title(head, fontsize=9.5, color=LIGHT["ink"])

    each = 10.5 / len(heads)
    size = (10.5, 0.35 + len(rows) * (0.92 * each * tall + 0.25))
    return figure_svg("weights", "weights of start, generated and SGD-trained networks", paint, size), scale


def picture(spec: ParamSpec, theta: Float[Tensor, " D"]) -> Float[np.ndarray, "n m"]:
    """A network's first matrix, or else theta: its rows as small images where the inputs are a square."""
    matrices = [value.flatten(1) for value in spec.unflatten(theta).values() if value.ndim >= 2]
    values = (matrices or [theta.unsqueeze(0)])[0].float().numpy().astype(np.float64)
    side = math.isqrt(values.shape[1])
    if values.shape[1] < SMALLEST_IMAGE or side * side != values.shape[1]:
        return values[: LARGEST_MATRIX[0], : LARGEST_MATRIX[1]]
    images = values[:MOST_UNITS].reshape(-1, side, side)
    columns = math.ceil(math.sqrt(len(images)))
    lines, gap = math.ceil(len(images) / columns), max(1, side // 14)
    canvas = np.full((lines * (side + gap) - gap, columns * (side + gap) - gap), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (side + gap), i % columns * (side + gap)
        canvas[top : top + side, left : left + side] = image
    return canvas
