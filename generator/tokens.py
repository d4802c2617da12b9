"""Tokens: one per hidden unit (incoming weights, bias, outgoing weights), one for all that is left."""

from dataclasses import dataclass
from functools import cached_property
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
class NeuronTokens:
    """The token layout of a network with one layer of hidden units.

    Units carry no position code, so a transformer over these tokens is equivariant to their permutation.
    """

    num_units: int
    unit_slots: tuple[Slot, ...]
    rest_slots: tuple[Slot, ...]

    @classmethod
    def of_network(cls, spec: ParamSpec, symmetry: Symmetry) -> "NeuronTokens":
        """The layout that a network's symmetry implies.

        Raises:
            ValueError: the network has several hidden layers, whose matrices belong to pairs of units.
        """
        if len(symmetry.sizes) > 1:
            raise ValueError(
                f"neuron tokens are for networks with one layer of hidden units; this one has "
                f"{symmetry.sizes}"
            )
        units: list[Slot] = []
        rest: list[Slot] = []
        for name, shape in zip(spec.names, spec.shapes, strict=True):
            axis = next((i for i, perm in enumerate(symmetry.axes_to_perm[name]) if perm), None)
            slots = rest if axis is None else units
            width = prod(shape) if axis is None else prod(shape) // shape[axis]
            slots.append(Slot(name, shape, axis, sum(slot.width for slot in slots), width))
        return cls(next(iter(symmetry.sizes.values()), 0), tuple(units), tuple(rest))

    @cached_property
    def unit_width(self) -> int:
        return sum(slot.width for slot in self.unit_slots)

    @cached_property
    def rest_width(self) -> int:
        return sum(slot.width for slot in self.rest_slots)
