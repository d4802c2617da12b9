"""Coordinates: a space of networks in which distance is that of their functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ckpt_factory import ParamSpec, Task
from ckpt_factory.symmetry import Symmetry

from .hidden import HiddenLayer, hidden_layers
from .model.tokens import NeuronTokens, Slot


@dataclass(frozen=True)
class Layer:
    """Function-space coordinates of one layer's incoming weights.

    A row w and bias b over inputs x of mean mu and covariance V diag(s^2) V' become (w V s, b + w mu): a
    squared error of these numbers is, in the mean over inputs, a squared error of the pre-activation. The
    inputs of a convolution are patches. Without a bias mu is 0 and V diag(s^2) V' the inputs' second moment.
    """

    mean: Float[Tensor, " I"]
    basis: Float[Tensor, "I R"]
    """Leading eigenvectors V of the inputs' covariance; what lies outside them is left as in the start
    network."""
    scale: Float[Tensor, " R"]
    """Standard deviations s of the inputs along them."""


@dataclass(frozen=True)
class Coordinates:
    """theta (K, D) <-> coordinates z (K, Z): the units of each layer, the rest, the matrices between layers.

    The map is affine; `decode_update` is the linear way back for differences of networks. `Z` is smaller
    than D where layers are reduced to the leading directions of their inputs.
    """

    spec: ParamSpec
    symmetry: Symmetry
    layers: Mapping[str, Layer]
    hidden: Mapping[str, HiddenLayer] = field(default_factory=dict)
    """Of the layers that read hidden units, where networks are in function space in these, too."""

    @cached_property
    def tokens(self) -> NeuronTokens:
        """The layout of z: as of the network, with reduced widths where a layer is reduced."""
        whole = NeuronTokens.of_network(self.spec, self.symmetry)
        layers = [replace(layer, slots=self._narrowed(layer.slots)) for layer in whole.layers]
        return replace(whole, layers=tuple(layers), rest_slots=self._narrowed(whole.rest_slots))

    @classmethod
    def fit(
        cls,
        task: Task,
        *,
        rank: int,
        networks: Float[Tensor, "K D"] | None = None,
        floor: float = 0.1,
    ) -> "Coordinates":
        """Coordinates for a task's networks, from its training inputs.

        Args:
            rank: at most so many directions of a layer's inputs are kept; 0 keeps weights as they are.
            networks: training checkpoints whose hidden units say what the layers behind them read; None
                keeps the weights of these as they are.
            floor: directions whose standard deviation is below this share of the largest are left out.
        """
        layers = {}
        for name, (mean, covariance) in (task.input_moments() if rank else {}).items():
            if task.symmetry.axes_to_perm[f"{name}.weight"][1]:
                continue  # hidden units have no directions that all networks share: `hidden_layers`
            if f"{name}.bias" not in task.spec.names:
                mean, covariance = torch.zeros_like(mean), covariance + mean.outer(mean)
            variance, vectors = torch.linalg.eigh(covariance.double())
            scale = variance.clamp_min(0).sqrt().flip(0)
            kept = min(rank, int((scale > floor * scale[0]).sum()))
            layers[name] = Layer(mean, vectors.flip(1)[:, :kept].float().contiguous(), scale[:kept].float())
        hidden = {} if networks is None else hidden_layers(task, networks)
        return cls(task.spec, task.symmetry, layers, hidden)

    def to(self, device: torch.device | str) -> "Coordinates":
        """The same with its layers on a device, so that no use of them copies them there."""
        moved = {key: tensor.to(device) for key, tensor in self.tensors().items()}
        return self.from_tensors(self.spec, self.symmetry, moved)

    @property
    def Z(self) -> int:
        return self.tokens.Z

    @property
    def words(self) -> str:
        """What they are, for cards and reports."""
        kept = [f"{name}: {len(layer.scale)} directions" for name, layer in self.layers.items()]
        return (
            ", ".join(kept + [f"{name}: by hidden units" for name in self.hidden]) or "parameters as they are"
        )

    @cached_property
    def reduced(self) -> Symmetry:
        """Names, shapes and permutations of the parameters that z is made of."""
        shapes = {name: self._shape(name, shape) for name, _, shape in self.spec.slices()}
        axes = {name: self.symmetry.axes_to_perm[name][: len(shape)] for name, shape in shapes.items()}
        return Symmetry(ParamSpec(self.spec.names, tuple(shapes.values())), axes)

    @cached_property
    def order(self) -> Int[Tensor, " Z"]:
        """Places in z of the parameters that it is made of, flattened one after the other: z[:, order]."""
        places = self._split(torch.arange(self.Z).unsqueeze(0))
        return torch.cat([places[name].flatten() for name in self.spec.names])

    def index(self, perms: Mapping[str, Int[Tensor, "K n"]]) -> Int[Tensor, "K Z"]:
        """As `Symmetry.index`, of coordinates: permuting units is z.gather(1, index)."""
        index = self.reduced.index(perms)
        order = self.order.to(index.device)
        return order[index[:, order.argsort()]]

    def encode(self, theta: Float[Tensor, "K D"]) -> Float[Tensor, "K Z"]:
        params = self.spec.unflatten(theta)
        for name, layer in self.layers.items():
            weight, bias = params[f"{name}.weight"].flatten(2), f"{name}.bias"
            if bias in params:
                params[bias] = params[bias] + weight @ layer.mean.to(theta)
            params[f"{name}.weight"] = weight @ (layer.basis * layer.scale).to(theta)
        for name, layer in self.hidden.items():
            _change(params, name, layer.encode)
        return self._join(params)

    def decode_update(self, dz: Float[Tensor, "K Z"]) -> Float[Tensor, "K D"]:
        """The change of theta, inside the kept directions, that changes the coordinates by dz."""
        params, shapes = self._split(dz), dict(zip(self.spec.names, self.spec.shapes, strict=True))
        for name, layer in self.layers.items():
            weight, bias = params[f"{name}.weight"] @ (layer.basis / layer.scale).to(dz).T, f"{name}.bias"
            if bias in params:
                params[bias] = params[bias] - weight @ layer.mean.to(dz)
            params[f"{name}.weight"] = weight.unflatten(2, shapes[f"{name}.weight"][1:])
        for name, layer in self.hidden.items():
            _change(params, name, layer.decode)
        return self.spec.flatten(params)

    def slots(self) -> list[tuple[str, Tensor]]:
        """(parameter name, index of its coordinates in z), parameter by parameter."""
        return [(name, self.order[part]) for name, part, _ in self.reduced.spec.slices()]

    @cached_property
    def group(self) -> Int[Tensor, " Z"]:
        """Which of the parameters, by its place in the spec, each coordinate belongs to."""
        found = torch.empty(self.Z, dtype=torch.long)
        for i, (_, index) in enumerate(self.slots()):
            found[index] = i
        return found

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of a parameter in z: (units, directions) where its layer is reduced."""
        layer = self.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        return shape if layer is None else (shape[0], layer.basis.shape[1])

    def _narrowed(self, slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
        found: list[Slot] = []
        for slot in slots:
            shape = self._shape(slot.name, slot.shape)
            width = prod(shape) if slot.axis is None else prod(shape) // shape[slot.axis]
            found.append(replace(slot, start=sum(s.width for s in found), width=width))
        return tuple(found)

    def _join(self, params: Mapping[str, Tensor]) -> Tensor:
        t, parts = self.tokens, []
        for layer in t.layers:
            units = [
                params[s.name].movedim(1 + (s.axis or 0), 1).reshape(-1, layer.num_units, s.width)
                for s in layer.slots
            ]
            parts += [torch.cat(units, 2).flatten(1)] if units else []
        parts += [params[s.name].flatten(1) for s in t.rest_slots]
        parts += [
            params[m.name].movedim((1 + m.axes[0], 1 + m.axes[1]), (1, 2)).flatten(1) for m in t.matrices
        ]
        return torch.cat(parts, 1)

    def _split(self, z: Shaped[Tensor, "K Z"]) -> dict[str, Tensor]:
        t, params = self.tokens, {}
        *layers, rest, matrices = (*t.parts[: len(t.layers) + 1], t.parts[len(t.layers) + 1 :])
        for layer, part in zip(t.layers, layers, strict=True):
            units = z[:, part].view(len(z), layer.num_units, layer.width)
            for s in layer.slots:
                rows = units[:, :, s.start : s.start + s.width]
                params[s.name] = _unflatten(rows, self._shape(s.name, s.shape), (s.axis or 0,))
        for s in t.rest_slots:
            values = z[:, rest][:, s.start : s.start + s.width]
            params[s.name] = _unflatten(values, self._shape(s.name, s.shape), ())
        for m, part in zip(t.matrices, matrices, strict=True):
            params[m.name] = _unflatten(z[:, part].view(len(z), *m.num_units, -1), m.shape, m.axes)
        return {name: params[name] for name in self.spec.names}

    def tensors(self) -> dict[str, Tensor]:
        """What to store, by name; `from_tensors` is the way back."""
        return {
            f"{name}/{each.name}": getattr(layer, each.name).contiguous()
            for name, layer in (*self.layers.items(), *self.hidden.items())
            for each in fields(layer)
        }

    @classmethod
    def from_tensors(
        cls, spec: ParamSpec, symmetry: Symmetry, tensors: Mapping[str, Tensor]
    ) -> "Coordinates":
        found: dict[type, dict[str, Any]] = {Layer: {}, HiddenLayer: {}}
        for name in sorted({key.rpartition("/")[0] for key in tensors}):
            kind = HiddenLayer if f"{name}/common" in tensors else Layer
            found[kind][name] = kind(**{each.name: tensors[f"{name}/{each.name}"] for each in fields(kind)})
        return cls(spec, symmetry, found[Layer], found[HiddenLayer])


def _change(
    params: dict[str, Tensor], name: str, change: Callable[..., tuple[Tensor, Tensor | None]]
) -> None:
    """A layer's weight, and its bias if it has one, to coordinates or back."""
    weight, bias = f"{name}.weight", f"{name}.bias"
    params[weight], moved = change(params[weight], params.get(bias))
    if moved is not None:
        params[bias] = moved


def _unflatten(values: Tensor, shape: tuple[int, ...], front: tuple[int, ...]) -> Tensor:
    """Parameters of that shape from values (K, ...) in which the axes `front` stand first."""
    others = [n for axis, n in enumerate(shape) if axis not in front]
    values = values.reshape(len(values), *(shape[axis] for axis in front), *others)
    return values.movedim(tuple(range(1, 1 + len(front))), tuple(1 + axis for axis in front))
