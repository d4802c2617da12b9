"""Coordinates: a space of networks in which distance is that of their functions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import ParamSpec, Task
from ckpt_factory.symmetry import Symmetry

from .tokens import NeuronTokens, Slot

MOMENTS = ("mean", "basis", "scale")


@dataclass(frozen=True)
class Layer:
    """Function-space coordinates of one layer's incoming weights.

    A row w and bias b over inputs x of mean mu and covariance V diag(s^2) V' become (w V s, b + w mu): a
    squared error of these numbers is, in the mean over inputs, a squared error of the pre-activation.
    """

    mean: Float[Tensor, " I"]
    basis: Float[Tensor, "I R"]
    """Leading eigenvectors V of the inputs' covariance; what lies outside them is left as in the start
    network."""
    scale: Float[Tensor, " R"]
    """Standard deviations s of the inputs along them."""


@dataclass(frozen=True)
class Coordinates:
    """theta (K, D) <-> coordinates z (K, Z): unit tokens (num_units, unit_width), then the rest token.

    The map is affine; `decode_update` is the linear way back for differences of networks. `Z` is smaller
    than D where layers are reduced to the leading directions of their inputs.
    """

    spec: ParamSpec
    symmetry: Symmetry
    layers: Mapping[str, Layer]

    @cached_property
    def tokens(self) -> NeuronTokens:
        """The layout of z: as of the network, with reduced widths where a layer is reduced."""
        whole = NeuronTokens.of_network(self.spec, self.symmetry)
        units: list[Slot] = []
        for slot in whole.unit_slots:
            layer = (
                self.layers.get(slot.name.removesuffix(".weight")) if slot.name.endswith(".weight") else None
            )
            width = slot.width if layer is None or slot.axis != 0 else layer.basis.shape[1]
            units.append(replace(slot, start=sum(s.width for s in units), width=width))
        return replace(whole, unit_slots=tuple(units))

    @classmethod
    def fit(cls, task: Task, *, rank: int, floor: float = 1e-3) -> "Coordinates":
        """Coordinates for a task's networks, from its training inputs.

        Args:
            rank: at most so many directions of a layer's inputs are kept; 0 keeps weights as they are.
            floor: directions whose standard deviation is below this share of the largest are left out.
        """
        layers = {}
        for name, (mean, covariance) in (task.input_moments() if rank else {}).items():
            variance, vectors = torch.linalg.eigh(covariance.double())
            scale = variance.clamp_min(0).sqrt().flip(0)
            kept = min(rank, int((scale > floor * scale[0]).sum()))
            layers[name] = Layer(mean, vectors.flip(1)[:, :kept].float().contiguous(), scale[:kept].float())
        return cls(task.spec, task.symmetry, layers)

    @property
    def Z(self) -> int:
        return self.tokens.num_units * self.tokens.unit_width + self.tokens.rest_width

    def encode(self, theta: Float[Tensor, "K D"]) -> Float[Tensor, "K Z"]:
        params = self.spec.unflatten(theta)
        for name, layer in self.layers.items():
            weight = params[f"{name}.weight"]
            params[f"{name}.bias"] = params[f"{name}.bias"] + weight @ layer.mean.to(theta)
            params[f"{name}.weight"] = weight @ (layer.basis * layer.scale).to(theta)
        return self._join(params)

    def decode_update(self, dz: Float[Tensor, "K Z"]) -> Float[Tensor, "K D"]:
        """The change of theta, inside the kept directions, that changes the coordinates by dz."""
        params = self._split(dz)
        for name, layer in self.layers.items():
            weight = params[f"{name}.weight"] @ (layer.basis / layer.scale).to(dz).T
            params[f"{name}.bias"] = params[f"{name}.bias"] - weight @ layer.mean.to(dz)
            params[f"{name}.weight"] = weight
        return self.spec.flatten(params)

    def slots(self) -> list[tuple[str, Tensor]]:
        """(parameter name, index of its coordinates in z), parameter by parameter."""
        t = self.tokens
        units = torch.arange(t.num_units * t.unit_width).view(t.num_units, t.unit_width)
        rest = t.num_units * t.unit_width + torch.arange(t.rest_width)
        return [(s.name, units[:, s.start : s.start + s.width].flatten()) for s in t.unit_slots] + [
            (s.name, rest[s.start : s.start + s.width]) for s in t.rest_slots
        ]

    def _join(self, params: Mapping[str, Tensor]) -> Tensor:
        units = [
            params[s.name].movedim(1 + (s.axis or 0), 1).flatten(2)
            if params[s.name].ndim > 2
            else params[s.name].unsqueeze(2)
            for s in self.tokens.unit_slots
        ]
        rest = [params[s.name].flatten(1) for s in self.tokens.rest_slots]
        return torch.cat([*([torch.cat(units, 2).flatten(1)] if units else []), *rest], 1)

    def _split(self, z: Tensor) -> dict[str, Tensor]:
        t, params = self.tokens, {}
        units = z[:, : t.num_units * t.unit_width].view(len(z), t.num_units, t.unit_width)
        for s in t.unit_slots:
            rows = units[:, :, s.start : s.start + s.width]
            full = (
                (s.shape[0], s.width)
                if s.axis == 0 and s.name.removesuffix(".weight") in self.layers
                else s.shape
            )
            params[s.name] = _from_units(rows, s, full)
        for s in t.rest_slots:
            start = t.num_units * t.unit_width + s.start
            params[s.name] = z[:, start : start + s.width].unflatten(1, s.shape)
        return {name: params[name] for name in self.spec.names}

    def tensors(self) -> dict[str, Tensor]:
        """What to store, by name; `from_tensors` is the way back."""
        return {
            f"{name}/{field}": getattr(layer, field).contiguous()
            for name, layer in self.layers.items()
            for field in MOMENTS
        }

    @classmethod
    def from_tensors(
        cls, spec: ParamSpec, symmetry: Symmetry, tensors: Mapping[str, Tensor]
    ) -> "Coordinates":
        names = {key.rpartition("/")[0] for key in tensors}
        layers = {
            name: Layer(**{field: tensors[f"{name}/{field}"] for field in MOMENTS}) for name in sorted(names)
        }
        return cls(spec, symmetry, layers)


def _from_units(rows: Float[Tensor, "K n w"], slot: Slot, shape: tuple[int, ...]) -> Any:
    if len(slot.shape) == 1:
        return rows.squeeze(2)
    others = [n for axis, n in enumerate(shape) if axis != slot.axis]
    return rows.unflatten(2, others).movedim(1, 1 + (slot.axis or 0))
