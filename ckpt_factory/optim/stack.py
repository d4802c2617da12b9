"""What the rules share: the walk over a stack's parameters, and arithmetic that keeps its runs apart."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

NOT_NEGATIVE = ("lr", "weight_decay", "eps")
SHARES = ("momentum", "beta", "betas")


class StackOptimizer(Optimizer):
    """An ordinary torch.optim.Optimizer whose parameters carry a leading run axis: (K, ...).

    Hyper-parameters are floats or tensors (K,), one value a run, and may be set anew before every step
    through `param_groups`; run k moves exactly as if it were alone with its own values. With `stacked=False`
    there is no run axis: the same rule trains an ordinary module.

    Unlike under torch's own optimizers `step` uses up `param.grad`, which becomes scratch memory: what the
    inner loop of the factory costs is its passes over memory. The arithmetic of a rule is a function of its
    own (`lion_rule`, ...), tensor operations in place without a branch on any value, fit for torch.compile.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any], *, stacked: bool):
        super().__init__(params, defaults | {"stacked": stacked})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, which calls it at construction too: the one look at hyper-parameters' values.

        Raises:
            ValueError: a rate, decay or eps below 0, a momentum or beta outside of [0, 1), of any run.
        """
        super().add_param_group(param_group)
        for name, value in self.param_groups[-1].items():
            for each in value if isinstance(value, tuple) else (value,):
                if name in NOT_NEGATIVE:
                    _check_values(name, each, math.inf, "at least 0, and finite")
                elif name in SHARES:
                    _check_values(name, each, 1.0, "0 to 1, 1 excluded")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [param for param in group["params"] if param.grad is not None]
            self.update_all([(param, param.grad, self.state[param]) for param in moved], group)
        return loss

    def update_all(
        self, moved: Sequence[tuple[Tensor, Tensor, dict[str, Any]]], group: dict[str, Any]
    ) -> None:
        """Move parameters, each given with its gradient and state: one call, for one compilation."""
        for param, grad, state in moved:
            self.update(param, grad, state, group)

    def update(self, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Move one parameter by its rule; `state` is empty at its first step."""
        raise NotImplementedError


def _check_values(name: str, value: Tensor | float, below: float, expected: str) -> None:
    values = value.flatten().tolist() if isinstance(value, Tensor) else [value]
    bad = [each for each in values if not 0 <= each < below]  # NaN is nowhere
    if bad:
        raise ValueError(f"{name} is {bad[0]:g}; expected {expected}")


def per_run(value: Tensor | float, like: Tensor) -> Tensor | float:
    """A hyper-parameter (K,) shaped to broadcast over parameters (K, ...); a float stays as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.reshape(-1, *[1] * (like.ndim - 1))


def new_step(param: Tensor) -> Tensor:
    """The count of steps as torch keeps it: a tensor, so that a compiled step need not look at its value."""
    return torch.zeros((), dtype=torch.float32, device=param.device)


def new_statistic(param: Tensor, stacked: bool) -> Tensor:
    """A zero for each run's part of a parameter, shaped to broadcast over it."""
    runs = len(param) if stacked else 1
    return param.new_zeros(runs, *[1] * (param.ndim - 1)) if param.ndim else torch.zeros_like(param)


def add_scaled(x: Tensor, y: Tensor, scale: Tensor | float) -> None:
    """x += scale * y in one pass."""
    if isinstance(scale, Tensor):
        x.addcmul_(y, scale)
    elif scale != 0:
        x.add_(y, alpha=scale)


def shrink(x: Tensor, share: Tensor | float) -> None:
    """x -= share * x in one pass."""
    if isinstance(share, Tensor) or share != 0:
        x.mul_(1 - share)


def average(mean: Tensor, x: Tensor, beta: Tensor | float) -> None:
    """The exponential moving average follows: mean <- beta mean + (1 - beta) x."""
    mean.lerp_(x, _weight(mean, beta))


def averaged(mean: Tensor, x: Tensor, beta: Tensor | float) -> Tensor:
    """beta mean + (1 - beta) x as a new tensor."""
    return mean.lerp(x, _weight(mean, beta))


def _weight(mean: Tensor, beta: Tensor | float) -> Tensor | float:
    return (1 - beta).to(mean.dtype) if isinstance(beta, Tensor) else 1 - beta


def bias_correction(beta: Tensor | float, step: Tensor) -> Tensor:
    """1 - beta^t, without the digits that float32 loses where beta^t is near 1."""
    log_beta = beta.log() if isinstance(beta, Tensor) else math.log(beta) if beta > 0 else -math.inf
    return -torch.expm1(step * log_beta)


def all_finite(x: Tensor, stacked: bool) -> Tensor:
    """Whether each run's part of x is finite, shaped to broadcast over x.

    Told from its sum, which costs far less than a look at every entry; a sum that overflows is not finite.
    """
    return _of_each_run(_rows(x, stacked).sum(1), x).isfinite()


def rms(x: Tensor, stacked: bool) -> Tensor:
    """Root mean square over every axis but the run's, shaped to broadcast over x."""
    rows = _rows(x, stacked)
    return _of_each_run(torch.linalg.vector_norm(rows, dim=1) / max(rows.shape[1], 1) ** 0.5, x)


def _rows(x: Tensor, stacked: bool) -> Tensor:
    return x.reshape(len(x) if stacked else 1, -1)


def _of_each_run(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1)) if like.ndim else values.reshape(())
