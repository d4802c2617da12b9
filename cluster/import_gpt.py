"""Importing a released file of the published system as a generator; needs no Ray."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from ckpt_factory.files import check_writable
from ckpt_factory.zoo import Zoo
from generator.artefact import CONFIG
from generator.card import released_card
from generator.gpt.released import (
    RELEASES,
    ReleaseName,
    Weights,
    fitting,
    generator_of_released,
    origin_on,
    read_released,
    state_of,
)

from .belongs import check_measurable
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
    zoo: Path | None = None
    """The zoo to judge it on, of the model's task and with its metric: one of yours, or its authors' set from
    `theta import --evaluate`; without one it makes networks, but nothing can evaluate, audit or report on it.
    Whether its authors trained on runs of that zoo nobody knows, unless it is their own set: held out then
    means that nothing here was trained on them."""
    held_out: float | None = None
    """Share of that zoo's runs, its last, to judge it on; the others stand for its training runs. Default
    0.1; of an imported zoo with as many runs as its authors' set, those that they held out."""

    def __post_init__(self) -> None:
        if self.held_out is not None and self.zoo is None:
            raise ValueError("held_out is a share of a zoo's runs; give that zoo with --zoo, too")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")


def check(config: ImportGptConfig) -> None:
    """Whether there are a file and a zoo, and the generator's folder can be written and holds no other.

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
    if config.zoo is not None:
        check_measurable(Zoo.open(config.zoo), "judging a released model")


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
        ValueError: as `check`, `origin_on` and `generator_of_released`.
    """
    check(config)
    assert config.file is not None, "checked"
    name = name_of(config, config.file)
    zoo = Zoo.open(config.zoo) if config.zoo is not None else None
    judged = origin_on(zoo, name, config.held_out) if zoo is not None else None  # before much is read
    generator = generator_of_released(config.file, name, config.weights)
    file, generator = generator.origin, replace(generator, origin=judged or generator.origin)
    parameters = sum(p.numel() for p in generator.model.parameters())
    facts = {
        "model": name,
        "weights": config.weights,
        "parameters": parameters,
        "training_runs": file.num_training_runs,
        "sha256_of_file": file.zoo_sha256,
    }
    if zoo is not None:
        held_out = zoo.header.num_runs - generator.origin.num_training_runs
        facts |= {"zoo": str(zoo.path), "held_out_runs": held_out}
        say(f"to be judged on {held_out:,} runs of {zoo.path}: {generator.origin.held_out_means}")
    card = released_card(generator, name, config.weights, str(zoo.path) if zoo is not None else "")
    generator.save(config.out, training=facts, card=card)
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
    "theta import-gpt mnist_loss.pt --zoo runs/zoo --held-out 0.1 --out runs/published\n"
    "theta import-gpt downloaded.pt --model cifar10_error --weights raw --out runs/published-raw",
)
