"""AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019) for stacks of runs."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .stack import StackOptimizer, add_scaled, average, bias_correction, new_step, per_run, shrink


def adamw_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: Tensor | float,
    beta1: Tensor | float,
    beta2: Tensor | float,
    eps: float,
    weight_decay: Tensor | float,
) -> None:
    """One step in place (Loshchilov and Hutter 2019, algorithm 2); `step` counts this one already.

    The corrections of both moments are folded into the rate, which is small, instead of the moments.
    """
    shrink(param, lr * weight_decay)
    average(exp_avg, grad, beta1)
    if isinstance(beta2, Tensor):
        average(exp_avg_sq, grad.square(), beta2)
    else:
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    root = bias_correction(beta2, step).sqrt()
    torch.sqrt(exp_avg_sq, out=grad).add_(eps * root)
    torch.div(exp_avg, grad, out=grad)
    add_scaled(param, grad, -lr * root / bias_correction(beta1, step))


class AdamW(StackOptimizer):
    """torch.optim.AdamW over stacks; the keys of its state are the same.

    Rates are some 30 times smaller than SGD's. The weight decay is decoupled: parameters, biases included,
    shrink by lr * weight_decay a step, so that it wants to be as many times larger as lr is smaller.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Tensor | float = 1e-3,
        betas: tuple[Tensor | float, Tensor | float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: Tensor | float = 0.01,
        *,
        stacked: bool = True,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, stacked=stacked)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"] = new_step(param)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        adamw_rule(
            param,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            state["step"],
            lr=per_run(group["lr"], param),
            beta1=per_run(beta1, param),
            beta2=per_run(beta2, param),
            eps=group["eps"],
            weight_decay=per_run(group["weight_decay"], param),
        )
