"""Amos (Tian and Parikh 2022, arXiv 2210.11693) for stacks: it decays its rate and the weights by itself."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .stack import StackOptimizer, average, bias_correction, new_statistic, new_step, per_run, rms

SMALLEST = 2.0**-125
"""Below it a mean squared gradient counts as this: near the smallest normal float32 (its authors' choice)."""


def amos_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg_sq: Tensor,
    decay: Tensor,
    exp_avg: Tensor | None,
    step: Tensor,
    *,
    lr: Tensor | float,
    scale: float,
    beta: Tensor | float,
    zeta: float,
    momentum: Tensor | float,
    weight_decay: Tensor | float,
    stacked: bool = True,
) -> None:
    """One step in place (Tian and Parikh 2022, algorithm 1); `step` counts this one already.

    With xi the rate, eta the scale, r = (1 - beta^t) / v and g2 the mean squared gradient of a run's tensor:

        c = (1 + zeta sqrt(xi) b)^-1/2       gamma = c xi^2 r g2
        d = (1 + zeta sqrt(xi eta) b)^-1     theta <- theta - d (xi eta sqrt(r) g + (gamma / 2) theta)
                                             b <- b + gamma (1 + b)

    `weight_decay` adds d xi weight_decay theta to that; `exp_avg` averages the updates.
    """
    g2 = rms(grad, stacked).square()
    average(exp_avg_sq, g2, beta)
    r = bias_correction(beta, step) / exp_avg_sq.clamp_min(SMALLEST)
    c = (1 + zeta * lr**0.5 * decay).rsqrt()
    d = (1 + zeta * (lr * scale) ** 0.5 * decay).reciprocal()
    gamma = c * lr**2 * r * g2
    rate = (d * lr * scale * r.sqrt()).to(param.dtype)
    share = (d * (0.5 * gamma + lr * weight_decay)).to(param.dtype)
    if exp_avg is None:
        param.mul_(1 - share).addcmul_(grad, -rate)
    else:
        average(exp_avg, grad.mul_(rate).addcmul_(param, share), momentum)
        param.sub_(exp_avg)
    decay.mul_(1 + gamma).add_(gamma)


class Amos(StackOptimizer):
    """Amos over stacks, with the statistics of each run's tensors to themselves.

    `lr` is xi: about 1 / sqrt(independent batches in the training data), constant, since Amos decays it by
    itself. Its updates are relative to `scale`, eta, the size that a parameter's entries are expected to
    reach: 1/2 for biases and gains, sqrt(2 / fan_in) for matrices, unless a parameter group sets it (the
    paper: sqrt(1 / fan_in) for an output layer). `momentum` averages updates; `clip` bounds every entry of
    the gradient. Amos has a weight decay of its own; `weight_decay` is added to it, and decays with the rate.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Tensor | float = 1e-2,
        beta: Tensor | float = 0.999,
        momentum: Tensor | float = 0.0,
        weight_decay: Tensor | float = 0.0,
        *,
        scale: float | None = None,
        zeta: float = 0.25,
        clip: float | None = None,
        stacked: bool = True,
    ):
        defaults = {"lr": lr, "beta": beta, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"scale": scale, "zeta": zeta, "clip": clip}, stacked=stacked)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        stacked, momentum = group["stacked"], group["momentum"]
        if not state:
            state["step"] = new_step(param)
            state["exp_avg_sq"], state["decay"] = new_statistic(param, stacked), new_statistic(param, stacked)
            if isinstance(momentum, Tensor) or momentum > 0:
                state["exp_avg"] = torch.zeros_like(param)
        state["step"] += 1
        if group["clip"] is not None:
            grad.clamp_(-group["clip"], group["clip"])
        amos_rule(
            param,
            grad,
            state["exp_avg_sq"],
            state["decay"],
            state.get("exp_avg"),
            state["step"],
            lr=per_run(group["lr"], param),
            scale=expected_scale(param, stacked) if group["scale"] is None else group["scale"],
            beta=per_run(group["beta"], param),
            zeta=group["zeta"],
            momentum=per_run(momentum, param),
            weight_decay=per_run(group["weight_decay"], param),
            stacked=stacked,
        )


def expected_scale(param: Tensor, stacked: bool) -> float:
    """eta by shape: 1/2 for vectors, sqrt(2 / fan_in) for matrices and kernels (out, in, ...)."""
    own = param.shape[1:] if stacked else param.shape
    return 0.5 if len(own) < 2 else (2 / own[1:].numel()) ** 0.5
