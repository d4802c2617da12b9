"""ParamSpec: the names and shapes of a network's parameters, and with them its one flat vector theta."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ParamSpec:
    """Names and shapes of parameters, in state_dict order: the bridge between a state_dict and theta.

    Everything that enters or leaves the system is `theta: (K, D)` with its ParamSpec; `unflatten` gives the
    views that `module.load_state_dict` takes unchanged.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.shapes) or len(set(self.names)) != len(self.names):
            raise ValueError(
                f"ParamSpec needs one shape for each of its distinct names, got {self.names} and "
                f"{self.shapes}"
            )

    @classmethod
    def of_module(cls, module: nn.Module) -> "ParamSpec":
        """The spec of a module's state_dict."""
        state = module.state_dict()
        return cls(tuple(state), tuple(tuple(value.shape) for value in state.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def D(self) -> int:
        """Number of parameters, the length of theta."""
        return sum(self.sizes)

    @cached_property
    def id(self) -> str:
        """A hash of names and shapes: equal in every process, unlike hash()."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def slices(self) -> Iterator[tuple[str, slice, tuple[int, ...]]]:
        """(name, its slice of theta, its shape) for each parameter, in order."""
        start = 0
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            yield name, slice(start, start + size), shape
            start += size

    def unflatten(self, theta: Float[Tensor, "*K D"]) -> dict[str, Tensor]:
        """Views of theta by name, each of shape (*K, *shape)."""
        if theta.shape[-1] != self.D:
            raise ValueError(f"theta has {theta.shape[-1]} parameters, its spec {self.id} has {self.D}")
        return {
            name: theta[..., part].unflatten(-1, shape) if shape else theta[..., part.start]
            for name, part, shape in self.slices()
        }

    def flatten(self, params: Mapping[str, Tensor]) -> Float[Tensor, "*K D"]:
        """The inverse of `unflatten`: parameters of shape (*K, *shape) to one theta of shape (*K, D).

        Raises:
            ValueError: a name is missing or unknown, or a shape differs; the message says which.
        """
        missing = [name for name in self.names if name not in params]
        unknown = [name for name in params if name not in self.names]
        if missing or unknown:
            raise ValueError(
                f"the network's parameters do not fit: missing {missing}, unknown {unknown}; "
                f"expected {dict(zip(self.names, self.shapes, strict=True))}"
            )
        stack = None  # the leading axes (*K), of all parameters alike
        for name, _, shape in self.slices():
            given = tuple(params[name].shape)
            lead = given[: len(given) - len(shape)]
            stack = lead if stack is None else stack
            if given != (*stack, *shape):
                raise ValueError(f"parameter {name!r} has shape {given}, expected {(*stack, *shape)}")
        return torch.cat(
            [
                params[name].flatten(-len(shape)) if shape else params[name].unsqueeze(-1)
                for name, _, shape in self.slices()
            ],
            dim=-1,
        )

    def to_json(self) -> str:
        return json.dumps({"names": self.names, "shapes": self.shapes}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ParamSpec":
        fields = json.loads(text)
        return cls(tuple(fields["names"]), tuple(tuple(shape) for shape in fields["shapes"]))
