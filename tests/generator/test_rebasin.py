"""AlignedDistance: the distance of networks, whatever the order of their hidden units."""

from dataclasses import replace
from itertools import permutations, product

import pytest
import torch

from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.rebasin import AlignedDistance, align, match

from .conftest import classifier

# Squared distances are differences of squared norms of about 40, in float32: the root of 1e-5 of them.
NEAR_ZERO = 2e-2


def networks(task: MLPClassifier, num: int, seed: int) -> torch.Tensor:
    return torch.randn(num, task.spec.D, generator=seeded(seed))


def test_nearest_equals_brute_force_over_all_permutations(tiny: MLPClassifier) -> None:
    queries, candidates = networks(tiny, 5, 0), networks(tiny, 9, 1)
    found = AlignedDistance(tiny.spec, tiny.symmetry).nearest(queries, candidates)
    all_perms = torch.tensor(list(permutations(range(4))))
    assert len(all_perms) == 24
    for q in range(5):
        best = min(
            float((queries[q] - moved).norm())
            for candidate in candidates
            for moved in tiny.symmetry.apply(candidate.expand(24, -1), {"P0": all_perms})
        )
        # float32 sums of 43 squares in another order
        assert abs(float(found[q]) - best) < 1e-4 * best
        assert best < float((queries[q] - candidates).norm(dim=1).min())  # permuting did matter


def test_a_permuted_copy_is_at_distance_zero(tiny: MLPClassifier) -> None:
    theta = networks(tiny, 4, 0)
    moved = tiny.symmetry.apply(theta, tiny.symmetry.random(4, rng=seeded(3)))
    assert (moved - theta).norm(dim=1).min() > 1
    distance = AlignedDistance(tiny.spec, tiny.symmetry)
    assert distance.nearest(theta, moved).max() < NEAR_ZERO
    assert distance.nearest(theta[:1], theta[1:]).min() > 1


def test_distances_found_in_parts_are_those_of_the_whole(tiny: MLPClassifier) -> None:
    queries, candidates = networks(tiny, 5, 0), networks(tiny, 9, 1)
    distance = AlignedDistance(tiny.spec, tiny.symmetry)
    found = None
    for part in candidates.split(4):
        found = distance.nearest(queries, part, found)
    assert torch.equal(found, distance.nearest(queries, candidates))


def test_what_is_known_to_be_nearer_is_kept(tiny: MLPClassifier) -> None:
    queries, candidates = networks(tiny, 2, 0), networks(tiny, 3, 1)
    distance = AlignedDistance(tiny.spec, tiny.symmetry)
    within = torch.tensor([0.25, 1e6])
    found = distance.nearest(queries, candidates, within)
    assert found[0] == 0.25
    assert found[1] == distance.nearest(queries, candidates)[1]
    assert within.tolist() == [0.25, 1e6]


def test_a_permuted_copy_of_several_layers_is_at_distance_zero(deep: MLPClassifier) -> None:
    theta = networks(deep, 4, 0)
    moved = deep.symmetry.apply(theta, deep.symmetry.random(4, rng=seeded(3)))
    assert (moved - theta).norm(dim=1).min() > 1
    distance = AlignedDistance(deep.spec, deep.symmetry)
    assert distance.nearest(theta, moved).max() < NEAR_ZERO
    assert distance.nearest(theta[:1], theta[1:]).min() > 1


def test_several_layers_are_never_nearer_than_brute_force(deep: MLPClassifier) -> None:
    """5! * 4! orders of each candidate: weight matching finds one of the best few, never a better one."""
    queries, candidates = networks(deep, 3, 0), networks(deep, 4, 1)
    found = AlignedDistance(deep.spec, deep.symmetry).nearest(queries, candidates)
    first, second = (torch.tensor(list(permutations(range(n)))) for n in (5, 4))
    perms = {"P0": first.repeat(len(second), 1), "P1": second.repeat_interleave(len(first), 0)}
    orders = [deep.symmetry.apply(c.expand(len(perms["P0"]), -1), perms) for c in candidates]
    for q in range(3):
        best = min(float((queries[q] - moved).norm(dim=1).min()) for moved in orders)
        plain = float((queries[q] - candidates).norm(dim=1).min())
        # float32 sums of squares; how far from the best one ends is no theorem: 4 % measured at most
        assert best * (1 - 1e-4) < float(found[q]) < min(1.1 * best, plain)


def test_matching_one_layer_is_the_nearest_order_there_is(tiny: MLPClassifier) -> None:
    coordinates = Coordinates(tiny.spec, tiny.symmetry, {})
    reference, z = (coordinates.encode(networks(tiny, 1, seed)) for seed in (0, 1))
    index = coordinates.index(match(coordinates.tokens, reference[0], z))
    ours = float((z.gather(1, index) - reference).norm())
    all_perms = torch.tensor(list(permutations(range(4))))
    moved = tiny.symmetry.apply(networks(tiny, 1, 1).expand(24, -1), {"P0": all_perms})
    best = float((moved - networks(tiny, 1, 0)).norm(dim=1).min())
    # float32 sums of 43 squares in another order
    assert abs(ours - best) < 1e-4 * best


def test_sweeps_bring_several_layers_nearer(deep: MLPClassifier) -> None:
    coordinates = Coordinates(deep.spec, deep.symmetry, {})
    reference, z = coordinates.encode(networks(deep, 1, 0)), coordinates.encode(networks(deep, 20, 1))
    gaps = []
    for sweeps in (0, 3):
        index = coordinates.index(match(coordinates.tokens, reference[0], z, sweeps=sweeps))
        gaps.append((z.gather(1, index) - reference).norm(dim=1))
    assert (gaps[1] <= gaps[0] + 1e-5).all()  # float32
    assert (gaps[1] < gaps[0] - 1e-3).any()


@pytest.fixture(scope="module")
def odd() -> MLPClassifier:
    """The 6-4-3 network with the symmetry that it would have between odd activations."""
    return with_signs(classifier((6, 4, 3)))


@pytest.fixture(scope="module")
def odd_deep() -> MLPClassifier:
    return with_signs(classifier((6, 5, 4, 3)))


def with_signs(task: MLPClassifier) -> MLPClassifier:
    task.symmetry = replace(task.symmetry, signed=tuple(task.symmetry.sizes))
    return task


def test_nearest_equals_brute_force_over_permutations_and_signs(odd: MLPClassifier) -> None:
    queries, candidates = networks(odd, 3, 0), networks(odd, 4, 1)
    found = AlignedDistance(odd.spec, odd.symmetry).nearest(queries, candidates)
    perms = torch.tensor(list(permutations(range(4)))).repeat_interleave(16, 0)
    signs = torch.tensor(list(product((-1, 1), repeat=4))).repeat(24, 1)
    for q in range(3):
        best = min(
            float((queries[q] - moved).norm(dim=1).min())
            for moved in (
                odd.symmetry.apply(c.expand(len(perms), -1), {"P0": perms, "P0/sign": signs})
                for c in candidates
            )
        )
        # float32 sums of 43 squares in another order
        assert abs(float(found[q]) - best) < 1e-4 * best


@pytest.mark.parametrize("name", ["odd", "odd_deep", "tiny", "deep"])
def test_a_transformed_copy_is_aligned_with_its_original(name: str, request: pytest.FixtureRequest) -> None:
    task = request.getfixturevalue(name)
    theta = networks(task, 4, 0)
    moved = task.symmetry.apply(theta, task.symmetry.random(4, rng=seeded(3)))
    assert (moved - theta).norm(dim=1).min() > 1
    assert torch.equal(align(task.spec, task.symmetry, theta, moved), theta)  # it only moves and negates
    distance = AlignedDistance(task.spec, task.symmetry)
    assert distance.nearest(theta, moved).max() < NEAR_ZERO
    assert distance.nearest(theta[:1], theta[1:]).min() > 1


def test_without_free_signs_a_negated_unit_is_another_network(tiny: MLPClassifier) -> None:
    odd = replace(tiny.symmetry, signed=("P0",))
    theta = networks(tiny, 1, 0)
    signs = torch.tensor([[1, -1, 1, 1]])
    flipped = odd.apply(theta, {"P0": torch.arange(4).unsqueeze(0), "P0/sign": signs})
    assert AlignedDistance(tiny.spec, odd).nearest(theta, flipped).item() < NEAR_ZERO
    assert AlignedDistance(tiny.spec, tiny.symmetry).nearest(theta, flipped).item() > 1


@pytest.mark.parametrize("name", ["odd", "deep"])
def test_the_two_nearest_are_of_two_groups(name: str, request: pytest.FixtureRequest) -> None:
    """Three runs of four checkpoints each, these near each other: the oracle asks run by run."""
    task = request.getfixturevalue(name)
    runs = networks(task, 3, 1).repeat_interleave(4, 0)
    candidates = runs + 0.05 * torch.randn(runs.shape, generator=seeded(2))
    groups = torch.tensor([7, 3, 5]).repeat_interleave(4)
    shuffled = torch.randperm(12, generator=seeded(4))
    candidates, groups = candidates[shuffled], groups[shuffled]
    queries = networks(task, 4, 0)
    distance = AlignedDistance(task.spec, task.symmetry)
    found, place = distance.nearest_groups(queries, candidates, groups)
    each = torch.stack([distance.nearest(queries, candidates[groups == g]) for g in (7, 3, 5)], 1)
    least = each.sort(1).values[:, :2]
    assert (found >= least - 1e-4).all()  # float32
    # With two layers only the most promising checkpoints of a run are aligned; theirs differ by about 0.4.
    assert (found <= least * (1.02 if name == "deep" else 1 + 1e-5)).all()
    assert (groups[place[:, 0]] != groups[place[:, 1]]).all()
    nearest = torch.stack([distance.nearest(queries[q : q + 1], candidates[place[q]]) for q in range(4)])
    torch.testing.assert_close(nearest.squeeze(1), found[:, 0])


def test_of_one_group_there_is_no_second(tiny: MLPClassifier) -> None:
    distance = AlignedDistance(tiny.spec, tiny.symmetry)
    found, _ = distance.nearest_groups(networks(tiny, 2, 0), networks(tiny, 3, 1), torch.zeros(3).long())
    assert found[:, 0].isfinite().all()
    assert found[:, 1].isinf().all()
