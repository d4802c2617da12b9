"""Calibrating a generator's prompts, as one remote call: after its training, or later."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory.files import check_writable
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.calibration import calibrate
from generator.card import save_changed
from generator.conditioning import Calibration
from generator.evaluation.evaluate import training_starts
from generator.sampling.samplers import SamplingChange

from .belongs import check_belongs, check_same_training
from .command import Command
from .tasks import task_of_zoo


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Whose prompts to calibrate, on what."""

    generator: Path = Path("runs/generator")
    """Folder of the generator; of several metrics the main one, prompted alone, is calibrated."""
    zoo: Path = Path("runs/zoo")
    """The zoo it was trained on; initialisations of its training runs are what prompts are calibrated on."""
    out: Path = Path("runs/generator-calibrated")
    """Folder for the same generator, calibrated."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    starts: int = 128
    """Initialisations; 40 networks are made from each, and measured at several lengths of the update."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    """Another sampling, which becomes the generator's own."""
    seed: int = 0
    """Seed of the sampling noise."""

    def __post_init__(self) -> None:
        if self.starts < 1 or self.seed < 0:
            raise ValueError(
                f"starts is {self.starts}, seed {self.seed}; expected at least 1, and not negative"
            )


@ray.remote(num_cpus=1)
def calibrated_remotely(
    generator: WeightGenerator, path: Path, data_root: Path | None, num_starts: int, seed: int
) -> Calibration | None:
    torch.set_num_threads(1)
    zoo = Zoo.open(path)
    starts = training_starts(zoo, generator.origin.num_training_runs, num_starts)
    task = task_of_zoo(zoo, data_root)
    return calibrate(generator, task, starts, rng=torch.Generator().manual_seed(seed))


def calibrated(
    generator: WeightGenerator, zoo: Zoo, data_root: Path | None, num_starts: int, seed: int
) -> Calibration | None:
    """What the generator has to be asked for, measured on the connected cluster."""
    (found,) = ray.get([calibrated_remotely.remote(generator, zoo.path, data_root, num_starts, seed)])
    return found


def in_words(found: Calibration | None, metric: str) -> str:
    """What a calibration found: what was asked for, what of it networks reach, and how far they go."""
    if found is None:
        return "prompts are not calibrated: all networks made are broken, whatever is asked for"
    if torch.equal(found.asked, found.got):
        return "calibrated: nothing comes closer than to ask for prompts as they are, so that stays"
    (least, most), (low, high) = (each[[0, -1]].tolist() for each in (found.asked, found.got))
    length = "as long as predicted" if found.stretch == 1 else f"{found.stretch:g} times as long as predicted"
    return (
        f"calibrated: asked for a validation {metric} from {least:.4g} to {most:.4g}, networks reach "
        f"{low:.4g} to {high:.4g} in the mean; their updates are {length}"
    )


def calibrate_again(config: CalibrateConfig) -> dict[str, Any]:
    """Calibrate and write the generator anew; returns what was found."""
    generator, zoo = _own(config), Zoo.open(config.zoo)
    check_belongs(generator, zoo)
    plain = replace(generator, calibration=None)
    found = calibrated(plain, zoo, config.data_root, config.starts, config.seed)
    if found is None:
        raise ValueError(
            f"all networks that the generator in {config.generator} makes are broken, whatever it is asked "
            "for: train it longer"
        )
    save_changed(replace(plain, calibration=found), config.generator, config.out)
    least, largest = float(found.got[0]), float(found.got[-1])
    maximised = generator.origin.objective == "max"
    return {
        "stretch": found.stretch,
        "worst": least if maximised else largest,
        "best": largest if maximised else least,
        "starts": config.starts,
    }


def _own(config: CalibrateConfig) -> WeightGenerator:
    """The generator with the sampling that is asked for as its own."""
    return WeightGenerator.load(config.generator).with_sampling(config.sampling)


def _check(config: CalibrateConfig) -> None:
    check_writable(config.out)
    zoo = Zoo.open(config.zoo)
    check_belongs(_own(config), zoo)
    check_same_training(config.generator, config.out)
    task_of_zoo(zoo, config.data_root)


COMMAND = Command(
    CalibrateConfig,
    lambda config: (calibrate_again(config), config.out, 0),
    check=_check,
    examples="theta calibrate --generator runs/generator --zoo runs/zoo --steps 1 --sampler ddim",
)
