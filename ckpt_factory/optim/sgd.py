"""SGD with (Nesterov) momentum for stacks of runs, each with a learning rate and weight decay of its own."""

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .stack import StackOptimizer, add_scaled, per_run


def sgd_rule(
    param: Tensor,
    grad: Tensor,
    buffer: Tensor | None,
    *,
    lr: Tensor | float,
    momentum: Tensor | float,
    weight_decay: Tensor | float,
    nesterov: bool,
) -> Tensor:
    """One step in place, as torch.optim.SGD without dampening (Sutskever et al. 2013, eq. 3-4).

    Returns:
        The momentum buffer, a new one at the first step.
    """
    add_scaled(grad, param, weight_decay)
    if buffer is None:
        buffer = grad.clone()
    else:
        buffer.mul_(momentum).add_(grad)
    if nesterov:
        add_scaled(grad, buffer, momentum)
        add_scaled(param, grad, -lr)
    else:
        add_scaled(param, buffer, -lr)
    return buffer


class SGD(StackOptimizer):
    """torch.optim.SGD over stacks. The L2 penalty `weight_decay` is on all parameters, biases included."""

    def __init__(
        self,
        params: ParamsT,
        lr: Tensor | float,
        momentum: Tensor | float = 0.0,
        weight_decay: Tensor | float = 0.0,
        nesterov: bool = False,
        *,
        stacked: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults, stacked=stacked)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["momentum_buffer"] = sgd_rule(
            param,
            grad,
            state.get("momentum_buffer"),
            lr=per_run(group["lr"], param),
            momentum=per_run(group["momentum"], param),
            weight_decay=per_run(group["weight_decay"], param),
            nesterov=group["nesterov"],
        )
