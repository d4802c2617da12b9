"""Tasks that fail on purpose, as a user's task may; found as `tests.cluster.broken_tasks:<id>`."""

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ckpt_factory import register
from ckpt_factory.tasks import Quadratic

KILLED_ONCE = "thetaforge-test-killed-once"
"""Name of a file in the folder for temporary files, made when KillsOnce has killed."""


class Raises(Quadratic):
    """Raises whenever the stack is of 2 runs: the last, incomplete unit of a zoo of 10 in stacks of 4."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        if len(rngs) == 2:
            raise ArithmeticError("no luck with stacks of two")
        return super().init(rngs)


class Kills(Quadratic):
    """Kills its process whenever the stack is of 2 runs."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        if len(rngs) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().init(rngs)


class KillsOnce(Quadratic):
    """Kills its process the first time that it is asked for the stack of 2 runs: a node that goes away."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        mark = Path(tempfile.gettempdir()) / KILLED_ONCE
        if len(rngs) == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().init(rngs)


class Diverges(Quadratic):
    """Its third run of a stack starts at infinity."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        theta = super().init(rngs)
        theta[2:3] = torch.inf
        return theta


class Struck(Diverges):
    """Says why that was."""

    def fault(self) -> str:
        return "OSError: lightning"


register("struck-v0", Struck)
register("raises-v0", Raises)
register("kills-v0", Kills)
register("kills-once-v0", KillsOnce)
register("diverges-v0", Diverges)
