"""Weight matching: orders of hidden units that bring a network near another, and distances modulo them."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry

from .coordinates import Coordinates
from .tokens import NeuronTokens

Perms = dict[str, Int[Tensor, "K n"]]


def match(
    tokens: NeuronTokens, reference: Float[Tensor, " Z"], z: Float[Tensor, "K Z"], *, sweeps: int = 0
) -> Perms:
    """The permutations that bring each network near the reference (Git Re-Basin, Ainsworth et al. 2023).

    Layer by layer from the input, by what a unit shares with no unit and with those that are in order
    already; every layer is a linear assignment, solved exactly. The result does not depend on the order in
    which a network comes, but for ties. For one hidden layer it is the nearest order there is; for several,
    `sweeps` over the layers improve it further, each layer given all others.
    """
    score = _Scores(tokens, reference, z)
    perms: dict[int, Tensor] = {}
    for sweep in range(sweeps + 1):
        before = dict(perms)
        for layer in range(len(tokens.layers)):
            perms[layer] = _assign(score.of(layer, perms))
        if sweep and all(torch.equal(before[layer], perms[layer]) for layer in perms):
            break
    return {layer.perm: perms[i] for i, layer in enumerate(tokens.layers)}


class _Scores:
    """What matching unit i of the reference with unit j of a network is worth, layer by layer."""

    def __init__(self, tokens: NeuronTokens, reference: Tensor, z: Tensor):
        self.tokens = tokens
        self.ours, self.theirs = ([x[:, part] for part in tokens.parts] for x in (reference.unsqueeze(0), z))

    def of(self, layer: int, perms: Mapping[int, Tensor]) -> Float[Tensor, "K n n"]:
        """Inner products: with the norms, which no permutation changes, they are squared distances."""
        n = self.tokens.layers[layer].num_units
        ours, theirs = (side[layer].unflatten(1, (n, -1)) for side in (self.ours, self.theirs))
        score = ours @ theirs.mT
        first = len(self.tokens.layers) + 1
        for i, matrix in enumerate(self.tokens.matrices):
            if layer not in matrix.layers:
                continue
            rows, columns = matrix.num_units
            pair = [side[first + i].unflatten(1, (rows, columns, -1)) for side in (self.ours, self.theirs)]
            own = matrix.layers.index(layer)
            other = perms.get(matrix.layers[1 - own])
            if other is None:
                continue
            ours, theirs = (x.transpose(1, 2) if own else x for x in pair)  # (K, own units, other units, f)
            at = other[:, None, :, None].expand(-1, n, -1, theirs.shape[3])
            score = score + ours.flatten(2) @ theirs.gather(2, at).flatten(2).mT
        return score


def _assign(score: Float[Tensor, "K n n"]) -> Int[Tensor, "K n"]:
    found = [linear_sum_assignment(each, maximize=True)[1] for each in score.double().cpu().numpy()]
    return torch.from_numpy(np.stack(found)).to(score.device)


ALIGNED = 64
"""Candidates of several hidden layers that are aligned at once with a query, the most promising ones."""


class AlignedDistance:
    """L2 distance of parameters, minimal over permutations of hidden units.

    With one hidden layer it is exact, by assignment: with u_i the incoming weights, bias and outgoing weights
    of unit i, permuting units permutes these vectors, so that min_P |a - P b|^2 = min_P sum_i |u_i(a) -
    u_P(i)(b)|^2 + |rest(a) - rest(b)|^2. With several the minimum is hard to find; weight matching gives a
    bound from above, 0 for a permuted copy.
    """

    def __init__(self, spec: ParamSpec, symmetry: Symmetry):
        self._plain = Coordinates(spec, symmetry, {})  # no layer reduced: an isometry, tokens in front
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
            bound = rest + sum(torch.maximum(cost.amin(2).sum(1), cost.amin(1).sum(1)) for cost in costs)
            best = float(found[q]) ** 2
            if self._exact:
                found[q] = _nearest_of_one_layer(bound, costs, rest, best) ** 0.5
            else:
                tried = bound.argsort()[:ALIGNED]
                found[q] = self._matched(z, zc[tried[bound[tried] < best]], best) ** 0.5
        return found

    def _costs(self, z: Tensor, zc: Tensor) -> tuple[list[Tensor], Tensor]:
        """What units of each layer differ by (C, n own, n theirs), and at least all else (C,), squared."""
        tokens, costs = self._plain.tokens, []
        for layer, part in zip(tokens.layers, tokens.parts, strict=False):
            own = z[part].view(layer.num_units, -1)
            units = zc[:, part].reshape(-1, layer.width)
            cost = own.square().sum(1, keepdim=True) + units.square().sum(1) - 2 * own @ units.T
            costs.append(cost.clamp_min(0).view(layer.num_units, len(zc), -1).transpose(0, 1))
        rest, *matrices = tokens.parts[len(tokens.layers) :]
        others = (z[rest] - zc[:, rest]).square().sum(1)
        for part in matrices:  # no order of its entries changes a matrix's norm
            others += (z[part].norm() - zc[:, part].norm(dim=1)).square()
        return costs, others

    def _matched(self, z: Tensor, candidates: Tensor, best: float) -> float:
        if not len(candidates):
            return best
        perms = match(self._plain.tokens, z.float(), candidates.float(), sweeps=3)
        moved = candidates.gather(1, self._plain.index(perms))
        return min(best, float((moved - z).square().sum(1).min()))


def _nearest_of_one_layer(bound: Tensor, costs: list[Tensor], rest: Tensor, best: float) -> float:
    """The least squared distance, exactly; `costs` are those of the one layer, if there is any."""
    bounds, rests = bound.numpy(), rest.numpy()
    for c in np.argsort(bounds):
        if bounds[c] >= best:
            break
        exact = rests[c]
        for cost in costs:
            each = cost[c].numpy()
            rows, columns = linear_sum_assignment(each)
            exact += each[rows, columns].sum()
        best = min(best, float(exact))
    return best
