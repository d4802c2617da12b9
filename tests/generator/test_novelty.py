"""Novelty: neighbours among training runs, mistakes in common, and what lies outside the span of networks."""

from dataclasses import replace

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.audit.novelty import (
    Search,
    evenly,
    merge_neighbours,
    merge_pools,
    overlaps,
    survey,
    training_runs,
    wrong_predictions,
)
from generator.rebasin import AlignedDistance
from generator.training.hole import inside

from .conftest import TRAINING_RUNS, Returns


def search_for(zoo: Zoo, queries: torch.Tensor, *, metric: float = 1.0) -> Search:
    runs = frozenset(training_runs(zoo, TRAINING_RUNS))
    return Search(queries, TRAINING_RUNS, runs, runs, metric)


def test_neighbours_are_training_checkpoints_modulo_permutation(digits: Task, digits_zoo: Zoo) -> None:
    trained = digits_zoo.read_unit(1).theta[TRAINING_RUNS - 9, 3]  # the last training run
    held_out = digits_zoo.read_unit(1).theta[TRAINING_RUNS - 8, 3]  # the run after it, in the same shard
    queries = torch.stack([trained, held_out])
    queries = digits.symmetry.apply(queries, digits.symmetry.random(2, rng=seeded(0)))
    found, *_ = survey(digits, search_for(digits_zoo, queries), digits_zoo, digits_zoo.finished_units())
    # the root of float32 rounding of squared norms: 1e-7 of about 20
    assert found.distance[0, 0] < 1e-2
    assert found.distance[0, 1] > 0.5
    assert found.distance[1, 0] > 0.5
    assert found.run[0, 0] == TRAINING_RUNS - 1
    assert (found.run < TRAINING_RUNS).all()
    assert torch.equal(found.theta[0], trained)


def test_neighbours_equal_a_search_of_every_checkpoint_run_by_run(digits: Task, digits_zoo: Zoo) -> None:
    queries = digits_zoo.read_unit(2).theta[:2, -1]
    units = digits_zoo.finished_units()
    parts = [survey(digits, search_for(digits_zoo, queries), digits_zoo, [unit]).neighbours for unit in units]
    found = merge_neighbours(parts)
    distance = AlignedDistance(digits.spec, digits.symmetry)
    rows = [digits_zoo.read_unit(0).theta, digits_zoo.read_unit(1).theta[: TRAINING_RUNS - 8]]
    each = torch.stack([distance.nearest(queries, run) for run in torch.cat(rows)], 1)
    # eight checkpoints a run are all looked at; float64 sums in the same order
    torch.testing.assert_close(found.distance, each.sort(1).values[:, :2])
    assert torch.equal(found.run, each.argsort(1)[:, :2])
    assert distance.nearest(queries[:1], found.theta[:1]).item() == pytest.approx(float(each[0].min()))


def test_what_lies_in_the_hole_is_neither_near_nor_pooled(digits: Task, digits_zoo: Zoo) -> None:
    """As if the zoo had never had those checkpoints; a run that lies in the hole altogether is none."""
    rows = digits_zoo.read_unit(0)
    metric = rows.metrics["validation_loss"]
    hole = (float(metric[0, 5]), float(metric[0].max()) + 0.01)  # of run 0 its first five are in it
    learned = ~inside(metric, hole)
    assert not learned[0, 0]
    assert learned[0, 6:].all()
    queries = rows.theta[0, [1, 6]]
    search = replace(search_for(digits_zoo, queries), hole=hole)
    found, _, pool, _ = survey(digits, search, digits_zoo, [0])
    distance = AlignedDistance(digits.spec, digits.symmetry)
    kept = [
        (distance.nearest(queries, run[known]), i)
        for i, (run, known) in enumerate(zip(rows.theta, learned, strict=True))
        if known.any()
    ]
    each = torch.stack([near for near, _ in kept], 1)
    torch.testing.assert_close(found.distance, each.sort(1).values[:, :2])
    assert found.distance[0, 0] > 0.1, "the very checkpoint is in the hole"
    assert found.distance[1, 0] < 1e-2
    assert len(pool.best) == len(kept)
    for theta in pool.theta:
        assert (rows.theta[learned] == theta).all(1).any(), "the pool is of what was learned from"
    everything = (float(metric.min()) - 1, float(metric.max()) + 1)
    found, _, pool, _ = survey(digits, replace(search, hole=everything), digits_zoo, [0])
    assert found.distance.isinf().all()
    assert len(pool.best) == 0


def test_the_pool_holds_the_best_and_an_equal_checkpoint_of_each_run(digits: Task, digits_zoo: Zoo) -> None:
    search = search_for(digits_zoo, torch.empty(0, digits.spec.D), metric=1.5)
    pools = [survey(digits, search, digits_zoo, [unit]).pool for unit in digits_zoo.finished_units()]
    pool = merge_pools(pools)
    assert len(pool.best) == len(pool.equal) == TRAINING_RUNS
    run = 0
    for unit in (0, 1):
        rows = digits_zoo.read_unit(unit)
        for theta, metric in zip(rows.theta, rows.metrics["validation_loss"].tolist(), strict=True):
            if run < TRAINING_RUNS:
                gaps = [abs(value - 1.5) for value in metric]
                assert torch.equal(pool.best[run], theta[metric.index(min(metric))])
                assert torch.equal(pool.equal[run], theta[gaps.index(min(gaps))])
                assert pool.best_metric[run] == min(metric)
            run += 1


def test_wrong_predictions_are_the_tasks_error(digits: Task, digits_zoo: Zoo) -> None:
    theta = digits_zoo.read_unit(0).theta[:2, -1]
    wrong = wrong_predictions(digits, theta)
    assert wrong is not None
    torch.testing.assert_close(wrong.float().mean(1), digits.evaluate(theta, "test")["error"])
    assert wrong_predictions(digits, torch.full_like(theta, torch.nan)).all()  # type: ignore[union-attr]


def test_what_classifies_nothing_has_no_wrong_predictions(returns: Returns) -> None:
    assert wrong_predictions(returns, returns.init([seeded(0)])) is None


def test_overlaps_are_intersections_over_unions_of_sets() -> None:
    rng = seeded(0)
    ours, theirs = (torch.rand(n, 30, generator=rng) < 0.3 for n in (3, 4))
    ours[2], theirs[3] = False, False
    found = overlaps(ours, theirs)
    for q, mine in enumerate(ours):
        for c, yours in enumerate(theirs):
            a, b = (set(row.nonzero().flatten().tolist()) for row in (mine, yours))
            expected = len(a & b) / len(a | b) if a | b else 1.0
            assert float(found[q, c]) == pytest.approx(expected)


def test_evenly_spread_items_are_distinct_and_cover_the_range() -> None:
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert len(set(evenly(range(1945), 256))) == 256
