"""Tiger (Su 2023, kexue.fm/archives/9512), all of it, for stacks of runs: one moment, rates by scale."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .stack import StackOptimizer, add_scaled, all_finite, new_step, per_run, rms


def tiger_rule(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    finite: Tensor,
    *,
    lr: Tensor | float,
    beta: Tensor | float,
    weight_decay: Tensor | float,
    opens: Tensor | bool = True,
    closes: Tensor | bool = True,
    accumulate: int = 1,
    shrink_ratio: float = 0.99,
    centre: float = 0.0,
) -> None:
    """One step in place, the rate already relative to the parameter (see `tiger_lr`).

    m <- ((beta - 1) opens + 1) m + (1 - beta) / k g, and where the step closes the k gradients
    theta <- theta - lr (sign(m) + weight_decay theta): k gradients accumulate in the moment itself.
    The NaN rule: a run whose gradient of this parameter is not `finite` leaves its m alone, and its parameter
    shrinks towards `centre` by `shrink_ratio`. What reduces over a run, `finite` and the rate, is given: the
    CPU code generator of torch 2.15 fails on a reduction fused with what follows here.
    """
    finite = finite.to(param.dtype)
    grad.nan_to_num_(0.0, 0.0, 0.0)
    exp_avg.mul_((1 - (1 - beta) * finite * opens).to(param.dtype))
    add_scaled(exp_avg, grad, ((1 - beta) / accumulate * finite).to(param.dtype))
    rate = lr * finite * closes
    torch.sign(exp_avg, out=grad)
    factor = 1 - rate * weight_decay - (1 - shrink_ratio) * (1 - finite)
    param.mul_(factor.to(param.dtype)).addcmul_(grad, -rate.to(param.dtype))
    if centre:
        param.add_(centre * (1 - shrink_ratio) * (1 - finite))


def tiger_lr(
    param: Tensor, lr: Tensor | float, *, floor: float, per_row: bool, stacked: bool
) -> Tensor | float:
    """The rate of a matrix is relative to its root mean square, that of all else is half of `lr`.

    Below `floor` the root mean square counts as the floor: or a matrix of zeros never moved.
    `per_row`: each row of an embedding table by itself.
    """
    if param.ndim - stacked < 2:
        return 0.5 * lr
    scale = param.square().mean(-1, keepdim=True).sqrt() if per_row else rms(param, stacked)
    return lr * scale.clamp_min(floor)


class Tiger(StackOptimizer):
    """Tiger over stacks, by the rules of its author's own implementation (github.com/bojone/tiger).

    `lr` is relative to the parameter for matrices (its author: 1e-3 to 2e-3 at the peak) and halved for
    biases and gains, which do not decay. Matrices are what has two axes or more beside the run's. `step` with
    `accumulate=k` takes each of k gradients as it comes, keeps no sum of them, and moves at every k-th.

    A parameter group may set `centre` to 1 for gains of normalisation layers, where the NaN rule shrinks
    them to, and `per_row` for embedding tables. The floor of the scale is ours: the author's matrices of
    zeros stay zero. It is below what initialisations give to up to 3,000 inputs, U(-1/sqrt(n), 1/sqrt(n)).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Tensor | float = 1e-3,
        beta: Tensor | float = 0.945,
        weight_decay: Tensor | float = 0.01,
        *,
        accumulate: int = 1,
        shrink_ratio: float = 0.99,
        floor: float = 0.01,
        centre: float = 0.0,
        per_row: bool = False,
        stacked: bool = True,
    ):
        if accumulate < 1 or not floor > 0:
            raise ValueError(f"accumulate is {accumulate}, expected at least 1; floor {floor}, positive")
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "accumulate": accumulate}
        own = {"shrink_ratio": shrink_ratio, "floor": floor, "centre": centre, "per_row": per_row}
        super().__init__(params, defaults | own, stacked=stacked)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["step"], state["exp_avg"] = new_step(param), torch.zeros_like(param)
        k, stacked = group["accumulate"], group["stacked"]
        opens = state["step"] % k == 0 if k > 1 else True
        state["step"] += 1
        lr = tiger_lr(
            param,
            per_run(group["lr"], param),
            floor=group["floor"],
            per_row=group["per_row"],
            stacked=stacked,
        )
        tiger_rule(
            param,
            grad,
            state["exp_avg"],
            all_finite(grad, stacked),
            lr=lr,
            beta=per_run(group["beta"], param),
            weight_decay=per_run(group["weight_decay"], param) if param.ndim - stacked >= 2 else 0.0,
            opens=opens,
            closes=state["step"] % k == 0 if k > 1 else True,
            accumulate=k,
            shrink_ratio=group["shrink_ratio"],
            centre=group["centre"],
        )
