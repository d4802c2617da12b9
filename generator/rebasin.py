"""Weight matching: orders of hidden units that bring a network near another, and distances modulo them."""

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry
from ckpt_factory.symmetry import SIGN

from .coordinates import Coordinates
from .model.tokens import NeuronTokens

Perms = dict[str, Int[Tensor, "K n"]]


def match(
    tokens: NeuronTokens,
    reference: Float[Tensor, "*K Z"],
    z: Float[Tensor, "K Z"],
    *,
    sweeps: int = 0,
    signed: Collection[str] = (),
) -> Perms:
    """The permutations that bring each network near the reference (Git Re-Basin, Ainsworth et al. 2023).

    Layer by layer from the input, by what a unit shares with no unit and with those that are in order
    already; every layer is a linear assignment, solved exactly. The result does not depend on the order in
    which a network comes, but for ties. For one hidden layer it is the nearest order there is; for several,
    `sweeps` over the layers improve it further, each layer given all others.

    Args:
        reference: one for all networks, or one for each.
        signed: permutations whose units' signs are free, and chosen too.
    """
    score = _Scores(tokens, reference, z)
    perms: dict[int, Tensor] = {}
    signs: dict[int, Tensor] = {}
    for sweep in range(sweeps + 1):
        before = dict(perms)
        for i, layer in enumerate(tokens.layers):
            worth = score.of(i, perms, signs)
            free = layer.perm in signed
            perms[i] = _assign(worth.abs() if free else worth)
            if free:
                signs[i] = worth.gather(2, perms[i].unsqueeze(2)).squeeze(2).ge(0).long().mul(2).sub(1)
        if sweep and all(torch.equal(before[i], perms[i]) for i in perms):
            break
    found = {layer.perm: perms[i] for i, layer in enumerate(tokens.layers)}
    return found | {f"{tokens.layers[i].perm}{SIGN}": sign for i, sign in signs.items()}


class _Scores:
    """What matching unit i of the reference with unit j of a network is worth, layer by layer."""

    def __init__(self, tokens: NeuronTokens, reference: Tensor, z: Tensor):
        self.tokens = tokens
        references = reference if reference.ndim == 2 else reference.unsqueeze(0)
        self.ours, self.theirs = ([x[:, part] for part in tokens.parts] for x in (references, z))

    def of(
        self, layer: int, perms: Mapping[int, Tensor], signs: Mapping[int, Tensor]
    ) -> Float[Tensor, "K n n"]:
        """Inner products: with the norms, which no permutation changes, they are squared distances."""
        n, width = self.tokens.layers[layer].num_units, self.tokens.layers[layer].width
        ours, theirs = (side[layer].unflatten(1, (n, width)) for side in (self.ours, self.theirs))
        score = ours @ theirs.mT
        first = len(self.tokens.layers) + 1
        for i, matrix in enumerate(self.tokens.matrices):
            if layer not in matrix.layers:
                continue
            rows, columns = matrix.num_units
            pair = [side[first + i].unflatten(1, (rows, columns, -1)) for side in (self.ours, self.theirs)]
            own = matrix.layers.index(layer)
            place = matrix.layers[1 - own]
            other = perms.get(place)
            if other is None:
                continue
            ours, theirs = (x.transpose(1, 2) if own else x for x in pair)  # (K, own units, other units, f)
            at = other[:, None, :, None].expand(-1, n, -1, theirs.shape[3])
            moved = theirs.gather(2, at)
            if place in signs:
                moved = moved * signs[place][:, None, :, None]
            score = score + ours.flatten(2) @ moved.flatten(2).mT
        return score


def _assign(score: Float[Tensor, "K n n"]) -> Int[Tensor, "K n"]:
    found = [linear_sum_assignment(each, maximize=True)[1] for each in score.double().cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(score.device)


def align(
    spec: ParamSpec,
    symmetry: Symmetry,
    reference: Float[Tensor, "*K D"],
    theta: Float[Tensor, "K D"],
    *,
    sweeps: int = 3,
) -> Float[Tensor, "K D"]:
    """Networks with the same function each, their units in the order, and with the signs, of the reference's.

    Args:
        reference: one for all networks, or one for each.
    """
    if not symmetry.sizes:
        return theta
    plain = Coordinates(spec, symmetry, {})
    ours = plain.encode(reference if reference.ndim == 2 else reference.unsqueeze(0))
    perms = match(plain.tokens, ours, plain.encode(theta), sweeps=sweeps, signed=symmetry.signed)
    return symmetry.apply(theta, perms)


ALIGNED = 64
"""Candidates of several hidden layers that are aligned at once with a query, the most promising ones."""
PER_GROUP = 2
"""Of these as many are of one group at most: checkpoints of one run are near each other."""

BOUNDED = 512
"""Candidates whose distances are bounded at once."""


class AlignedDistance:
    """L2 distance of parameters, minimal over permutations of hidden units, and signs where they are free.

    With one hidden layer it is exact, by assignment: with u_i the incoming weights, bias and outgoing weights
    of unit i, permuting units permutes these vectors, so that min_P |a - P b|^2 = min_P sum_i |u_i(a) -
    u_P(i)(b)|^2 + |rest(a) - rest(b)|^2. With several the minimum is hard to find; weight matching gives a
    bound from above, 0 for a permuted copy.
    """

    def __init__(self, spec: ParamSpec, symmetry: Symmetry):
        self._plain = Coordinates(spec, symmetry, {})  # no layer reduced: an isometry, tokens in front
        self._symmetry = symmetry
        self._exact = len(symmetry.sizes) < 2

    def nearest(
        self,
        queries: Float[Tensor, "Q D"],
        candidates: Float[Tensor, "C D"],
        within: Float[Tensor, " Q"] | None = None,
    ) -> Float[Tensor, " Q"]:
        """Each query's distance to its nearest candidate, or `within`, a distance known already, if that is
        less.

        Few assignments are solved: the sum of each unit's smallest cost bounds the distance from below, and
        candidates are tried in the order of that bound until it exceeds the best distance found; with several
        hidden layers the first `ALIGNED` of them.
        """
        zq, zc = (self._plain.encode(theta).double() for theta in (queries, candidates))  # norms cancel
        found = torch.full((len(zq),), torch.inf) if within is None else within.clone()
        for q, z in enumerate(zq):
            costs, rest = self._costs(z, zc)
            bound, best = _bound(costs, rest), float(found[q]) ** 2
            if self._exact:
                found[q] = _nearest_of_one_layer(bound, costs, rest, best) ** 0.5
            else:
                tried = bound.argsort()[:ALIGNED]
                tried = tried[bound[tried] < best]
                least = self._matched(queries[q], candidates[tried]).amin() if len(tried) else torch.inf
                found[q] = min(best, float(least)) ** 0.5
        return found

    def nearest_groups(
        self, queries: Float[Tensor, "Q D"], candidates: Float[Tensor, "C D"], groups: Int[Tensor, " C"]
    ) -> tuple[Float[Tensor, "Q 2"], Int[Tensor, "Q 2"]]:
        """Distances and places of each query's nearest candidate, and of the nearest of another group.

        Infinite, and place 0, where there is one group only. Found as `nearest` finds it.
        """
        zq, zc = (self._plain.encode(theta).double() for theta in (queries, candidates))  # norms cancel
        distance, place = torch.full((len(zq), 2), torch.inf), torch.zeros(len(zq), 2, dtype=torch.long)
        for q, z in enumerate(zq):
            costs, rest = self._costs(z, zc)
            bound = _bound(costs, rest)
            if self._exact:
                best = _two_of_one_layer(bound, costs, rest, groups)
            else:
                tried = _promising(bound, groups)
                squares = self._matched(queries[q], candidates[tried]).tolist()
                best = _Two(groups)
                for c, square in zip(tried.tolist(), squares, strict=True):
                    best.offer(square, c)
            for k, (square, c) in enumerate(best.found):
                distance[q, k], place[q, k] = square**0.5, c
        return distance, place

    def bounds(self, queries: Float[Tensor, "Q D"], candidates: Float[Tensor, "C D"]) -> Float[Tensor, "Q C"]:
        """Squared distances from below, without an assignment; in memory are `BOUNDED` candidates at once."""
        zq, found = self._plain.encode(queries).double(), []
        for some in candidates.split(BOUNDED):
            zc = self._plain.encode(some).double()
            found.append(torch.stack([_bound(*self._costs(z, zc)) for z in zq]))
        return torch.cat(found, 1)

    def _costs(self, z: Tensor, zc: Tensor) -> tuple[list[Tensor], Tensor]:
        """What units of each layer differ by (C, n own, n theirs), and at least all else (C,), squared."""
        tokens, costs = self._plain.tokens, []
        for layer, part in zip(tokens.layers, tokens.parts, strict=False):
            n, width = layer.num_units, layer.width  # 0 where all its numbers are in matrices
            own, units = z[part].view(n, width), zc[:, part].reshape(len(zc) * n, width)
            shared = own @ units.T
            shared = shared.abs() if layer.perm in self._symmetry.signed else shared
            cost = own.square().sum(1, keepdim=True) + units.square().sum(1) - 2 * shared
            costs.append(cost.clamp_min(0).view(n, len(zc), n).transpose(0, 1))
        rest, *matrices = tokens.parts[len(tokens.layers) :]
        others = (z[rest] - zc[:, rest]).square().sum(1)
        for part in matrices:  # no order of its entries changes a matrix's norm
            others += (z[part].norm() - zc[:, part].norm(dim=1)).square()
        return costs, others

    def _matched(self, query: Tensor, candidates: Tensor) -> Float[Tensor, " C"]:
        """Squared distances to candidates that weight matching has aligned with the query."""
        moved = align(self._plain.spec, self._symmetry, query, candidates.to(query))
        return (moved.double() - query.double()).square().sum(1)


class _Two:
    """The nearest candidate, and the nearest of another group."""

    def __init__(self, groups: Tensor):
        self.groups = groups.tolist()
        self.found: list[tuple[float, int]] = []

    @property
    def worst(self) -> float:
        return self.found[1][0] if len(self.found) == 2 else math.inf

    def offer(self, square: float, candidate: int) -> None:
        group = self.groups[candidate]
        same = [old for old in self.found if self.groups[old[1]] == group]
        others = [old for old in self.found if self.groups[old[1]] != group]
        self.found = sorted([*others, min([*same, (square, candidate)])])[:2]


def _bound(costs: list[Tensor], rest: Tensor) -> Tensor:
    return rest + sum(torch.maximum(cost.amin(2).sum(1), cost.amin(1).sum(1)) for cost in costs)


def _promising(bound: Tensor, groups: Tensor) -> Int[Tensor, " A"]:
    """The candidates of the least bounds, not all of one group."""
    of, taken = groups.tolist(), dict.fromkeys(groups.tolist(), 0)
    found: list[int] = []
    for c in bound.argsort().tolist():
        group = of[c]
        taken[group] += 1
        if taken[group] <= PER_GROUP:
            found.append(c)
        if len(found) == ALIGNED:
            break
    return torch.tensor(found)


def _two_of_one_layer(bound: Tensor, costs: list[Tensor], rest: Tensor, groups: Tensor) -> _Two:
    bounds, best = bound.numpy(), _Two(groups)
    for c in np.argsort(bounds).tolist():
        if bounds[c] >= best.worst:
            break
        best.offer(_exactly(costs, rest, c), c)
    return best


def _exactly(costs: list[Tensor], rest: Tensor, c: int) -> float:
    exact = float(rest[c])
    for cost in costs:
        each = cost[c].numpy()
        rows, columns = linear_sum_assignment(each)
        exact += float(each[rows, columns].sum())
    return exact


def _nearest_of_one_layer(bound: Tensor, costs: list[Tensor], rest: Tensor, best: float) -> float:
    """The least squared distance, exactly; `costs` are those of the one layer, if there is any."""
    bounds = bound.numpy()
    for c in np.argsort(bounds).tolist():
        if bounds[c] >= best:
            break
        best = min(best, _exactly(costs, rest, c))
    return best
