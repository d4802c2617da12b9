"""The span of training networks: it holds what was mixed of them, wherever, and no network of its own."""

import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.audit.novelty import Search, merge, survey, training_runs
from generator.audit.span import SPANNING_BYTES, off_span, spanning_runs, spans
from generator.rebasin import align
from tests.conftest import write_zoo

NUM_TRAINING, NUM = 96, 4


@pytest.fixture(scope="module")
def zoo(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """112 runs of 100 steps in seven shards, the first 96 of them training runs."""
    plan = RunPlan(num_steps=100, batch_size=(32,), num_checkpoints=6)
    return write_zoo(tmp_path_factory.mktemp("span") / "zoo", digits, plan, num_runs=112, stack_size=16)


def spans_of(task: Task, zoo: Zoo, queries: Tensor, *, hole: tuple[float, float] | None = None) -> Tensor:
    runs = frozenset(training_runs(zoo, NUM_TRAINING))
    search = Search(queries, NUM_TRAINING, runs, hole=hole, spanning=runs)
    units = zoo.finished_units()
    found = merge([survey(task, search, zoo, units[i::2]) for i in range(2)])
    return spans(task, (found.spanning, search), zoo, queries, found.neighbours.run)


def parents(zoo: Zoo, i: int, j: int) -> tuple[Tensor, Tensor]:
    """The i-th checkpoints of some runs, and the j-th of runs in another shard."""
    return zoo.read_unit(1).theta[5 : 5 + NUM, i], zoo.read_unit(4).theta[9 : 9 + NUM, j]


def held_out(zoo: Zoo) -> Tensor:
    return zoo.read_unit(6).theta[:NUM, -1]


@pytest.mark.parametrize(("i", "j"), [(-1, -1), (3, 4)])
@pytest.mark.parametrize("share", [0.35, 0.5])
def test_interpolations_lie_in_the_span_whatever_checkpoints_are_their_ends(
    digits: Task, zoo: Zoo, i: int, j: int, share: float
) -> None:
    first, second = parents(zoo, i, j)
    between = torch.lerp(first, align(digits.spec, digits.symmetry, first, second), share)
    between = digits.symmetry.apply(between, digits.symmetry.random(NUM, rng=seeded(0)))
    found = spans_of(digits, zoo, torch.cat([between, held_out(zoo)]))
    assert found[:NUM].max() < 1e-5  # float32 parameters
    assert found[NUM:].min() > 0.4


def test_the_middle_of_networks_that_nobody_aligned_lies_in_the_span(digits: Task, zoo: Zoo) -> None:
    assert spans_of(digits, zoo, torch.lerp(*parents(zoo, -1, -1), 0.5)).max() < 1e-5


def test_means_of_several_networks_are_in_the_span_of_the_best(digits: Task, zoo: Zoo) -> None:
    best = []
    for unit in (0, 2, 5):
        rows = zoo.read_unit(unit)
        place = rows.metrics["validation_loss"][:NUM].argmin(1)
        best.append(rows.theta[torch.arange(NUM), place])
    means = torch.stack(
        [
            align(digits.spec, digits.symmetry, each[0], torch.stack(each)).mean(0)
            for each in zip(*best, strict=True)
        ]
    )
    found = spans_of(digits, zoo, torch.cat([means, held_out(zoo)]))
    assert found[:NUM].median() < 0.25 * found[NUM:].median()


def test_what_was_never_learned_from_spans_nothing(digits: Task, zoo: Zoo) -> None:
    first, second = parents(zoo, -1, -1)
    between = torch.lerp(first, align(digits.spec, digits.symmetry, first, second), 0.4)
    losses = torch.cat([zoo.read_unit(u).metrics["validation_loss"][:, -1] for u in (1, 4)])
    hole = float(losses.min()) - 1, float(losses.max()) + 1e-4
    assert spans_of(digits, zoo, between).max() < 1e-5
    assert spans_of(digits, zoo, between, hole=hole).min() > 0.1


def mixed(task: Task) -> tuple[Tensor, Tensor]:
    base = torch.randn(task.spec.D, generator=seeded(0))
    pool = base + 0.1 * torch.randn(6, task.spec.D, generator=seeded(1))
    weights = torch.tensor([0.5, 0.3, 0.1, 0.1, 0.2, -0.2])
    return pool, weights @ pool


def test_the_share_is_what_an_affine_combination_leaves(tiny: MLPClassifier) -> None:
    """In whatever order the units come, as long as they are near enough to be aligned."""
    pool, mixture = mixed(tiny)
    moved = tiny.symmetry.apply(mixture.unsqueeze(0), tiny.symmetry.random(1, rng=seeded(2)))[0]
    assert off_span(tiny, moved, pool[:0], pool).item() < 1e-4  # float32 parameters
    assert off_span(tiny, mixture, pool[:2], pool[2:]).item() < 1e-4
    other = pool[0] + 0.1 * torch.randn(tiny.spec.D, generator=seeded(3))
    mean = pool.double().mean(0)
    basis, _ = torch.linalg.qr((pool.double() - mean)[:5].T)  # the sixth is minus the sum of these
    rest = other.double() - mean
    expected = (rest - basis @ (basis.T @ rest)).norm() / rest.norm()
    assert 0.5 < float(expected) < 1
    assert off_span(tiny, other, pool[:0], pool).item() == pytest.approx(float(expected), rel=1e-4)  # float32
    assert off_span(tiny, other, pool[:2], pool[2:]).item() == pytest.approx(float(expected), rel=1e-4)


def test_as_many_networks_are_kept_as_memory_is_for() -> None:
    assert spanning_runs(range(4096), 8000) == list(range(4096))
    few = spanning_runs(range(4096), 10**6)
    assert len(few) == SPANNING_BYTES // (4 * 10**6)
    assert few[-1] > 4000, "evenly spread"
    assert len(spanning_runs(range(10), 10**9)) == 2
