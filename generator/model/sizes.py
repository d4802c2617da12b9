"""Sizes of the transformer by name, 0.1 to 100 million parameters: they differ in width alone."""

from dataclasses import replace
from typing import Literal

from .dit import DiTConfig

SizeName = Literal["0.1M", "0.3M", "1M", "3M", "5M", "10M", "20M", "50M", "100M"]
SIZES: dict[SizeName, int] = {
    "0.1M": 32,
    "0.3M": 64,
    "1M": 128,
    "3M": 192,
    "5M": 256,
    "10M": 352,
    "20M": 512,
    "50M": 800,
    "100M": 1152,
}
"""Widths. Depth and the width of a head are the same for all, so that learning rates transfer."""
HEAD, DEPTH = 32, 4


def sized(config: DiTConfig, size: SizeName) -> DiTConfig:
    """The same kind of model in one of the sizes; parameters are counted on digits, wide tokens have more."""
    width = SIZES[size]
    return replace(config, width=width, heads=width // HEAD, depth=DEPTH)
