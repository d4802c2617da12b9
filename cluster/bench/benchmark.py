"""What benchmarks have in common: one thread, a folder for the result, the facts of the machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ckpt_factory.bench import machine
from ckpt_factory.files import check_writable

from ..command import Command, Outcome
from ..progress import say


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What every benchmark is told."""

    out: Path = Path("runs/bench")
    """Folder for result.json; what is measured is written below it and removed."""


@dataclass(frozen=True, kw_only=True)
class RepeatedConfig(BenchConfig):
    """Of contenders that are measured in turns."""

    repeats: int = 5
    """Rounds in which all take turns; figures are medians."""

    def __post_init__(self) -> None:
        check_positive(self, "repeats")


@dataclass(frozen=True, kw_only=True)
class JudgedConfig(BenchConfig):
    """Of generators that are judged on held-out runs."""

    zoo: Path | None = None
    """The zoo of these runs."""
    data_root: Path | None = None
    """Where images are, as for `theta make`."""
    num_networks: int = 16
    """Held-out initialisations."""
    num_prompts: int = 8
    """Prompts for each, 2 or more."""

    def __post_init__(self) -> None:
        if self.num_networks < 1 or self.num_prompts < 2:
            raise ValueError(
                f"num_networks is {self.num_networks}, num_prompts {self.num_prompts}; expected at least "
                "1 and 2"
            )


Config = TypeVar("Config", bound=BenchConfig)


def check_positive(config: BenchConfig, *names: str) -> None:
    """Refuse numbers that are not more than 0."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ValueError(f"{name} is {value}; expected more than 0")


def check_filled(config: BenchConfig, *names: str) -> None:
    """Refuse tuples without an element, and integers below 1 in them."""
    for name in names:
        values = getattr(config, name)
        if not values:
            raise ValueError(f"{name} is empty; expected at least one")
        if any(isinstance(value, int) and value < 1 for value in values):
            raise ValueError(f"{name} is {values}; expected at least 1 each")


def benchmark(
    config: type[Config],
    measure: Callable[[Config], dict[str, Any]],
    *,
    examples: str,
    check: Callable[[Config], object] = lambda config: None,
    starts_ray: bool = False,
    resumes: bool = False,
) -> Command:
    """The command of a benchmark.

    Args:
        measure: prints what it finds, and returns what result.json says beside the facts of the machine.
        check: as of a `Command`, like what follows; that `out` can be written is looked at for all.
    """

    def checked(given: Config) -> None:
        check_writable(given.out)
        check(given)

    def run(given: Config) -> Outcome:
        torch.set_num_threads(1)  # and OMP_NUM_THREADS=1 stood in the environment before torch was loaded
        given.out.mkdir(parents=True, exist_ok=True)
        about = machine()
        say(f"on {about['cpu']}, torch {about['torch']}, 1 thread, load {about['load_average']:.1f}")
        repeats = {"repeats": given.repeats} if isinstance(given, RepeatedConfig) else {}
        result = about | repeats | measure(given)
        return result, given.out, 1 if result.get("trainings_failed") else 0

    return Command(config, run, examples, check=checked, starts_ray=starts_ray, resumes=resumes)
