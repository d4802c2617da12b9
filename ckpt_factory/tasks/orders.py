"""Which examples each mini-batch holds, with which labels: epochs without replacement, an order per group."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Variation

SEGMENT = 64
"""Mini-batches that are laid out at once."""


def mini_batches(
    rngs: Sequence[torch.Generator],
    num_examples: int,
    batch_size: int,
    data_fraction: Sequence[float] | None = None,
) -> Iterator[Int[Tensor, "G B"]]:
    """Endless indices of mini-batches, the incomplete last one of an epoch dropped, as the published recipe.

    Args:
        rngs: of the orders, one per group.
        data_fraction: share of the examples that each group sees, a subset drawn at the beginning.

    Raises:
        ValueError: a batch is larger than what there is to draw it from.
    """
    fractions = [1.0] * len(rngs) if data_fraction is None else list(data_fraction)
    streams = []
    for rng, fraction in zip(rngs, fractions, strict=True):
        size = num_examples if fraction == 1 else max(1, round(fraction * num_examples))
        if not 1 <= batch_size <= size:
            share = "" if fraction == 1 else f" of {num_examples} (data_fraction {fraction:.3g})"
            raise ValueError(f"batch_size is {batch_size}; there are {size} training images{share}")
        subset = None if fraction == 1 else torch.randperm(num_examples, generator=rng)[:size]
        streams.append(_epochs(rng, size, subset, batch_size))
    return _segments(streams, batch_size)


def labelled_batches(
    labels: Int[Tensor, " N"],
    num_classes: int,
    rngs: Sequence[torch.Generator],
    batch_size: int,
    variation: Variation | None,
) -> Iterator[tuple[Int[Tensor, "G B"], Int[Tensor, "G B"]]]:
    """Mini-batches as (indices, labels), of the share of the data and with the label noise of each group.

    Raises:
        ValueError: as of `mini_batches`.
    """
    noisy: Tensor | None = None
    if variation is not None and any(variation.label_noise):
        shares = zip(rngs, variation.label_noise, strict=True)
        noisy = torch.stack([with_label_noise(labels, share, num_classes, rng=rng) for rng, share in shares])
    indices = mini_batches(rngs, len(labels), batch_size, variation.data_fraction if variation else None)
    return ((index, labels[index] if noisy is None else noisy.gather(1, index)) for index in indices)


def _epochs(rng: torch.Generator, size: int, subset: Tensor | None, batch_size: int) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(size, generator=rng)[: size - size % batch_size]
        yield order if subset is None else subset[order]


def _segments(streams: Sequence[Iterator[Tensor]], batch_size: int) -> Iterator[Tensor]:
    length = SEGMENT * batch_size
    left = [torch.empty(0, dtype=torch.int64)] * len(streams)
    while True:
        parts = []
        for group, stream in enumerate(streams):
            pieces, have = [left[group]], len(left[group])
            while have < length:
                pieces.append(next(stream))
                have += len(pieces[-1])
            whole = torch.cat(pieces)
            parts.append(whole[:length])
            left[group] = whole[length:]
        yield from torch.stack(parts).split(batch_size, 1)


def with_label_noise(
    labels: Int[Tensor, " N"], share: float, num_classes: int, *, rng: torch.Generator
) -> Int[Tensor, " N"]:
    """Labels of which that share, drawn independently, is replaced by another class, uniformly."""
    if share == 0:
        return labels
    flipped = torch.rand(len(labels), generator=rng) < share
    other = (labels + torch.randint(1, num_classes, labels.shape, generator=rng)) % num_classes
    return torch.where(flipped, other, labels)


def tailr_gamma(variation: Variation | None) -> Float[Tensor, " K"] | None:
    """Each run's gamma, where any run trains with TaiLr."""
    return torch.tensor(variation.gamma) if variation is not None and any(variation.gamma) else None
