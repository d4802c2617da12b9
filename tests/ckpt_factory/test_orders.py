"""Orders: epochs without replacement, one stream per group, whoever else is there."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from ckpt_factory.tasks.orders import SEGMENT, mini_batches


def take(stream: Iterator[Tensor], num: int) -> Tensor:
    """The next mini-batches, (num, G, B)."""
    return torch.stack(list(islice(stream, num)))


def plain_order(group: int, num_examples: int, batch_size: int, num: int) -> list[list[int]]:
    """The oracle: a shuffled list cut into batches, the incomplete last one dropped, and again."""
    rng, batches = seeded(group), []
    while len(batches) < num:
        order = torch.randperm(num_examples, generator=rng).tolist()
        cut = [order[i : i + batch_size] for i in range(0, num_examples, batch_size)]
        batches += [batch for batch in cut if len(batch) == batch_size]
    return batches[:num]


@pytest.mark.parametrize(("num_examples", "batch_size"), [(103, 10), (100, 10), (7, 7), (5, 1), (3000, 7)])
def test_batches_are_those_of_shuffled_epochs(num_examples: int, batch_size: int) -> None:
    """Over several of the segments that are laid out at once, with no seam between them."""
    num = 3 * SEGMENT + 5
    batches = take(mini_batches([seeded(0), seeded(1)], num_examples, batch_size), num)
    assert batches.shape == (num, 2, batch_size)
    for group in (0, 1):
        assert batches[:, group].tolist() == plain_order(group, num_examples, batch_size, num)


def test_an_epoch_has_every_example_once() -> None:
    batches = take(mini_batches([seeded(0)], 60, 10), 18)[:, 0]
    for epoch in batches.split(6):
        assert sorted(epoch.flatten().tolist()) == list(range(60))
    assert not torch.equal(batches[:6], batches[6:12])


FRACTIONS = [1.0, 0.5, 0.31, 1.0, 0.9]


def test_a_group_does_not_depend_on_which_others_there_are() -> None:
    """Nor on their subsets, whose epochs end elsewhere."""
    num = 2 * SEGMENT + 9
    together = take(mini_batches([seeded(g) for g in range(5)], 100, 8, FRACTIONS), num)
    for g, fraction in enumerate(FRACTIONS):
        alone = take(mini_batches([seeded(g)], 100, 8, [fraction]), num)
        assert torch.equal(together[:, g], alone[:, 0])
    assert torch.equal(take(mini_batches([seeded(3)], 100, 8), num)[:, 0], together[:, 3])


def test_a_group_sees_a_subset_of_its_size_in_epochs_of_it() -> None:
    batches = take(mini_batches([seeded(g) for g in range(5)], 100, 8, FRACTIONS), 60)
    for g, size in enumerate([100, 50, 31, 100, 90]):
        seen = set(batches[:, g].flatten().tolist())
        # every epoch drops another few: after five and more, hardly any of the subset is left out
        assert size - 2 <= len(seen) <= size
        for epoch in batches[:, g].split(size // 8):
            assert len(epoch.unique()) == epoch.numel(), "without replacement"
    half = [set(batches[:, g].flatten().tolist()) for g in (1, 2)]
    assert half[1] - half[0], "every group draws a subset of its own, and not the first examples"


def test_batches_as_large_as_the_subset_are_all_of_it() -> None:
    batches = take(mini_batches([seeded(0)], 100, 30, [0.3]), 5)[:, 0]
    assert len({tuple(sorted(batch.tolist())) for batch in batches}) == 1
    assert len({tuple(batch.tolist()) for batch in batches}) == 5


@pytest.mark.parametrize(
    ("num_examples", "batch_size", "fractions", "message"),
    [
        (100, 101, None, "batch_size is 101; there are 100 training images$"),
        (100, 0, None, "batch_size is 0"),
        (100, 31, [1.0, 0.3], r"batch_size is 31; there are 30 training images of 100 \(data_fraction 0.3\)"),
        (100, 2, [1.0, 1e-6], "there are 1 training images of 100"),
    ],
)
def test_batches_larger_than_what_there_is_are_refused_at_once(
    num_examples: int, batch_size: int, fractions: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mini_batches([seeded(0), seeded(1)], num_examples, batch_size, fractions)


def test_as_many_fractions_as_groups_are_expected() -> None:
    with pytest.raises(ValueError, match="zip"):
        mini_batches([seeded(0), seeded(1)], 100, 5, [0.5])
