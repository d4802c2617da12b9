"""Layouts: what the tokens of a network are, and in which order of its units the denoiser sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .chunk_dit import ChunkDiT
from .conditioning import Scaling
from .coordinates import Coordinates
from .dit import Denoiser, DiTConfig, WeightDiT
from .gpt.denoiser import GptDenoiser, fit_published_scaling
from .pair_dit import PairDiT
from .pairs import Pairs, Reservoir
from .rebasin import match


def fit_scaling(
    coordinates: Coordinates,
    reservoir: Reservoir,
    seen: Float[Tensor, "C M"],
    objectives: Sequence[str],
    *,
    rng: torch.Generator,
) -> Scaling:
    """Scales of every tensor from 20,000 training pairs; `seen`: metrics of all training checkpoints."""
    return Scaling.fit(coordinates, reservoir.sample(20_000, rng=rng), seen, objectives)


@dataclass(frozen=True)
class Layout:
    """One way to make tokens of networks."""

    make: Callable[[Coordinates, DiTConfig], Denoiser]
    shuffles: bool = False
    """Training pairs are permuted at random, both networks of a pair alike."""
    sorts: bool = False
    """The start network's units are brought into the order of a reference network, the target's with them."""
    fit_scaling: Callable[..., Scaling] = fit_scaling
    """(coordinates, reservoir of training runs, seen metrics, objectives, *, rng) -> its units."""


def units(coordinates: Coordinates, config: DiTConfig) -> Denoiser:
    """The equivariant denoiser for any number of hidden layers."""
    tokens = coordinates.tokens
    return PairDiT(tokens, config) if len(tokens.layers) > 1 else WeightDiT(tokens, config)


LAYOUTS = {
    "units": Layout(units),
    "chunks": Layout(ChunkDiT, shuffles=True),
    "canonical": Layout(ChunkDiT, sorts=True),
    "gpt": Layout(GptDenoiser, shuffles=True, fit_scaling=fit_published_scaling),
}


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
    return coordinates.index(match(coordinates.tokens, reference, z))
