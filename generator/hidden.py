"""Function space of layers that read hidden units: what units say, whichever network of a zoo they are in."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded

FLOOR = 0.1
"""Directions whose standard deviation is below this share of the largest are taken as if it were that."""


class Moments(NamedTuple):
    """Of what a layer's inputs say, H units at P positions of a patch (1 if dense), in the mean over
    networks, examples and units: all that is left of a covariance that knows no unit by its name."""

    mean: Float[Tensor, " P"]
    within: Float[Tensor, "P P"]
    """Second moments within a unit."""
    between: Float[Tensor, "P P"]
    """Of two different units."""


@dataclass(frozen=True)
class HiddenLayer:
    """Function-space coordinates of weights w (H, P) that multiply what H hidden units say.

    The inputs' covariance, in the mean over networks, is the same for every order of the units: A within a
    unit and B between any two, whose eigenspaces are the mean over units and what differs from it. So with
    the symmetric roots of A - B and of A + (H - 1) B,

        w - mean(w), mean(w), b  ->  (w - mean(w)) rest, mean(w) common, b + sum(w mu)

    has the squared error of the pre-activation, in the mean over networks and examples, as its squared error,
    and permuting units still is permuting coordinates.
    """

    mean: Float[Tensor, " P"]
    rest: Float[Tensor, "P P"]
    common: Float[Tensor, "P P"]

    @classmethod
    def of(cls, moments: Moments, num_units: int, *, has_bias: bool) -> "HiddenLayer":
        """From moments; where there is no bias to take the mean, it stays part of the second moments."""
        mean = moments.mean if has_bias else torch.zeros_like(moments.mean)
        shared = moments.between - mean.outer(mean)
        rest = moments.within - moments.between
        return cls(mean.float(), _root(rest), _root(rest + num_units * shared))

    def encode(
        self, weight: Float[Tensor, "K O H *P"], bias: Float[Tensor, "K O"] | None
    ) -> tuple[Tensor, Tensor | None]:
        return self._changed(weight, bias, self.rest, self.common, 1)

    def decode(
        self, weight: Float[Tensor, "K O H *P"], bias: Float[Tensor, "K O"] | None
    ) -> tuple[Tensor, Tensor | None]:
        return self._changed(weight, bias, torch.linalg.inv(self.rest), torch.linalg.inv(self.common), -1)

    def _changed(
        self, weight: Tensor, bias: Tensor | None, rest: Tensor, common: Tensor, sign: int
    ) -> tuple[Tensor, Tensor | None]:
        """Either way; the bias moves by what the plain weights give at the inputs' mean."""
        flat = weight.flatten(3) if weight.ndim > 3 else weight.unsqueeze(3)
        middle = flat.mean(2, keepdim=True)
        made = (flat - middle) @ rest.to(flat) + middle @ common.to(flat)
        if bias is not None:
            plain = flat if sign > 0 else made
            bias = bias + sign * (plain.sum(2) @ self.mean.to(flat))
        return made.view_as(weight), bias


def hidden_layers(
    task: Task, networks: Float[Tensor, "K D"], *, num_examples: int = 256
) -> dict[str, HiddenLayer]:
    """Coordinates of the layers, dense or convolutions, that read what hidden units say, by their names.

    Args:
        networks: training checkpoints that the moments are taken over.

    Returns:
        None of them where the task's networks answer no examples.
    """
    if not task.answers_examples:
        return {}
    chosen = torch.randint(2**62, (num_examples,), generator=seeded(0))
    module = task.module().eval()
    x, _ = task.examples("train", chosen % task.num_examples("train"))
    found: dict[str, list[Moments]] = defaultdict(list)
    with torch.no_grad(), _watched(module, task, lambda name, moments: found[name].append(moments)):
        for theta in networks:
            module.load_state_dict(task.spec.unflatten(theta))
            module(x)
    layers, axes = {}, task.symmetry.axes_to_perm
    for name, each in found.items():
        moments = Moments(*(torch.stack(parts).mean(0) for parts in zip(*each, strict=True)))
        perm = axes[f"{name}.weight"][1]
        assert perm is not None
        if perm in task.symmetry.signed:  # what a unit says is its negative as often
            moments = Moments(torch.zeros_like(moments.mean), moments.within, 0 * moments.between)
        units, has_bias = task.symmetry.sizes[perm], f"{name}.bias" in axes
        layers[name] = HiddenLayer.of(moments, units, has_bias=has_bias)
    return layers


@contextmanager
def _watched(module: nn.Module, task: Task, see: Callable[[str, Moments], None]) -> Iterator[None]:
    """Calls `see` with what every layer that reads hidden units is given, while it lasts."""
    handles = []
    for name, layer in module.named_modules():
        if _reads_units(task, name, layer):

            def hook(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                see(name, _moments(_patches(layer, inputs[0]).double()))

            handles.append(layer.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reads_units(task: Task, name: str, layer: nn.Module) -> bool:
    """Whether what the layer reads are hidden units, which may be permuted."""
    perm = (*task.symmetry.axes_to_perm.get(f"{name}.weight", ()), None, None)[1]
    if isinstance(layer, nn.Conv2d):
        return perm is not None and layer.groups == 1 and layer.padding_mode == "zeros"
    return perm is not None and isinstance(layer, nn.Linear)


def _patches(layer: nn.Module, x: Float[Tensor, "B *input"]) -> Float[Tensor, "N H P"]:
    """All that the layer's weights are multiplied by."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).unsqueeze(2)
    assert isinstance(layer, nn.Conv2d)
    padding = layer.padding
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else tuple((k - 1) // 2 for k in layer.kernel_size)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
    return columns.unflatten(1, (x.shape[1], -1)).movedim(3, 1).flatten(0, 1)


def _moments(patches: Float[Tensor, "N H P"]) -> Moments:
    num, units, _ = patches.shape
    within = torch.einsum("nhp,nhq->pq", patches, patches) / (num * units)
    whole = patches.sum(1)
    both = whole.T @ whole / num  # all pairs of units, a unit with itself among them
    between = (both - units * within) / max(1, units * (units - 1))
    return Moments(patches.mean((0, 1)), within, between)


def _root(covariance: Float[Tensor, "P P"]) -> Float[Tensor, "P P"]:
    """The symmetric root, in float32, of eigenvalues that are not below what FLOOR allows."""
    values, vectors = torch.linalg.eigh(covariance)
    scale = values.clamp_min(0).sqrt()
    if not scale[-1] > 0:
        return torch.eye(len(scale))  # units that say nothing
    scale = scale.clamp_min(FLOOR * float(scale[-1]))
    return ((vectors * scale) @ vectors.T).float()
