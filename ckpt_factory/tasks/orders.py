"""Which examples each mini-batch holds: epochs without replacement, one order per group of runs."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def mini_batches(
    rngs: Sequence[torch.Generator], num_examples: int, batch_size: int
) -> Iterator[Int[Tensor, "G B"]]:
    """Endless indices of mini-batches, the incomplete last one of an epoch dropped, as the published recipe.

    Args:
        rngs: of the orders, one per group.

    Raises:
        ValueError: a batch is larger than what there is to draw it from.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size is {batch_size}; there are {num_examples} training images")
    return _epochs(rngs, num_examples, batch_size)


def _epochs(rngs: Sequence[torch.Generator], num_examples: int, batch_size: int) -> Iterator[Tensor]:
    whole = num_examples - num_examples % batch_size
    while True:
        orders = torch.stack([torch.randperm(num_examples, generator=rng) for rng in rngs])
        yield from orders[:, :whole].split(batch_size, 1)
