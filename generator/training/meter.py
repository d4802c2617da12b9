"""Meter: what happened in a training since its last report."""

import time

import torch
from torch import Tensor


class Meter:
    """What happened since the last report."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.losses: list[Tensor] = []
        self.divergences: list[Tensor] = []
        self.pairs, self.waited_s, self.since = 0, 0.0, time.monotonic()

    def read(self) -> dict[str, float | int]:
        """The means since the last reading, which begins anew."""
        elapsed = time.monotonic() - self.since
        found = {
            "loss": float(torch.stack(self.losses).mean()),
            **({"divergence": float(torch.stack(self.divergences).mean())} if self.divergences else {}),
            "pairs_per_s": self.pairs / elapsed,
            "data_wait_share": self.waited_s / elapsed,
        }
        self.reset()
        return found
