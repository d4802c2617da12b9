"""Optimizers for stacks: torch.optim.Optimizers whose hyper-parameters may differ from run to run."""

from .sgd import SGD

__all__ = ["SGD"]
