"""Lion (Chen et al. 2023, arXiv 2302.06675) for stacks of runs: every entry moves by the same amount."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .stack import StackOptimizer, add_scaled, average, averaged, per_run, shrink


def lion_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    *,
    lr: Tensor | float,
    beta1: Tensor | float,
    beta2: Tensor | float,
    weight_decay: Tensor | float,
) -> None:
    """One step in place (Chen et al. 2023, algorithm 2): sign(beta1 m + (1 - beta1) g), then m follows g.

    sign(0) = 0: what has no gradient does not move. Where the gradient is not finite it counts as 0: in m, it
    would stay for ever, and no sign of it would ever again move what it belongs to.
    """
    grad.nan_to_num_(0.0, 0.0, 0.0)
    shrink(param, lr * weight_decay)
    update = averaged(exp_avg, grad, beta1).sign_()
    average(exp_avg, grad, beta2)
    add_scaled(param, update, -lr)


class Lion(StackOptimizer):
    """Lion over stacks.

    Its authors' advice: a rate 3 to 10 times smaller than AdamW's, and a weight decay as many times larger,
    since parameters (biases included) shrink by lr * weight_decay a step; betas (0.95, 0.98) where training
    is not stable.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Tensor | float = 1e-4,
        betas: tuple[Tensor | float, Tensor | float] = (0.9, 0.99),
        weight_decay: Tensor | float = 0.0,
        *,
        stacked: bool = True,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, stacked=stacked)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
        beta1, beta2 = group["betas"]
        lion_rule(
            param,
            grad,
            state["exp_avg"],
            lr=per_run(group["lr"], param),
            beta1=per_run(beta1, param),
            beta2=per_run(beta2, param),
            weight_decay=per_run(group["weight_decay"], param),
        )
