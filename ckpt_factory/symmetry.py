"""Symmetry: permutations (and signs) of hidden units that leave a network's function as it is, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .spec import ParamSpec

SIGN = "/sign"


@dataclass(frozen=True)
class Symmetry:
    """Loss-preserving permutations of a network's hidden units (Git Re-Basin, Ainsworth et al. 2023).

    `axes_to_perm` names, for each parameter, the permutation that acts on each of its axes, or None:
    {"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": (None, "P0"), "fc2.bias": (None,)}.
    A permutation is data derived from the spec, never from the order of calls: acting on a network is
    `theta.gather(-1, index)`, and so are augmentation, alignment, canonical forms and optimizer moments.

    Units between odd activations (tanh) may change their sign, too: of a permutation P0 in `signed`, a
    transformation has signs under the name "P0/sign" besides the permutation under "P0".
    """

    spec: ParamSpec
    axes_to_perm: Mapping[str, tuple[str | None, ...]]
    signed: tuple[str, ...] = ()
    """The permutations whose units' signs are free."""

    def __post_init__(self) -> None:
        for name, shape in zip(self.spec.names, self.spec.shapes, strict=True):
            axes = self.axes_to_perm.get(name)
            if axes is None or len(axes) != len(shape):
                raise ValueError(
                    f"parameter {name!r} of shape {shape} has {axes} for its axes: one entry each"
                )
            named = [axis for axis in axes if axis]
            if len(set(named)) != len(named):
                raise ValueError(f"parameter {name!r}: one permutation on two axes is not supported, {axes}")
        unknown = set(self.signed) - set(self.sizes)
        if unknown:
            raise ValueError(f"signed has {sorted(unknown)}; expected some of {sorted(self.sizes)}")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many units each permutation moves."""
        sizes: dict[str, int] = {}
        for name, shape in zip(self.spec.names, self.spec.shapes, strict=True):
            for perm, n in zip(self.axes_to_perm[name], shape, strict=True):
                if perm is not None and sizes.setdefault(perm, n) != n:
                    raise ValueError(f"{perm} permutes {sizes[perm]} units, but an axis of {name!r} has {n}")
        return sizes

    def identity(self, num: int) -> dict[str, Int[Tensor, "K n"]]:
        signs = {f"{perm}{SIGN}": torch.ones(num, self.sizes[perm], dtype=torch.long) for perm in self.signed}
        return {perm: torch.arange(n).expand(num, n) for perm, n in self.sizes.items()} | signs

    def random(self, num: int, *, rng: torch.Generator) -> dict[str, Int[Tensor, "K n"]]:
        """`num` independent uniform permutations, {name: (num, n)}, and signs of units that have them."""
        drawn = {
            perm: torch.rand(num, n, generator=rng, device=rng.device).argsort(-1)
            for perm, n in self.sizes.items()
        }
        for perm in self.signed:
            shape = (num, self.sizes[perm])
            bits = torch.randint(2, shape, generator=rng, device=rng.device)
            drawn[f"{perm}{SIGN}"] = 2 * bits - 1
        return drawn

    def inverse(self, perms: Mapping[str, Int[Tensor, "K n"]]) -> dict[str, Int[Tensor, "K n"]]:
        """What undoes a transformation."""
        found = {perm: perms[perm].argsort(-1) for perm in self.sizes}
        for name in perms.keys() - found.keys():
            found[name] = perms[name].gather(1, found[name.removesuffix(SIGN)])
        return found

    def index(self, perms: Mapping[str, Int[Tensor, "K n"]]) -> Int[Tensor, "K D"]:
        """The gather index of permutations: unit i of the result is unit perm[i] of what it is applied to."""
        if not perms:
            raise ValueError("a network without permutations has no index; `apply` returns it as it is")
        first = next(iter(perms.values()))
        parts = []
        for name, part, shape in self.spec.slices():
            index = torch.full((len(first), *[1] * len(shape)), part.start, device=first.device)
            for axis, (perm, n) in enumerate(zip(self.axes_to_perm[name], shape, strict=True)):
                along = perms[perm] if perm else torch.arange(n, device=first.device).expand(len(first), n)
                stride = prod(shape[axis + 1 :])
                index = index + stride * along.reshape(
                    len(first), *[n if a == axis else 1 for a in range(len(shape))]
                )
            parts.append(index.flatten(1))
        return torch.cat(parts, 1)

    def factor(self, perms: Mapping[str, Int[Tensor, "K n"]]) -> Float[Tensor, "K D"] | None:
        """What signs multiply the entries of a permuted network with; None where there are none."""
        signs = {name.removesuffix(SIGN): value for name, value in perms.items() if name.endswith(SIGN)}
        if not signs:
            return None
        first = next(iter(signs.values()))
        parts = []
        for name, _, shape in self.spec.slices():
            factor = torch.ones(len(first), *shape, device=first.device)
            for axis, perm in enumerate(self.axes_to_perm[name]):
                if perm in signs:
                    along = [-1 if a == axis else 1 for a in range(len(shape))]
                    factor = factor * signs[perm].view(len(first), *along)
            parts.append(factor.flatten(1))
        return torch.cat(parts, 1)

    def apply(
        self, theta: Float[Tensor, "K D"], perms: Mapping[str, Int[Tensor, "K n"]]
    ) -> Float[Tensor, "K D"]:
        """Transformed networks with the same function: unit i of the result is unit perm[i] times sign[i]."""
        if not perms:
            return theta
        moved, factor = theta.gather(1, self.index(perms)), self.factor(perms)
        return moved if factor is None else moved * factor
