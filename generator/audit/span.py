"""What of a network no affine combination of training networks makes: interpolations leave nothing.

There are as many training networks as a network has parameters, or more, so the span of all of them is
everything. What was mixed is nearest to its mixture, though: of two independent networks of spread s about a
common mean, the middle is s / sqrt(2) away, strangers of both are s * sqrt(1.5) away. So the span is that of
few networks, those that are nearest when aligned with the network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo

from ..rebasin import AlignedDistance, align
from .novelty import Search, Spanning, evenly, learned

SPAN = 256
"""Training networks whose span is taken, the nearest ones; at most a quarter of the number of parameters."""
TRIED = 4
"""So many times as many are aligned with a network, those that a bound from below says are the nearest."""
SPANNING_BYTES = 2**28
"""Memory of the best checkpoints that spans are taken of: 8,388 networks of 8,000 parameters, at 32 bit."""


def spanning_runs(searched: Sequence[int], size: int) -> list[int]:
    """Runs, of those searched, whose best checkpoints fit in `SPANNING_BYTES`."""
    return evenly(searched, max(2, SPANNING_BYTES // (4 * size)))


def spans(
    task: Task,
    among: tuple[Spanning, Search],
    zoo: Zoo,
    queries: Float[Tensor, "Q D"],
    nearest: Int[Tensor, "Q 2"],
) -> Float[Tensor, " Q"]:
    """`off_span` of each network: the checkpoints of its nearest two runs, and the best ones of other runs.

    A point between any checkpoints of two runs, aligned, is nearest to these runs: it is found
    whatever they are. Mixtures of more networks are found if these were the best of their runs; of networks
    in different orders of units only where no strangers, aligned, are nearer.

    Args:
        among: the best checkpoints, and the search that found them.
        nearest: the two nearest runs, -1 for none.
    """
    spanning, search = among
    unit_of = {run: unit for unit in zoo.finished_units() for run in zoo.header.run_ids(unit)}
    found = []
    for query, runs in zip(queries, nearest.tolist(), strict=True):
        paths = [_path(zoo, unit_of[run], run, search) for run in runs if run >= 0]
        others = ~torch.isin(spanning.run, torch.tensor(runs))
        own = torch.cat([queries[:0], *paths])
        found.append(off_span(task, query, own, spanning.theta[others]))
    return torch.stack(found) if found else torch.empty(0)


def _path(zoo: Zoo, unit: int, run: int, search: Search) -> Float[Tensor, "S D"]:
    """The checkpoints of a run that were learned from; only its row group is read."""
    groups = zoo.row_groups_of(unit, run - zoo.header.run_ids(unit)[0])
    theta, _, ids = learned(zoo, unit, search, groups)
    return theta[ids == run].flatten(0, 1)


def off_span(
    task: Task,
    theta: Float[Tensor, " D"],
    own: Float[Tensor, "S D"],
    others: Float[Tensor, "C D"],
    span: int = SPAN,
) -> Float[Tensor, ""]:
    """The distance of a network to the affine hull of training networks over that to their mean.

    The nearest of `own`, as they are and aligned with the network, fill up to half of the span, the nearest
    of `others`, aligned, the rest. 0 for combinations of them; held-out networks are the yardstick.
    """
    most = max(2, min(span, task.spec.D // 4))
    both = torch.cat([own, _aligned(task, theta, own)]).unique(dim=0)
    near = _nearest(theta, both, most // 2)
    if len(others):
        bound = AlignedDistance(task.spec, task.symmetry).bounds(theta.unsqueeze(0), others)[0]
        tried = _aligned(task, theta, others[bound.argsort()[: TRIED * most]])
        near = torch.cat([near, _nearest(theta, tried, most - len(near))])
    mean = near.mean(0)
    basis, _ = torch.linalg.qr((near[1:] - near[0]).T)  # as exact as the differences, unlike their products
    rest = mean - basis @ (basis.T @ mean)
    return (rest.norm() / mean.norm().clamp_min(1e-300)).float()


def _aligned(task: Task, theta: Tensor, networks: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
    return align(task.spec, task.symmetry, theta, networks) if len(networks) else networks


def _nearest(theta: Tensor, networks: Float[Tensor, "C D"], most: int) -> Float[Tensor, "K D"]:
    """What the nearest of the networks differ by from `theta`."""
    gap = networks.double() - theta.double()
    return gap[gap.square().sum(1).argsort()[:most]]
