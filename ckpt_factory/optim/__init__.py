"""Optimizers for stacks: torch.optim.Optimizers whose hyper-parameters may differ from run to run."""

from .adamw import AdamW
from .amos import Amos
from .lion import Lion
from .sgd import SGD
from .tiger import Tiger

__all__ = ["SGD", "AdamW", "Amos", "Lion", "Tiger"]
