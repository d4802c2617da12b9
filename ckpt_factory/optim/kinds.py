"""The optimizers by name, and how a rate that was found for SGD carries over to each of them.

Test error on digits-mlp-v0, mean and standard deviation of 128 stacked runs of the default plan (seed 0, 450
steps of batch 32, cosine, momentum 0.9) at SGD's lr 0.1 and weight decay 5e-4, times the ratios below; and
beside it the means of 32 runs at rates lower and higher by the factor named.

    optimizer  lr_ratio  test error         lower         higher
    sgd        1         2.2 % (sd 0.6)     1.9 % (0.3)   4.5 % (3)
    adamw      0.1       2.0 % (sd 0.4)     3.7 % (0.3)   2.3 % (3)
    lion       0.03      3.3 % (sd 0.7)     8.6 % (0.33)  4.3 % (3.3)
    tiger      0.15      2.2 % (sd 0.5)     3.4 % (0.67)  9.6 % (2)
    amos       1         1.9 % (sd 0.4)     2.0 % (0.3)   2.0 % (3)

SGD and Amos are the most forgiving below; Tiger's rates above are soon too high, because they are relative.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .adamw import AdamW
from .amos import Amos
from .lion import Lion
from .sgd import SGD
from .stack import StackOptimizer
from .tiger import Tiger


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """One entry of the table."""

    make: Callable[..., StackOptimizer]
    """make(params, *, lr, weight_decay, momentum, stacked), as `make_optimizer`; params may be groups."""
    lr_ratio: float
    """A learning rate in SGD's units times this is one in the optimizer's own."""
    compiles: bool = True
    """Whether torch.compile takes its `update`; of Tiger's it does not, where a run's norm meets its step."""

    @property
    def weight_decay_ratio(self) -> float:
        """A weight decay in SGD's units times this shrinks parameters as much a step, by lr * weight_decay.

        Decays other than SGD's are decoupled and multiplied with a rate that is smaller by `lr_ratio`.
        """
        return 1 / self.lr_ratio


def _sgd(
    params: ParamsT, *, lr: Any, weight_decay: Any, momentum: Tensor | float, stacked: bool
) -> StackOptimizer:
    nesterov = isinstance(momentum, Tensor) or momentum > 0
    return SGD(params, lr, momentum, weight_decay, nesterov, stacked=stacked)


def _adamw(params: ParamsT, *, lr: Any, weight_decay: Any, momentum: Any, stacked: bool) -> StackOptimizer:
    return AdamW(params, lr, (momentum, 0.999), weight_decay=weight_decay, stacked=stacked)


def _lion(params: ParamsT, *, lr: Any, weight_decay: Any, momentum: Any, stacked: bool) -> StackOptimizer:
    return Lion(params, lr, (momentum, 0.99), weight_decay, stacked=stacked)


def _tiger(params: ParamsT, *, lr: Any, weight_decay: Any, momentum: Any, stacked: bool) -> StackOptimizer:
    return Tiger(params, lr, (momentum + 0.99) / 2, weight_decay, stacked=stacked)


def _amos(params: ParamsT, *, lr: Any, weight_decay: Any, momentum: Any, stacked: bool) -> StackOptimizer:
    return Amos(params, lr, momentum=momentum, weight_decay=weight_decay, stacked=stacked)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(make=_sgd, lr_ratio=1.0),
    "adamw": OptimizerKind(make=_adamw, lr_ratio=0.1),
    "lion": OptimizerKind(make=_lion, lr_ratio=0.03),
    "tiger": OptimizerKind(make=_tiger, lr_ratio=0.15, compiles=False),
    "amos": OptimizerKind(make=_amos, lr_ratio=1.0),
}


def optimizer_kind(name: str) -> OptimizerKind:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message suggests the nearest name.
    """
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(name, OPTIMIZERS, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown optimizer {name!r}. {hint}Known optimizers: {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[name]


def make_optimizer(
    name: str,
    params: Mapping[str, Tensor],
    *,
    lr: Tensor | float,
    weight_decay: Tensor | float,
    momentum: Tensor | float,
    stacked: bool = True,
) -> StackOptimizer:
    """The optimizer of that name over parameters by name, in one group.

    Args:
        params: (K, ...) each, or without the run axis if not `stacked`.
        lr: float or (K,), in the optimizer's own units, like the weight decay. Whoever has them in SGD's
            multiplies by `lr_ratio` and `weight_decay_ratio` of `optimizer_kind(name)`.
        momentum: what the average of gradients keeps a step. SGD: Nesterov's. AdamW: beta1, with beta2 0.999.
            Lion: beta1, with beta2 0.99. Tiger: its beta is the mean of Lion's two, (momentum + 0.99) / 2.
            Amos: of the average over its updates.

    Raises:
        ValueError: no such optimizer; the message suggests the nearest name.
    """
    make = optimizer_kind(name).make
    return make(params.values(), lr=lr, weight_decay=weight_decay, momentum=momentum, stacked=stacked)
