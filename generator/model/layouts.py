"""Layouts: what the tokens of a network are, and in which order of its units the denoiser sees it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..coordinates import Coordinates
from ..gpt.denoiser import GptDenoiser
from ..rebasin import match
from ..training.pairs import Pairs
from .chunk_dit import ChunkDiT
from .dit import Denoiser, DiTConfig, WeightDiT
from .pair_dit import PairDiT


@dataclass(frozen=True)
class Layout:
    """One way to make tokens of networks."""

    make: Callable[[Coordinates, DiTConfig], Denoiser]
    shuffles: bool = False
    """Training pairs are permuted at random, both networks of a pair alike, unless they are to be left."""
    sorts: bool = False
    """The start network's units are brought into the order of a reference network, the target's with them."""


def units(coordinates: Coordinates, config: DiTConfig) -> Denoiser:
    """The equivariant denoiser for any number of hidden layers."""
    tokens = coordinates.tokens
    return PairDiT(tokens, config) if len(tokens.layers) > 1 else WeightDiT(tokens, config)


LAYOUTS = {
    "units": Layout(units),
    "chunks": Layout(ChunkDiT, shuffles=True),
    "canonical": Layout(ChunkDiT, sorts=True),
    "gpt": Layout(GptDenoiser, shuffles=True),
}


def layout_of(config: DiTConfig) -> Layout:
    """The layout of its tokens; with symmetry "none" units stay as they are."""
    layout = LAYOUTS[config.tokens]
    return replace(layout, shuffles=False) if config.symmetry == "none" else layout


def arrange(
    layout: Layout,
    coordinates: Coordinates,
    pairs: Pairs,
    *,
    reference: Float[Tensor, " Z"] | None,
    rng: torch.Generator,
) -> Pairs:
    """Training pairs in the order of units that the layout wants, the same on both networks of a pair."""
    if not coordinates.symmetry.sizes or not (layout.shuffles or layout.sorts):
        return pairs
    if layout.shuffles:
        index = coordinates.index(coordinates.symmetry.random(len(pairs.prompt), rng=rng))
    else:
        index = canonical_index(coordinates, pairs.start, reference)
    return pairs._replace(start=pairs.start.gather(1, index), target=pairs.target.gather(1, index))


def canonical_index(
    coordinates: Coordinates, z: Float[Tensor, "K Z"], reference: Float[Tensor, " Z"] | None
) -> Int[Tensor, "K Z"]:
    """The gather index that brings networks into the reference's order.

    It is a function of each network alone, so that a pair is ordered by its start network in training just as
    the start network is when it is prompted.
    """
    assert reference is not None, "a layout that sorts comes with its reference"
    return coordinates.index(match(coordinates.tokens, reference.to(z), z))
