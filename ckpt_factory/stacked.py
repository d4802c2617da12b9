"""Stacks of multi-layer perceptrons: forward, gradients and metrics of K networks as a few large products.

Parameters are [fc1.weight, fc1.bias, fc2.weight, ...], each (K, ...); images x are (G, B, I), a mini-batch
for each of G groups of K / G runs. The first layer of all runs of a group is ONE product: their rows stand
below one another. `dtype` is that of the products with images, whose sums are float32 inside and rounded to
dtype at their end; everything else is float32. All functions are plain arithmetic, to be compiled or not.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .losses import tailr_weight

RECOMPILE_LIMIT = 64
"""Shapes that one function may be compiled for; a zoo has a few, a diverse one some dozen."""


def forward(params: Sequence[Tensor], x: Float[Tensor, "G B I"], dtype: torch.dtype) -> list[Tensor]:
    """Activations of every layer, (K, H, B) each; the last are the logits (K, C, B)."""
    weight, bias = params[0], params[1]
    rows = weight.to(dtype).reshape(len(x), -1, weight.shape[-1])  # (G, K / G * H, I)
    x = x.to(dtype).transpose(1, 2)
    if dtype == bias.dtype:
        h = torch.baddbmm(bias.reshape(len(x), -1, 1), rows, x)
    else:
        h = rows.bmm(x) + bias.reshape(len(x), -1, 1)
    h = h.view(*weight.shape[:2], -1)
    activations = []
    for weight, bias in zip(params[2::2], params[3::2], strict=True):
        h = h.relu()
        activations.append(h)
        h = torch.baddbmm(bias.unsqueeze(-1), weight, h)
    return [*activations, h]


def gradients(
    params: Sequence[Tensor],
    x: Float[Tensor, "G B I"],
    labels: Int[Tensor, "G B"],
    gamma: Float[Tensor, " K"] | None,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Back-propagation by hand of the mean loss of each run, shaped like params.

    The first layer's weight gradient is one product per group, and there is no gradient of the images.
    """
    *hidden, logits = forward(params, x, dtype)
    num_runs, num_classes, batch_size = logits.shape
    labels = labels.repeat_interleave(num_runs // len(labels), 0).unsqueeze(1)  # (K, 1, B)
    p = logits.softmax(1)
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    delta = (p - (classes == labels).to(p.dtype)) / batch_size
    if gamma is not None:
        delta = delta * tailr_weight(p.gather(1, labels).squeeze(1), gamma).unsqueeze(1)
    found: list[Tensor] = []
    for layer in range(len(params) - 2, 0, -2):
        below = hidden[layer // 2 - 1]  # (K, H, B)
        found = [delta.bmm(below.transpose(1, 2)), delta.sum(-1), *found]
        delta = params[layer].transpose(1, 2).bmm(delta) * (below > 0)
    grouped = delta.to(dtype).reshape(len(x), -1, batch_size)  # (G, K / G * H, B)
    first = grouped.bmm(x.to(dtype)).view(params[0].shape).to(params[0].dtype)
    return [first, delta.sum(-1), *found]


def metrics(
    params: Sequence[Tensor], x: Float[Tensor, "1 B I"], labels: Int[Tensor, " B"], dtype: torch.dtype
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """(sum of cross-entropies, number of errors) of each run on the same images.

    Right is only what beats all other classes: neither NaN nor a tie, or a network of zeros had no error.
    """
    logits = forward(params, x, dtype)[-1]  # (K, C, B)
    right = logits.gather(1, labels.expand(len(logits), 1, -1))
    losses = logits.logsumexp(1) - right.squeeze(1)
    wrong = (logits < right).sum(1) != logits.shape[1] - 1
    return losses.sum(-1), wrong.sum(-1).to(losses.dtype)


@functools.cache
def compiled(function: Callable) -> Callable:
    """The function compiled for fixed shapes; the same compilation serves all stacks of a process."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    return torch.compile(function, fullgraph=True, dynamic=False)
