"""Optimizers for stacks: torch.optim.Optimizers whose hyper-parameters may differ from run to run."""

from .adamw import AdamW
from .amos import Amos
from .check import check_optimizer
from .kinds import OPTIMIZERS, OptimizerKind, make_optimizer, optimizer_kind
from .lion import Lion
from .sgd import SGD
from .tiger import Tiger

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdamW",
    "Amos",
    "Lion",
    "OptimizerKind",
    "Tiger",
    "check_optimizer",
    "make_optimizer",
    "optimizer_kind",
]
