"""AlignedDistance: the distance of networks, whatever the order of their hidden units."""

from itertools import permutations

import torch

from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.rebasin import AlignedDistance

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
