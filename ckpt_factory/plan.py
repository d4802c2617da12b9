"""RunPlan: what every run of a zoo is, as a pure function of (seed, run_id), computable anywhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .tasks.base import seeded

INIT, ORDER, HYPER = 0, 1, 2  # independent streams of one seed


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All that distinguishes one run; a row of the zoo's `runs` table."""

    run_id: int
    order_id: int
    """Runs with the same order_id saw the same mini-batches in the same order."""
    init_scale: float
    lr: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The recipe of a zoo's runs. Ranges (low, high) are drawn from per run; low == high fixes the value."""

    seed: int = 0
    """Seed of everything random in the zoo."""
    num_steps: int = 450
    """Optimizer steps of a run."""
    batch_size: int = 32
    """Images per optimizer step."""
    lr: tuple[float, float] = (0.1, 0.1)
    """Peak learning rate, log-uniform in this range."""
    weight_decay: tuple[float, float] = (5e-4, 5e-4)
    """L2 penalty on all parameters, log-uniform in this range."""
    init_scale: tuple[float, float] = (1.0, 1.0)
    """Factor on the initial parameters, log-uniform in this range."""
    momentum: float = 0.9
    """Nesterov momentum."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over a run: cosine to zero, or constant."""
    group_size: int = 1
    """Runs that share their mini-batches: faster where batches are large, but such runs are correlated."""
    num_checkpoints: int = 35
    """Checkpoints of a run: the initialisation, the last step, and steps between them."""
    spacing: Literal["log", "uniform"] = "log"
    """How the saved steps are spaced; log sees the fast beginning as well as the slow end."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "init_scale"):
            low, high = getattr(self, name)
            lowest = 0.0 if name == "weight_decay" else math.ulp(0.0)
            if not (math.isfinite(high) and lowest <= low <= high) or (low == 0 < high):
                raise ValueError(
                    f"{name} is ({low}, {high}); expected low <= high, both positive and finite"
                    + (" (or both 0)" if name == "weight_decay" else "")
                )
        for name in ("num_steps", "batch_size", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; expected 0 <= momentum < 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")
        if not 2 <= self.num_checkpoints <= self.num_steps + 1:
            raise ValueError(
                f"num_checkpoints is {self.num_checkpoints}; {self.num_steps} steps allow 2 to "
                f"{self.num_steps + 1}"
            )

    def run(self, run_id: int) -> RunSettings:
        """The settings of one run, the same wherever they are computed."""
        uniform = np.random.default_rng([self.seed, HYPER, run_id]).random(3)

        def draw(bounds: tuple[float, float], u: float) -> float:
            low, high = bounds
            return low if low == high else float(np.exp(np.log(low) + u * (np.log(high) - np.log(low))))

        return RunSettings(
            run_id=run_id,
            order_id=run_id // self.group_size,
            lr=draw(self.lr, uniform[0]),
            weight_decay=draw(self.weight_decay, uniform[1]),
            init_scale=draw(self.init_scale, uniform[2]),
        )

    def init_rngs(self, runs: Sequence[RunSettings]) -> list[torch.Generator]:
        """The generators that initialisations are drawn from, one per run."""
        return [seeded(self.seed, INIT, run.run_id) for run in runs]

    def order_rngs(self, runs: Sequence[RunSettings]) -> list[torch.Generator]:
        """The generators of the batch orders, one per group of runs."""
        return [seeded(self.seed, ORDER, run.order_id) for run in runs[:: self.group_size]]

    def steps(self) -> list[int]:
        """The steps that are saved: `num_checkpoints` distinct ones, the first 0 and the last included."""
        count, last = self.num_checkpoints, self.num_steps
        if self.spacing == "uniform":
            return np.linspace(0, last, count).round().astype(int).tolist()
        steps = np.geomspace(1, last, count - 1).round().astype(int).tolist()
        steps[-1] = last  # of two checkpoints, too, where the only step of geomspace is its first
        for i in range(1, count - 1):  # rounding repeats the small ones: push them apart
            steps[i] = max(steps[i], steps[i - 1] + 1)
        for i in range(count - 2, -1, -1):  # ... but never past the last step
            steps[i] = min(steps[i], last - (count - 2 - i))
        return [0, *steps]

    def lr_at(self, step: int) -> float:
        """Factor on the learning rate for the step-th update, 0 <= step < num_steps."""
        return 0.5 * (1 + math.cos(math.pi * step / self.num_steps)) if self.schedule == "cosine" else 1.0
