"""RunPlan: what every run of a zoo is, as a pure function of (seed, run_id), computable anywhere."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby, product
from typing import Literal, TypeVar, get_args

import numpy as np
import torch

from .optim import OPTIMIZERS
from .schedules import lr_factor
from .tasks.base import Variation, seeded

INIT, ORDER, HYPER, GROUP, BLOCK, STEPS, OWN = range(7)  # independent streams of one seed

OptimizerName = Literal["sgd", "adamw", "lion", "tiger", "amos"]
InitName = Literal["default", "kaiming", "xavier", "orthogonal"]
LossName = Literal["cross-entropy", "tailr"]
ScheduleName = Literal["cosine", "constant", "inverse-time", "inverse-time-squared"]
Spacing = Literal["log", "uniform", "random", "metric"]
Precision = Literal["float32", "bfloat16"]
T = TypeVar("T")
INTEGERS = ("seed", "num_steps", "num_checkpoints", "group_size", "block_size", "schedule_every")
LOG_UNIFORM = ("lr", "weight_decay", "init_scale")
SMALLEST, LARGEST = 1e-36, 1e36
"""Of what is drawn log-uniformly: float32 holds it, in the units of any optimizer."""
UNIFORM = {
    "momentum": "0 <= low <= high < 1 (in float32)",
    "label_noise": "0 <= low <= high < 1",
    "data_fraction": "0 < low <= high <= 1",
    "gamma": "0 <= low <= high < 1",
}
"""Ranges that are drawn from uniformly, and what they must keep to."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """All that distinguishes one run; a row of the zoo's `runs` table."""

    run_id: int
    order_id: int
    """Runs with the same order_id saw the same mini-batches in the same order."""
    optimizer: str
    batch_size: int
    lr: float
    """Peak learning rate, in the optimizer's own units."""
    weight_decay: float
    """In the optimizer's own units."""
    momentum: float
    init: str
    init_scale: float
    label_noise: float
    """Share of the training labels that were replaced by others."""
    data_fraction: float
    """Share of the training data that was trained on."""
    loss: str
    gamma: float
    """TaiLr's; 0 is cross-entropy."""
    hyper: Mapping[str, float] = field(default_factory=dict)
    """Of the task's own hyper-parameters, those that the plan sets."""

    def columns(self) -> dict[str, int | float | str]:
        """Everything by name, for the runs table."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return found | found.pop("hyper")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The recipe of a zoo's runs.

    Ranges (low, high) are drawn from per run, low == high fixes the value; of several names or numbers, one
    is drawn. Optimizer and batch size are drawn per block of runs, every combination once before any comes
    again, so that the held-out runs at the end have them all; what concerns the data is drawn per group.
    """

    seed: int = 0
    """Seed of everything random in the zoo."""
    num_steps: int = 450
    """Optimizer steps of a run."""
    batch_size: tuple[int, ...] = (32,)
    """Images per optimizer step; of policies steps of the environment (PPO) or perturbed policies (evolution
    strategies); of several, each block has one."""
    optimizer: tuple[OptimizerName, ...] = ("sgd",)
    """Optimizer; of several, each block has one."""
    lr: tuple[float, float] = (0.1, 0.1)
    """Peak learning rate as of SGD, log-uniform in this range; other optimizers take it times their own
    ratio (`ckpt_factory.optim.OPTIMIZERS`)."""
    weight_decay: tuple[float, float] = (5e-4, 5e-4)
    """Weight decay as of SGD, log-uniform in this range; others take it divided by their ratio, so that a
    parameter decays as fast."""
    momentum: tuple[float, float] = (0.9, 0.9)
    """SGD's Nesterov momentum, the decay of the others' first moment; uniform in this range."""
    init: tuple[InitName, ...] = ("default",)
    """Initialisation: the task's own, or matrices by this rule and biases 0; of several, one is drawn."""
    init_scale: tuple[float, float] = (1.0, 1.0)
    """Factor on the initial parameters, log-uniform in this range."""
    label_noise: tuple[float, float] = (0.0, 0.0)
    """Share of the training labels replaced by another class, uniform in this range, drawn per group."""
    data_fraction: tuple[float, float] = (1.0, 1.0)
    """Share of the training data that is trained on, uniform in this range, drawn per group."""
    loss: tuple[LossName, ...] = ("cross-entropy",)
    """Training loss of classifiers; of several, one is drawn."""
    gamma: tuple[float, float] = (0.1, 0.1)
    """TaiLr's gamma, uniform in this range: 0 is cross-entropy, 1 the error rate's surrogate."""
    hyper: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Hyper-parameters of the task's own, uniform in a range each: NAME LOW HIGH, as in `clip 0.1 0.3`."""
    schedule: ScheduleName = "cosine"
    """Learning rate over a run: cosine to zero, constant, or inverse in time."""
    schedule_every: int = 1
    """Steps between changes of the learning rate; the published recipes change it once an epoch."""
    group_size: int = 1
    """Runs that share their mini-batches: faster where batches are large, but such runs are correlated."""
    block_size: int = 64
    """Runs in sequence that share optimizer and batch size, where several are given; whole groups."""
    num_checkpoints: int = 35
    """Checkpoints of a run: the initialisation, the last step, and steps between them."""
    spacing: Spacing = "log"
    """Which steps are saved: log-spaced, evenly spaced, drawn for each run as published, or those whose
    metric covers the run's range most evenly."""
    precision: Precision = "float32"
    """Of matrix products with images; parameters, sums and everything else are float32."""
    compile: bool = False
    """Compile the inner loop with torch.compile: faster in bfloat16, pays from tens of thousands of steps."""

    def __post_init__(self) -> None:
        for name in INTEGERS:
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a whole number, an int")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile is {self.compile!r}; expected True or False")
        for name in (*LOG_UNIFORM, *UNIFORM):
            self._check_range(name)
        self._check_hyper()
        for name in ("num_steps", "group_size", "block_size", "schedule_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        self._check_choices()
        if "tailr" not in self.loss and self.gamma != (0.1, 0.1):
            raise ValueError(f"gamma is {self.gamma}, but loss is {self.loss}: it is for the loss tailr")
        if len(self.optimizer) * len(self.batch_size) > 1 and self.block_size % self.group_size:
            raise ValueError(
                f"block_size is {self.block_size}; expected a multiple of group_size {self.group_size}"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; expected 0 to 2**63 - 1")
        if not 2 <= self.num_checkpoints <= self.num_steps + 1:
            raise ValueError(
                f"num_checkpoints is {self.num_checkpoints}; {self.num_steps} steps allow 2 to "
                f"{self.num_steps + 1}: give --num-checkpoints {self.num_steps + 1} or fewer, or more "
                "--num-steps"
            )

    def _check_choices(self) -> None:
        sizes = self.batch_size
        if (
            not isinstance(sizes, tuple)
            or not sizes
            or any(type(size) is not int or size < 1 for size in sizes)
            or len(set(sizes)) < len(sizes)
        ):
            raise ValueError(
                f"batch_size is {sizes}; expected one or more different numbers, whole and at least 1 each"
            )
        for name, known in (("optimizer", OptimizerName), ("init", InitName), ("loss", LossName)):
            given = getattr(self, name)
            if (
                not isinstance(given, tuple)
                or not given
                or any(each not in get_args(known) for each in given)
                or len(set(given)) < len(given)
            ):
                raise ValueError(f"{name} is {given}; expected one or more of {', '.join(get_args(known))}")
        for name, known in (("schedule", ScheduleName), ("spacing", Spacing), ("precision", Precision)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected one of {', '.join(get_args(known))}"
                )

    def _check_range(self, name: str) -> None:
        given = getattr(self, name)
        if (
            not isinstance(given, tuple)
            or len(given) != 2
            or any(isinstance(each, bool) or not isinstance(each, int | float) for each in given)
        ):
            raise ValueError(f"{name} is {given}; expected two numbers, (low, high)")
        low, high = given
        if name in UNIFORM:
            within = 0 < low <= high <= 1 if name == "data_fraction" else 0 <= low <= high < 1
            if name == "momentum":
                within = within and np.float32(high) < 1  # what the optimizer is given
            if not within:
                raise ValueError(f"{name} is ({low}, {high}); expected {UNIFORM[name]}")
            return
        if name == "weight_decay" and low == high == 0:
            return
        if not SMALLEST <= low <= high <= LARGEST:
            raise ValueError(
                f"{name} is ({low}, {high}); expected low <= high, both positive and finite, {SMALLEST:g} to "
                f"{LARGEST:g}" + (" (or both 0)" if name == "weight_decay" else "")
            )

    def mixing(self, num_runs: int) -> str:
        """What keeps so many runs from mixing optimizers and batch sizes, and what helps; or nothing."""
        choices = {"optimizer": len(self.optimizer), "batch size": len(self.batch_size)}
        varied, combinations = [what for what in choices if choices[what] > 1], math.prod(choices.values())
        blocks = range(0, num_runs, self.block_size)
        if len(blocks) >= combinations:
            return ""
        drawn = len({(run.optimizer, run.batch_size) for run in self.runs(blocks)})
        smaller = self.group_size
        while 2 * smaller * combinations <= num_runs:
            smaller *= 2
        cure = f"--block-size {smaller} mixes" if smaller < self.block_size else "a larger --num-runs mixes"
        draw = "1 block" if len(blocks) == 1 else f"{len(blocks)} blocks"
        draw += f" of {self.block_size} runs draw{'s' * (len(blocks) == 1)} {drawn}"
        what = f"{varied[0]}s" if len(varied) == 1 else f"combinations of {' and '.join(varied)}"
        return f"{draw} of {combinations} {what}; {cure} more"

    def _check_hyper(self) -> None:
        taken = {each.name for each in (*fields(RunSettings), *fields(self))}
        for name, bounds in self.hyper.items():
            if name in taken:
                raise ValueError(
                    f"hyper has {name}, which every plan has; expected a task's own, give --{name}"
                )
            if len(bounds) != 2 or not -math.inf < bounds[0] <= bounds[1] < math.inf:
                raise ValueError(f"hyper {name} is {bounds}; expected low <= high, both finite")

    def run(self, run_id: int) -> RunSettings:
        """The settings of one run, the same wherever they are computed."""
        order_id = run_id // self.group_size
        of_run = np.random.default_rng([self.seed, HYPER, run_id]).random(7)
        of_group = np.random.default_rng([self.seed, GROUP, order_id]).random(2)
        optimizer, batch_size = self._combination(run_id // self.block_size)

        def log_uniform(bounds: tuple[float, float], u: float) -> float:
            low, high = bounds
            return low if low == high else float(np.exp(np.log(low) + u * (np.log(high) - np.log(low))))

        def uniform(bounds: tuple[float, float], u: float) -> float:
            return float(bounds[0] + u * (bounds[1] - bounds[0]))

        loss = _one_of(self.loss, of_run[5])
        ratio = OPTIMIZERS[optimizer].lr_ratio
        return RunSettings(
            run_id=run_id,
            order_id=order_id,
            optimizer=optimizer,
            batch_size=batch_size,
            lr=log_uniform(self.lr, of_run[0]) * ratio,
            weight_decay=log_uniform(self.weight_decay, of_run[1]) / ratio,
            init_scale=log_uniform(self.init_scale, of_run[2]),
            momentum=uniform(self.momentum, of_run[3]),
            init=_one_of(self.init, of_run[4]),
            label_noise=uniform(self.label_noise, of_group[0]),
            data_fraction=uniform(self.data_fraction, of_group[1]),
            loss=loss,
            gamma=uniform(self.gamma, of_run[6]) if loss == "tailr" else 0.0,
            hyper={name: uniform(bounds, self._draw(run_id, name)) for name, bounds in self.hyper.items()},
        )

    def _combination(self, block: int) -> tuple[str, int]:
        """Optimizer and batch size of a block: a cycle of blocks has all of them, in an order of its own."""
        all_of_them = list(product(self.optimizer, self.batch_size))
        cycle, place = divmod(block, len(all_of_them))
        drawn = np.random.default_rng([self.seed, BLOCK, cycle]).random(len(all_of_them))
        return all_of_them[int(drawn.argsort()[place])]

    def _draw(self, run_id: int, name: str) -> float:
        """A task's own hyper-parameter is drawn alike whichever others there are."""
        return np.random.default_rng([self.seed, OWN, run_id, zlib.crc32(name.encode())]).random()

    def runs(self, run_ids: Iterable[int]) -> list[RunSettings]:
        return [self.run(run_id) for run_id in run_ids]

    def blocks(self, runs: Sequence[RunSettings]) -> list[list[RunSettings]]:
        """Runs split, in their order, into those that one inner loop can train together."""
        return [list(block) for _, block in groupby(runs, lambda run: (run.optimizer, run.batch_size))]

    def init_rngs(self, runs: Sequence[RunSettings]) -> list[torch.Generator]:
        """The generators that initialisations are drawn from, one per run."""
        return [seeded(self.seed, INIT, run.run_id) for run in runs]

    def order_rngs(self, runs: Sequence[RunSettings]) -> list[torch.Generator]:
        """The generators of the batch orders, one per group of runs."""
        return [seeded(self.seed, ORDER, run.order_id) for run in runs[:: self.group_size]]

    def variation(self, runs: Sequence[RunSettings]) -> Variation:
        """What distinguishes the batches of these runs' groups, and their losses."""
        groups = runs[:: self.group_size]
        return Variation(
            label_noise=tuple(run.label_noise for run in groups),
            data_fraction=tuple(run.data_fraction for run in groups),
            gamma=tuple(run.gamma for run in runs),
            hyper={name: tuple(run.hyper[name] for run in runs) for name in self.hyper},
        )

    def steps(self, run_id: int = 0) -> list[int]:
        """The steps that a run is saved at: `num_checkpoints` distinct ones, the first and the last included.

        Which of them `spacing="metric"` saves is only known afterwards: these are its candidates, four times
        as many where the run is long enough.
        """
        count, last = self.num_checkpoints, self.num_steps
        if self.spacing == "metric":
            return _log_spaced(min(4 * count, last + 1), last)
        if self.spacing == "uniform":
            return np.linspace(0, last, count).round().astype(int).tolist()
        if self.spacing == "random":
            rng = np.random.default_rng([self.seed, STEPS, run_id])
            drawn = rng.choice(last - 1, count - 2, replace=False)
            return [0, *sorted((drawn + 1).tolist()), last]
        return _log_spaced(count, last)

    def lr_at(self, step: int) -> float:
        """Factor on the learning rate for the step-th update, 0 <= step < num_steps."""
        return lr_factor(self.schedule, step, self.num_steps, every=self.schedule_every)


def _one_of(choices: tuple[T, ...], u: float) -> T:
    return choices[int(u * len(choices))]


def _log_spaced(count: int, last: int) -> list[int]:
    steps = np.geomspace(1, last, count - 1).round().astype(int).tolist()
    steps[-1] = last  # of two checkpoints, too, where the only step of geomspace is its first
    for i in range(1, count - 1):  # rounding repeats the small ones: push them apart
        steps[i] = max(steps[i], steps[i - 1] + 1)
    for i in range(count - 2, -1, -1):  # ... but never past the last step
        steps[i] = min(steps[i], last - (count - 2 - i))
    return [0, *steps]
