"""Calibrating a generator's prompts, as one remote call."""

from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from ckpt_factory import make
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.calibration import calibrate
from generator.conditioning import Calibration
from generator.evaluate import training_starts


@ray.remote(num_cpus=1)
def calibrated_remotely(
    parts: tuple[dict[str, Any], dict[str, Tensor]],
    state: dict[str, Tensor],
    data_root: Path | None,
    path: Path,
    num_starts: int,
    seed: int,
) -> Calibration | None:
    torch.set_num_threads(1)
    zoo, generator = Zoo.open(path), WeightGenerator.from_parts(*parts)
    generator.model.load_state_dict(state)
    starts = training_starts(zoo, generator.origin.num_training_runs, num_starts)
    task = make(zoo.header.task, data_root=data_root)
    return calibrate(generator, task, starts, rng=torch.Generator().manual_seed(seed))


def calibrated(
    generator: WeightGenerator, zoo: Zoo, data_root: Path | None, num_starts: int, seed: int
) -> Calibration | None:
    """What the generator has to be asked for, measured on the connected cluster."""
    state = generator.model.state_dict()
    args = generator.to_parts(), state, data_root, zoo.path, num_starts, seed
    (found,) = ray.get([calibrated_remotely.remote(*args)])
    return found
