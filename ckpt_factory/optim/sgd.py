"""SGD with (Nesterov) momentum for stacks of runs, each with a learning rate and weight decay of its own."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


def per_run(value: Tensor | float, like: Tensor) -> Tensor | float:
    """A hyper-parameter (K,) shaped to broadcast over parameters (K, ...); a float stays as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.reshape(-1, *[1] * (like.ndim - 1))


class SGD(Optimizer):
    """torch.optim.SGD over parameters with a leading run axis: (K, ...).

    `lr`, `momentum` and `weight_decay` are floats or tensors (K,), one value a run. Run k moves exactly as
    under torch.optim.SGD with its own values (no dampening). Unlike there, `step` uses up `param.grad`:
    it is overwritten with the update, which saves one pass over memory in the inner loop.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Tensor | float,
        momentum: Tensor | float = 0.0,
        weight_decay: Tensor | float = 0.0,
        nesterov: bool = False,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                lr, momentum, weight_decay = (
                    per_run(group[key], param) for key in ("lr", "momentum", "weight_decay")
                )
                update = param.grad
                _add_scaled(update, param, weight_decay)
                buffer = self.state[param].get("momentum_buffer")
                if buffer is None:
                    buffer = self.state[param]["momentum_buffer"] = update.clone()
                else:
                    buffer.mul_(momentum).add_(update)
                if group["nesterov"]:
                    _add_scaled(update, buffer, momentum)
                else:
                    update = buffer
                _add_scaled(param, update, -lr)
        return loss


def _add_scaled(x: Tensor, y: Tensor, scale: Tensor | float) -> None:
    """x += scale * y in one pass."""
    if isinstance(scale, Tensor):
        x.addcmul_(y, scale)
    elif scale != 0:
        x.add_(y, alpha=scale)
