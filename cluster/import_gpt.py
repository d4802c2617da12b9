"""Importing a released file of the published system as a generator; needs no Ray."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from ckpt_factory.files import check_writable
from generator.artefact import CONFIG
from generator.gpt.released import (
    RELEASES,
    ReleaseName,
    Weights,
    fitting,
    generator_of_released,
    read_released,
    released_card,
    state_of,
)

from .command import Command, Outcome
from .progress import say


@dataclass(frozen=True, kw_only=True)
class ImportGptConfig:
    """Which file to import, and as what."""

    file: Positional[Path | None] = None
    """The released file: mnist_loss.pt, mnist_error.pt, cifar10_loss.pt, cifar10_error.pt, cartpole.pt."""
    out: Path = Path("runs/published")
    """Folder of the generator."""
    model: ReleaseName | None = None
    """Which of the released models it is; default as the file is called, or the only one that it fits."""
    weights: Weights = "ema"
    """The exponential moving average of the parameters, as published for sampling, or the raw ones."""


def check(config: ImportGptConfig) -> None:
    """Whether there is a file, and the generator's folder can be written and holds no other.

    Raises:
        ValueError: what is wrong, and what to give.
    """
    if config.file is None:
        raise ValueError(f"give the released file: theta import-gpt {next(iter(RELEASES))}.pt --out DIR")
    if not config.file.is_file():
        raise ValueError(f"no file {config.file}; expected a released checkpoint, like mnist_loss.pt")
    check_writable(config.out)
    if (config.out / CONFIG).exists():
        raise ValueError(f"{config.out} holds a generator already; give another --out")


def name_of(config: ImportGptConfig, path: Path) -> ReleaseName:
    """Which released model a file is.

    Raises:
        ValueError: neither its name nor its shapes say.
    """
    called: list[ReleaseName] = [name for name in RELEASES if name == path.stem]
    if config.model is not None or called:
        return config.model or called[0]
    fits = fitting(state_of(path, read_released(path), config.weights))
    if len(fits) == 1:
        return fits[0]
    what = f"it may be {' or '.join(fits)}" if fits else "it fits none"
    raise ValueError(
        f"{path} is not called as any released model, and {what}; say with --model which of "
        f"{', '.join(RELEASES)} it is"
    )


def import_gpt(config: ImportGptConfig) -> dict[str, Any]:
    """Write the generator that a released file makes; returns what was in it.

    Raises:
        ValueError: as `check` and `generator_of_released`.
    """
    check(config)
    assert config.file is not None, "checked"
    name = name_of(config, config.file)
    generator = generator_of_released(config.file, name, config.weights)
    parameters = sum(p.numel() for p in generator.model.parameters())
    facts = {
        "model": name,
        "weights": config.weights,
        "parameters": parameters,
        "training_runs": generator.origin.num_training_runs,
        "sha256_of_file": generator.origin.zoo_sha256,
    }
    generator.save(config.out, training=facts, card=released_card(generator, name, config.weights))
    say(f"{config.file}: {parameters:,} parameters of {name}; sampled in {generator.sampling.steps:,} steps")
    return facts | {
        "task": generator.origin.task,
        "prompted": generator.origin.prompted,
        "coefficient": RELEASES[name].coefficient,
    }


def _run(config: ImportGptConfig) -> Outcome:
    return import_gpt(config), config.out, 0


COMMAND = Command(
    ImportGptConfig,
    _run,
    check=check,
    starts_ray=False,
    examples="theta import-gpt mnist_loss.pt --out runs/published\n"
    "theta import-gpt downloaded.pt --model cifar10_error --weights raw --out runs/published-raw",
)
