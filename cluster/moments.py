"""Measuring what analytic samplers need to know of a generator, as one remote call."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from ckpt_factory.files import check_writable
from ckpt_factory.zoo import Zoo
from generator.analytic import Moments
from generator.artefact import CONFIG, WeightGenerator
from generator.card import model_card
from generator.uncertainty import TIMES, measure_moments

from .belongs import check_belongs
from .command import Command


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
def measured_remotely(
    parts: tuple[dict[str, Any], dict[str, Tensor]],
    state: dict[str, Tensor],
    path: Path,
    num_pairs: int,
    seed: int,
) -> Moments:
    torch.set_num_threads(1)
    generator = WeightGenerator.from_parts(*parts)
    generator.model.load_state_dict(state)
    return measure_moments(generator, Zoo.open(path), num_pairs=num_pairs, seed=seed)


def measured(generator: WeightGenerator, zoo: Zoo, num_pairs: int, seed: int) -> Moments:
    """How uncertain a generator's predictions are, measured on the connected cluster."""
    state = generator.model.state_dict()
    (found,) = ray.get([measured_remotely.remote(generator.to_parts(), state, zoo.path, num_pairs, seed)])
    return found


def add_moments(config: MomentsConfig) -> dict[str, Any]:
    """Measure and write the generator anew; returns what the predictions miss, by tensor."""
    generator, zoo = WeightGenerator.load(config.generator), Zoo.open(config.zoo)
    check_belongs(generator, zoo)
    moments = measured(generator, zoo, config.pairs, config.seed)
    training = json.loads((config.generator / CONFIG).read_text())["training"]
    generator = replace(generator, moments=moments)
    generator.save(config.out, training=training, card=model_card(generator, training))
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


COMMAND = Command(
    MomentsConfig,
    lambda config: (add_moments(config), config.out, 0),
    check=_check,
    examples="theta moments --generator runs/generator --zoo runs/zoo --out runs/generator-with-moments\n"
    "theta evaluate --generator runs/generator-with-moments --zoo runs/zoo --sampler extended-ddpm --steps 5",
)
