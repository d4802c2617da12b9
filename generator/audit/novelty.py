"""Novelty: how near networks are to what was trained, in weights and in mistakes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import functional_call

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo

from ..rebasin import AlignedDistance
from ..training.hole import Hole, without_hole
from ..training.pairs import Runs
from ..training.reading import metrics_of
from .balance import Freedom

COARSE = 9
"""Checkpoints of each run that a search looks at first, evenly spread; then at all of the nearest two runs'.
A run's checkpoints lie on one curve: a copy of any is nearer to those beside it than strangers are."""
MOST_EXAMPLES = 2000
"""Test examples that mistakes are compared on, evenly spread."""


class Neighbours(NamedTuple):
    """Of each query the nearest training run, and the nearest other one."""

    distance: Float[Tensor, "Q 2"]
    """To the nearest checkpoint of each, over all orders (and free signs) of hidden units."""
    run: Int[Tensor, "Q 2"]
    theta: Float[Tensor, "Q D"]
    """The nearest checkpoint of all."""


class Pool(NamedTuple):
    """Training networks, two of each run: what baselines are made of and what mistakes are compared with."""

    best: Float[Tensor, "R D"]
    """The checkpoint of the best validation metric."""
    best_metric: Float[Tensor, " R"]
    equal: Float[Tensor, "R D"]
    """The checkpoint whose validation metric is nearest the one asked for."""

    @property
    def theta(self) -> Float[Tensor, "C D"]:
        return torch.cat([self.best, self.equal])


class Spanning(NamedTuple):
    """Training networks whose span is taken, the best checkpoint of each run."""

    theta: Float[Tensor, "C D"]
    run: Int[Tensor, " C"]


class Surveyed(NamedTuple):
    """What the shards of a zoo have to say, or some of them."""

    neighbours: Neighbours
    canonical: Neighbours
    """The same with all networks in their canonical form (`Freedom`); its theta are, too."""
    pool: Pool
    spanning: Spanning


@dataclass(frozen=True)
class Search:
    """What is looked for in the training runs of a zoo."""

    queries: Float[Tensor, "Q D"]
    num_training_runs: int
    """Runs with a smaller id are training runs."""
    searched: frozenset[int]
    """Those of them that queries are compared with."""
    pooled: frozenset[int] = frozenset()
    """Those of them that go into the pool."""
    metric: float = 0.0
    """The validation metric of the pool's `equal`."""
    hole: Hole | None = None
    """Checkpoints with a metric in it were never learned from: they are neither compared with nor pooled."""
    spanning: frozenset[int] = frozenset()
    """Those of the searched whose best checkpoint is kept for its span."""
    freedom: Freedom = field(default_factory=Freedom)
    """What may change of networks that stay the same."""


def evenly(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def training_runs(zoo: Zoo, num_training_runs: int) -> list[int]:
    """The training runs whose shards are finished."""
    ids = (run for unit in zoo.finished_units() for run in zoo.header.run_ids(unit))
    return [run for run in ids if run < num_training_runs]


def survey(task: Task, search: Search, zoo: Zoo, units: Sequence[int]) -> Surveyed:
    """The queries' neighbours in some shards, and their part of the pool and of the networks to span."""
    size = task.spec.D
    distance = AlignedDistance(task.spec, task.symmetry)
    parts, canonical = [_nowhere(search.queries)], [_nowhere(search.queries)]
    queries = search.freedom.canonical(task.symmetry, search.queries)
    pools = [Pool(torch.empty(0, size), torch.empty(0), torch.empty(0, size))]
    spans = [Spanning(torch.empty(0, size), torch.empty(0, dtype=torch.long))]
    for unit in units:
        if zoo.header.run_ids(unit)[0] >= search.num_training_runs:
            continue
        theta, metric, runs = learned(zoo, unit, search)
        chosen = _among(runs, search.searched)
        if chosen.any() and len(search.queries):
            parts.append(_neighbours(distance, search.queries, theta[chosen], runs[chosen]))
            if search.freedom:
                keys = search.freedom.canonical(task.symmetry, theta[chosen].flatten(0, 1))
                keys = keys.view(theta[chosen].shape)
                canonical.append(_neighbours(distance, queries, keys, runs[chosen]))
        chosen = _among(runs, search.pooled)
        if chosen.any():
            pools.append(_pool(theta[chosen], metric[chosen], zoo.header.objective, search.metric))
        chosen = _among(runs, search.spanning)
        if chosen.any():
            best = _pool(theta[chosen], metric[chosen], zoo.header.objective, search.metric).best
            spans.append(Spanning(best, runs[chosen]))
    found = merge_neighbours(parts)
    again = merge_neighbours(canonical) if search.freedom else found
    return Surveyed(found, again, merge_pools(pools), merge_spanning(spans))


def learned(
    zoo: Zoo, unit: int, search: Search, row_groups: Sequence[int] | None = None
) -> tuple[Float[Tensor, "R S D"], Float[Tensor, "R S"], Int[Tensor, " R"]]:
    """Runs of a shard, or of some of its row groups, that are searched or pooled, as a generator learned from
    them: theta, metrics, ids."""
    rows = zoo.read_unit(unit, row_groups)
    kept = rows.finite() & (rows.run_ids < search.num_training_runs)
    kept &= _among(rows.run_ids, search.searched | search.pooled)
    metric = metrics_of(rows, [zoo.header.prompted])[kept]
    theta, metric = without_hole(Runs(rows.theta[kept].float(), metric), search.hole)
    known = metric.isfinite().all((1, 2))  # of a run altogether in the hole nothing is
    return theta[known], metric[known, :, 0], rows.run_ids[kept][known]


def _among(runs: Int[Tensor, " R"], ids: frozenset[int]) -> Bool[Tensor, " R"]:
    return torch.tensor([run in ids for run in runs.tolist()], dtype=torch.bool)


def _nowhere(queries: Tensor) -> Neighbours:
    shape = (len(queries), 2)
    return Neighbours(torch.full(shape, torch.inf), torch.full(shape, -1), queries)


def _neighbours(
    distance: AlignedDistance, queries: Tensor, theta: Float[Tensor, "R S D"], runs: Int[Tensor, " R"]
) -> Neighbours:
    steps = theta.shape[1]
    kept = sorted({round(i * (steps - 1) / (COARSE - 1)) for i in range(COARSE)})
    coarse = theta[:, kept].flatten(0, 1)
    found, place = distance.nearest_groups(queries, coarse, runs.repeat_interleave(len(kept)))
    near = place // len(kept)  # (Q, 2), rows of theta
    run = runs[near].where(found.isfinite(), -1)
    best = coarse[place[:, 0]]
    if len(kept) < steps:
        for q, rows in enumerate(near):
            both = theta[rows].flatten(0, 1)
            of = runs[rows].repeat_interleave(steps)
            found[q : q + 1], at = distance.nearest_groups(queries[q : q + 1], both, of)
            run[q] = of[at[0]].where(found[q].isfinite(), -1)
            best[q] = both[at[0, 0]]
    return Neighbours(found, run, best)


def _pool(theta: Float[Tensor, "R S D"], metric: Float[Tensor, "R S"], objective: str, asked: float) -> Pool:
    row = torch.arange(len(theta))
    best = (metric if objective == "min" else -metric).argmin(1)
    equal = (metric - asked).abs().argmin(1)
    return Pool(theta[row, best], metric[row, best], theta[row, equal])


def merge_neighbours(parts: Sequence[Neighbours]) -> Neighbours:
    """The nearest two of several parts of a zoo, which have no run in common."""
    distance, run = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    order = distance.sort(dim=1, stable=True).indices[:, :2]
    first = torch.stack([part.distance[:, 0] for part in parts], 1).argmin(1)
    theta = torch.stack([part.theta for part in parts], 1)[torch.arange(len(first)), first]
    return Neighbours(distance.gather(1, order), run.gather(1, order), theta)


def merge_pools(parts: Sequence[Pool]) -> Pool:
    best, metric, equal = (torch.cat([part[i] for part in parts]) for i in range(3))
    return Pool(best, metric, equal)


def merge_spanning(parts: Sequence[Spanning]) -> Spanning:
    return Spanning(*(torch.cat([part[i] for part in parts]) for i in range(2)))


def merge(parts: Sequence[Surveyed]) -> Surveyed:
    """Of several parts of a zoo, which have no run in common."""
    neighbours, canonical, pools, spans = zip(*parts, strict=True)
    found = merge_neighbours(neighbours), merge_neighbours(canonical)
    return Surveyed(*found, merge_pools(pools), merge_spanning(spans))


@torch.no_grad()
def wrong_predictions(task: Task, theta: Float[Tensor, "K D"]) -> Bool[Tensor, "K B"] | None:
    """Which test examples each network gets wrong; None for tasks that classify nothing.

    Right is only what beats all others: neither NaN nor a tie is.
    """
    if "error" not in task.metrics or not task.answers_examples:
        return None
    net = task.module().eval()
    x, y = task.examples("test", torch.tensor(evenly(range(task.num_examples("test")), MOST_EXAMPLES)))
    if y.is_floating_point() or y.ndim != 1:
        return None
    y = y.long()
    rows = []
    for row in theta:
        logits = functional_call(net, task.spec.unflatten(row), (x,))  # (B, C)
        rows.append((logits >= logits.gather(1, y.unsqueeze(1))).sum(1) != 1)
    return torch.stack(rows) if rows else torch.empty(0, len(y), dtype=torch.bool)


def overlaps(ours: Bool[Tensor, "Q B"], theirs: Bool[Tensor, "C B"]) -> Float[Tensor, "Q C"]:
    """Intersection over union of wrong predictions (Zeng et al. 2025); 1 where nobody is wrong."""
    both = ours.float() @ theirs.float().T
    either = ours.sum(1, keepdim=True) + theirs.sum(1) - both
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both))
