"""Losses and gradients of stacks of any module: one vmap over all runs, or a plain loop over them.

torch.func does the same for K networks as for one and stacks what can be stacked. Convolutions cannot on a
CPU: vmap makes grouped ones of them, which are slower than one network after the other (measured on
`ConvNet`, batch 128, 4 networks: 12.3 ms per network and step, against 11.3 ms in a loop with micro-batches).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Params = Mapping[str, Tensor]
Loss = Callable[[dict[str, Tensor], Tensor, Tensor, Tensor | None], Tensor]
"""(parameters of one network, x (B, ...), y (B, ...), its gamma or None) -> its mean loss, a scalar."""


def stacked_loss(
    loss: Loss, params: Params, x: Tensor, y: Tensor, gamma: Tensor | None = None, *, looped: bool
) -> Float[Tensor, " K"]:
    """Each network's loss on its group's batch, differentiable.

    Args:
        params: {name: (K, *shape)}.
        x, y: (G, B, ...); network k learns from group k // (K // G).
        gamma: (K,), each network's own for TaiLr; None: all have the task's loss.
        looped: one network after the other.
    """
    if looped:
        return torch.stack([loss(own, x[g], y[g], c) for g, own, c in _networks(params, gamma, len(x))])
    return _over_networks(loss, params, x, y, gamma).flatten()


def stacked_gradients(
    loss: Loss,
    params: Params,
    x: Tensor,
    y: Tensor,
    gamma: Tensor | None = None,
    *,
    looped: bool,
    micro_batch: int | None = None,
) -> dict[str, Tensor]:
    """Gradients of each network's loss, shaped like params; arguments as of `stacked_loss`.

    Args:
        micro_batch: examples at once of a loop, for a loss that is a mean over examples.
    """
    if not looped:
        found = _over_networks(grad(loss), params, x, y, gamma)
        return {name: value.flatten(0, 1) for name, value in found.items()}
    gradients = {name: torch.zeros_like(value) for name, value in params.items()}
    size = micro_batch or x.shape[1]
    for k, (g, own, c) in enumerate(_networks(params, gamma, len(x))):
        leaves = {name: value.detach().requires_grad_() for name, value in own.items()}
        for images, labels in zip(x[g].split(size), y[g].split(size), strict=True):
            mean = loss(leaves, images, labels, c)
            parts = torch.autograd.grad(
                mean, list(leaves.values()), allow_unused=True, materialize_grads=True
            )
            for name, part in zip(leaves, parts, strict=True):
                gradients[name][k].add_(part, alpha=len(images) / x.shape[1])
    return gradients


def stacked_outputs(
    net: nn.Module, params: Params, x: Float[Tensor, "B *input"], *, looped: bool
) -> Float[Tensor, "K B *output"]:
    """What each network answers to the same inputs, differentiable.

    Args:
        net: a module, whose own parameters do not matter.
        params: {name: (K, *shape)}.
        looped: one network after the other.
    """
    if not looped:
        return vmap(lambda own: functional_call(net, own, (x,)))(dict(params))
    return torch.stack([functional_call(net, own, (x,)) for _, own, _ in _networks(params, None, 1)])


def _networks(
    params: Params, gamma: Tensor | None, num_groups: int
) -> Iterator[tuple[int, dict[str, Tensor], Tensor | None]]:
    """(group, parameters, gamma) of each network of a stack."""
    num_runs = len(next(iter(params.values())))
    for k in range(num_runs):
        own = {name: value[k] for name, value in params.items()}
        yield k * num_groups // num_runs, own, None if gamma is None else gamma[k]


def _over_networks(
    function: Callable[..., Any], params: Params, x: Tensor, y: Tensor, gamma: Tensor | None
) -> Any:
    """A function of one network, its batch and gamma, for all: results (G, K / G, ...)."""
    grouped = {name: value.unflatten(0, (len(x), -1)) for name, value in params.items()}
    if gamma is None:
        return vmap(vmap(functools.partial(function, gamma=None), in_dims=(0, None, None)))(grouped, x, y)
    by_group = gamma.unflatten(0, (len(x), -1))
    return vmap(vmap(function, in_dims=(0, None, None, 0)))(grouped, x, y, by_group)
