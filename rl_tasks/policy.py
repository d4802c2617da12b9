"""Policies: stacks of small MLPs whose forward and backward passes are a few stacked products in numpy.

numpy's matmul hands every network's small matrices to BLAS one by one, which on a CPU is two to three times
as fast as torch.bmm at these sizes (256 networks, 8 rows of 32 units each: 23 against 44 ns per row), and its
vectorised transcendental functions are ten times as fast as torch's SELU. What a network gives does not
depend on the rest of its stack; nor does what a row gives depend on the other rows, where their number is a
multiple of four (OpenBLAS has kernels of four rows) and weights lie as `for_steps` puts them: to the last
bit, on one processor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor, nn

from ckpt_factory import ParamSpec, Symmetry

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
"""Klambauer et al. 2017, section 2; in float64, rounded where they are used."""


class Activation(NamedTuple):
    """An elementwise function, by its outputs."""

    module: Callable[[], nn.Module]
    apply: Callable[[ndarray], None]
    """In place, contiguous float32."""
    back: Callable[[ndarray, ndarray], ndarray]
    """(gradient of the outputs, outputs) -> gradient of the inputs."""
    is_odd: bool
    """f(-x) = -f(x): the sign of a unit is a symmetry of the network."""


def _selu(h: ndarray) -> None:
    x = torch.from_numpy(h)
    below = torch.clamp(x, max=0)
    np.expm1(below.numpy(), out=below.numpy())
    x.clamp_(min=0).mul_(SELU_SCALE).add_(below, alpha=SELU_ALPHA * SELU_SCALE)


def _selu_back(delta: ndarray, h: ndarray) -> ndarray:
    d, x = torch.from_numpy(delta), torch.from_numpy(h)
    return torch.ops.aten.elu_backward(d, SELU_ALPHA, SELU_SCALE, 1.0, True, x).numpy()


def _tanh(h: ndarray) -> None:
    np.tanh(h, out=h)


def _tanh_back(delta: ndarray, h: ndarray) -> ndarray:
    return torch.ops.aten.tanh_backward(torch.from_numpy(delta), torch.from_numpy(h)).numpy()


def _relu(h: ndarray) -> None:
    torch.from_numpy(h).clamp_(min=0)


def _relu_back(delta: ndarray, h: ndarray) -> ndarray:
    return torch.ops.aten.threshold_backward(torch.from_numpy(delta), torch.from_numpy(h), 0).numpy()


ACTIVATIONS = {
    "selu": Activation(nn.SELU, _selu, _selu_back, is_odd=False),
    "tanh": Activation(nn.Tanh, _tanh, _tanh_back, is_odd=True),
    "relu": Activation(nn.ReLU, _relu, _relu_back, is_odd=False),
}

Layers = list[tuple[ndarray, ndarray]]
"""[(weight (K, out, in), bias (K, out)), ...], float32."""


def forward(layers: Layers, x: Float32[ndarray, "K B I"], activation: Activation) -> list[ndarray]:
    """Outputs of every layer, (K, B, H) each; the last are the network's.

    Weights may be views with any strides: where they are used for many steps, (in, out) in memory is faster.
    """
    outputs = []
    for i, (weight, bias) in enumerate(layers):
        x = np.matmul(x, weight.transpose(0, 2, 1))
        x += bias[:, None]
        if i < len(layers) - 1:
            activation.apply(x)
        outputs.append(x)
    return outputs


def for_steps(layers: Layers) -> Layers:
    """A copy whose weights lie as `forward` reads them fastest, for when it is called many times."""
    return [(np.ascontiguousarray(w.transpose(0, 2, 1)).transpose(0, 2, 1), b) for w, b in layers]


def backward(
    layers: Layers,
    x: Float32[ndarray, "K B I"],
    outputs: Sequence[ndarray],
    delta: Float32[ndarray, "K B C"],
    activation: Activation,
) -> Layers:
    """Gradients of every layer's weight and bias, given the gradient of the network's outputs."""
    ones = np.ones((1, x.shape[1]), np.float32)
    found: Layers = []
    for i in reversed(range(len(layers))):
        below = outputs[i - 1] if i else x
        gradient = np.matmul(delta.transpose(0, 2, 1), below)
        found.insert(0, (gradient, np.matmul(ones, delta)[:, 0]))  # a sum by BLAS: 10 times as fast
        if i:
            weight = layers[i][0]  # BLAS knows no outer product of stacks: 10 times as slow
            spread = delta * weight if weight.shape[1] == 1 else np.matmul(delta, weight)
            delta = activation.back(spread, below)
    return found


@dataclass(frozen=True)
class PolicyNet:
    """The form of a policy: observations -> logits of actions, or the means of a Gaussian's.

    Parameters are named as in the published policies: of `nn.Sequential` under "actor", behind the
    state-independent "log_std" of a Gaussian, which is the first.
    """

    observation_size: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "selu"
    continuous: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.observation_size, *self.hidden, self.outputs)

    @property
    def act(self) -> Activation:
        return ACTIVATIONS[self.activation]

    def module(self) -> "PolicyModule":
        return PolicyModule(self)

    @cached_property
    def spec(self) -> ParamSpec:
        shapes = {"log_std": (self.outputs,)} if self.continuous else {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes)):
            shapes |= {f"actor.{2 * i}.weight": (fan_out, fan_in), f"actor.{2 * i}.bias": (fan_out,)}
        return ParamSpec(tuple(shapes), tuple(shapes.values()))

    @cached_property
    def symmetry(self) -> Symmetry:
        """Permutation P{l} of the units of hidden layer l, and their signs where the activation is odd."""
        axes: dict[str, tuple[str | None, ...]] = {"log_std": (None,)} if self.continuous else {}
        for i in range(len(self.sizes) - 1):
            rows = f"P{i}" if i < len(self.hidden) else None
            axes[f"actor.{2 * i}.weight"] = (rows, f"P{i - 1}" if i else None)
            axes[f"actor.{2 * i}.bias"] = (rows,)
        signed = tuple(f"P{i}" for i in range(len(self.hidden))) if self.act.is_odd else ()
        return Symmetry(self.spec, axes, signed)

    def init(self, rngs: Sequence[torch.Generator], *, last_gain: float = 0.01) -> Float[Tensor, "K D"]:
        """Orthogonal matrices with gain sqrt(2), `last_gain` for the last; biases as torch.nn.Linear's
        U(-1/sqrt(fan_in), 1/sqrt(fan_in)), not zeroed; log_std 0. As published (Peebles et al. 2022)."""
        parts = [torch.zeros(len(rngs), self.outputs)] if self.continuous else []
        for i, (fan_in, fan_out) in enumerate(pairwise(self.sizes)):
            gain = 2**0.5 if i < len(self.hidden) else last_gain
            shape = (max(fan_in, fan_out), min(fan_in, fan_out))
            q, r = torch.linalg.qr(torch.stack([torch.randn(shape, generator=rng) for rng in rngs]))
            q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # uniform over orthonormal matrices
            weight = gain * (q if fan_out >= fan_in else q.transpose(1, 2))
            uniform = torch.stack([torch.rand(fan_out, generator=rng) for rng in rngs])
            parts += [weight.flatten(1), (2 * uniform - 1) * fan_in**-0.5]
        return torch.cat(parts, 1)

    def layers(self, params: Sequence[ndarray]) -> Layers:
        """Weights and biases among parameters in the spec's order."""
        matrices = params[1:] if self.continuous else params
        return list(zip(matrices[::2], matrices[1::2], strict=True))

    def params(self, theta: Float32[ndarray, "K D"]) -> list[ndarray]:
        """Views of theta, one for each parameter, in the spec's order."""
        return [theta[:, part].reshape(len(theta), *shape) for _, part, shape in self.spec.slices()]


class PolicyModule(nn.Module):
    """One policy as a plain module: (B, O) scaled observations -> (B, A) logits or means."""

    def __init__(self, net: PolicyNet):
        super().__init__()
        if net.continuous:
            self.log_std = nn.Parameter(torch.zeros(net.outputs))
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(net.sizes):
            layers += [nn.Linear(fan_in, fan_out), net.act.module()]
        self.actor = nn.Sequential(*layers[:-1])

    def forward(self, observations: Tensor) -> Tensor:
        return self.actor(observations)
