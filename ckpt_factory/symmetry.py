"""Symmetry: the permutations of hidden units that leave a network's function as it is, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .spec import ParamSpec


@dataclass(frozen=True)
class Symmetry:
    """Loss-preserving permutations of a network's hidden units (Git Re-Basin, Ainsworth et al. 2023).

    `axes_to_perm` names, for each parameter, the permutation that acts on each of its axes, or None:
    {"fc1.weight": ("P0", None), "fc1.bias": ("P0",), "fc2.weight": (None, "P0"), "fc2.bias": (None,)}.
    A permutation is data derived from the spec, never from the order of calls: acting on a network is
    `theta.gather(-1, index)`, and so are augmentation, alignment, canonical forms and optimizer moments.
    """

    spec: ParamSpec
    axes_to_perm: Mapping[str, tuple[str | None, ...]]

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
        _ = self.sizes

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
        return {perm: torch.arange(n).expand(num, n) for perm, n in self.sizes.items()}

    def random(self, num: int, *, rng: torch.Generator) -> dict[str, Int[Tensor, "K n"]]:
        """`num` independent uniform permutations, {name: (num, n)}."""
        return {
            perm: torch.rand(num, n, generator=rng, device=rng.device).argsort(-1)
            for perm, n in self.sizes.items()
        }

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

    def apply(
        self, theta: Float[Tensor, "K D"], perms: Mapping[str, Int[Tensor, "K n"]]
    ) -> Float[Tensor, "K D"]:
        """Permuted networks with the same function."""
        return theta.gather(1, self.index(perms)) if perms else theta
