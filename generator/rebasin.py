"""Distances between networks modulo the permutation of their hidden units."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry

from .coordinates import Coordinates


class AlignedDistance:
    """L2 distance of parameters, minimal over permutations of the one hidden layer: exact, by assignment.

    With u_i the incoming weights, bias and outgoing weights of unit i, permuting units permutes these
    vectors, so that min_P |a - P b|^2 = min_P sum_i |u_i(a) - u_P(i)(b)|^2 + |rest(a) - rest(b)|^2, a linear
    assignment.
    """

    def __init__(self, spec: ParamSpec, symmetry: Symmetry):
        self._plain = Coordinates(spec, symmetry, {})  # no layer reduced: an isometry, tokens in front

    def nearest(
        self,
        queries: Float[Tensor, "Q D"],
        candidates: Float[Tensor, "C D"],
        within: Float[Tensor, " Q"] | None = None,
    ) -> Float[Tensor, " Q"]:
        """Each query's distance to its nearest candidate, or `within`, a distance known already, if that is
        less.

        Exact, yet few assignments are solved: the sum of each unit's smallest cost bounds the distance from
        below, and candidates are tried in the order of that bound until it exceeds the best distance found.
        """
        n, width = self._plain.tokens.num_units, self._plain.tokens.unit_width
        zq, zc = (self._plain.encode(theta).double() for theta in (queries, candidates))  # norms cancel
        units = zc[:, : n * width].reshape(-1, width)
        unit_norm = units.square().sum(1)
        found = torch.full((len(zq),), torch.inf) if within is None else within.clone()
        for q, z in enumerate(zq):
            own = z[: n * width].view(n, width)
            cost = (own.square().sum(1, keepdim=True) + unit_norm - 2 * own @ units.T).clamp_min(0)
            cost = cost.view(n, len(zc), n).transpose(0, 1)  # (C, n own, n theirs)
            rest = (z[n * width :] - zc[:, n * width :]).square().sum(1)
            bound = (torch.maximum(cost.amin(2).sum(1), cost.amin(1).sum(1)) + rest).numpy()
            best = float(found[q]) ** 2
            costs, rests = cost.numpy(), rest.numpy()
            for c in np.argsort(bound):
                if bound[c] >= best:
                    break
                rows, columns = linear_sum_assignment(costs[c])
                exact = costs[c][rows, columns].sum() + rests[c]
                best = min(best, float(exact))
            found[q] = best**0.5
        return found
