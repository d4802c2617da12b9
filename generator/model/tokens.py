"""Tokens: one per hidden unit, of what belongs to no other unit, one for all that is left, and matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

from ckpt_factory import ParamSpec, Symmetry


@dataclass(frozen=True)
class Slot:
    """Where one parameter goes: `width` consecutive features of its kind of token."""

    name: str
    shape: tuple[int, ...]
    axis: int | None
    """The axis of the parameter that runs over units; None in the rest token."""
    start: int
    width: int


@dataclass(frozen=True)
class UnitLayer:
    """Hidden units that one permutation moves: incoming weights from the input, bias, outgoing weights."""

    perm: str
    num_units: int
    slots: tuple[Slot, ...]

    @cached_property
    def width(self) -> int:
        return sum(slot.width for slot in self.slots)

    @property
    def size(self) -> int:
        return self.num_units * self.width


@dataclass(frozen=True)
class Matrix:
    """A parameter between two layers of units: `width` features of every pair (9 of a 3x3 convolution)."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, int]
    """The axes of the parameter that run over units, in ascending order."""
    layers: tuple[int, int]
    """Whose units they run over, as places in `NeuronTokens.layers`."""
    width: int

    @property
    def num_units(self) -> tuple[int, int]:
        return self.shape[self.axes[0]], self.shape[self.axes[1]]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class NeuronTokens:
    """The token layout of a network's coordinates z: the units layer by layer, the rest, then the matrices.

    Units carry no position code, so a transformer over these tokens is equivariant to their permutation; a
    matrix between hidden layers belongs to pairs of units.
    """

    layers: tuple[UnitLayer, ...]
    rest_slots: tuple[Slot, ...]
    matrices: tuple[Matrix, ...]

    @classmethod
    def of_network(cls, spec: ParamSpec, symmetry: Symmetry) -> "NeuronTokens":
        """The layout that a network's symmetry implies.

        Raises:
            ValueError: a parameter belongs to units of more than two layers.
        """
        place = {perm: i for i, perm in enumerate(symmetry.sizes)}
        units: dict[str, list[Slot]] = {perm: [] for perm in symmetry.sizes}
        rest: list[Slot] = []
        matrices: list[Matrix] = []
        for name, shape in zip(spec.names, spec.shapes, strict=True):
            moved = [(axis, perm) for axis, perm in enumerate(symmetry.axes_to_perm[name]) if perm]
            if len(moved) > 2:
                raise ValueError(
                    f"parameter {name!r} has {len(moved)} axes of hidden units, "
                    f"{symmetry.axes_to_perm[name]}; tokens are for parameters of one unit or of two"
                )
            if len(moved) == 2:
                (i, row), (j, column) = moved
                width = prod(shape) // (shape[i] * shape[j])
                matrices.append(Matrix(name, shape, (i, j), (place[row], place[column]), width))
                continue
            axis, slots = (moved[0][0], units[moved[0][1]]) if moved else (None, rest)
            width = prod(shape) if axis is None else prod(shape) // shape[axis]
            slots.append(Slot(name, shape, axis, _end(slots), width))
        layers = (UnitLayer(perm, n, tuple(units[perm])) for perm, n in symmetry.sizes.items())
        return cls(tuple(layers), tuple(rest), tuple(matrices))

    @cached_property
    def rest_width(self) -> int:
        return _end(self.rest_slots)

    @cached_property
    def num_units(self) -> int:
        """Hidden units of all layers."""
        return sum(layer.num_units for layer in self.layers)

    @cached_property
    def parts(self) -> list[slice]:
        """Where in z the layers, the rest and the matrices lie, in this order."""
        ends = [0]
        for size in (
            *(layer.size for layer in self.layers),
            self.rest_width,
            *(m.size for m in self.matrices),
        ):
            ends.append(ends[-1] + size)
        return [slice(a, b) for a, b in pairwise(ends)]

    @cached_property
    def Z(self) -> int:
        return self.parts[-1].stop


def _end(slots: Sequence[Slot]) -> int:
    return sum(slot.width for slot in slots)
