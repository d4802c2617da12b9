"""Measuring what analytic samplers need to know of a generator, as one remote call."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory.files import check_writable
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.card import save_changed
from generator.sampling.analytic import Moments
from generator.sampling.uncertainty import TIMES, measure_moments

from .belongs import check_belongs, check_same_training
from .command import Command
from .progress import say


@dataclass(frozen=True, kw_only=True)
class MomentsConfig:
    """Whose predictions to measure, on what."""

    generator: Path = Path("runs/generator")
    """Folder of the generator."""
    zoo: Path = Path("runs/zoo")
    """The zoo it was trained on. The second half of its held-out runs is used up: evaluations leave it
    out."""
    out: Path = Path("runs/generator-with-moments")
    """Folder for the same generator with what was measured."""
    pairs: int = 512
    """Pairs of checkpoints at each time, of training runs and of held-out ones."""
    seed: int = 0
    """Seed of the pairs and their noise."""

    def __post_init__(self) -> None:
        if self.pairs < 1 or self.seed < 0:
            raise ValueError(
                f"pairs is {self.pairs}, seed {self.seed}; expected at least 1, and not negative"
            )


@ray.remote(num_cpus=1)
def measured_remotely(generator: WeightGenerator, path: Path, num_pairs: int, seed: int) -> Moments:
    torch.set_num_threads(1)
    return measure_moments(generator, Zoo.open(path), num_pairs=num_pairs, seed=seed)


def measured(generator: WeightGenerator, zoo: Zoo, num_pairs: int, seed: int) -> Moments:
    """How uncertain a generator's predictions are, measured on the connected cluster."""
    say(f"measuring how uncertain predictions are, on {num_pairs} pairs at each of {TIMES} times")
    (found,) = ray.get([measured_remotely.remote(generator, zoo.path, num_pairs, seed)])
    return found


def add_moments(config: MomentsConfig) -> dict[str, Any]:
    """Measure and write the generator anew; returns what the predictions miss, by tensor."""
    generator, zoo = WeightGenerator.load(config.generator), Zoo.open(config.zoo)
    check_belongs(generator, zoo)
    moments = measured(generator, zoo, config.pairs, config.seed)
    save_changed(replace(generator, moments=moments), config.generator, config.out)
    missed = {kind: moments.covariance(kind, moments.times[-1:]) for kind in ("analytic", "extended")}
    names = generator.coordinates.spec.names
    return {
        "times": TIMES,
        "pairs": config.pairs,
        "evaluations_use_held_out_runs_before": moments.held_out_from,
    } | {
        f"{kind} variance of {name} at t = 1": float(value)
        for kind, values in missed.items()
        for name, value in zip(names, values[0], strict=True)
    }


def _check(config: MomentsConfig) -> None:
    check_writable(config.out)
    check_belongs(WeightGenerator.load(config.generator), Zoo.open(config.zoo))
    check_same_training(config.generator, config.out)


COMMAND = Command(
    MomentsConfig,
    lambda config: (add_moments(config), config.out, 0),
    check=_check,
    examples="theta moments --generator runs/generator --zoo runs/zoo --out runs/generator-with-moments\n"
    "theta evaluate --generator runs/generator-with-moments --zoo runs/zoo --sampler extended-ddpm --steps 5",
)
