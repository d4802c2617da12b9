"""The evaluation's further parts, each a function from what is evaluated to numbers and arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..medians import median, quartiles
from ..prompt import Prompted, prompt_networks
from ..training.hole import outside
from . import several
from .amortise import clocked
from .evaluate import HeldOut, networks_of_metric, training_checkpoints, training_starts
from .extrapolation import beyond_the_best, in_the_hole
from .finetune import KINDS, nearest_of_runs, tuned
from .rivals import RIVALS, Arena, rival
from .starts import recursive_curves
from .walk import latent_walk

Found = tuple[dict[str, Any], dict[str, Tensor]]
"""Numbers for result.json, and arrays for the report."""
TRAINING_STARTS = 16
"""Training initialisations that rivals choose their rates on."""


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which further parts an evaluation has."""

    beyond: int = 6
    """Prompts from the best metric of the zoo to far better ones (losses: 0), one update each; 0: none."""
    rivals: int = 0
    """Updates in a row against as many steps of SGD, AdamW, Lion, Tiger and Amos from the same starts, each
    at its best rate, and the steps they need for what one update gives; 10 as published, 0: none. Costs as
    much as 560 runs of the zoo, to find the rates, and 5 for each network."""
    fine_tune: tuple[int, ...] = ()
    """Epochs (of policies: rollouts) to train generated, random, retrieved and trained networks further by
    the zoo's recipe, as in `--fine-tune 0 1 5 20`. Costs 12 trainings of each length for each of
    `fine_tune_networks`."""
    fine_tune_networks: int = 16
    """Networks of each kind that are fine-tuned."""
    amortise: bool = False
    """After how many networks has the generator paid for its zoo and its training? Costs a few seconds, with
    large networks minutes, in which updates and optimizer steps are timed."""
    walk: int = 0
    """Networks along a loop of noises from one start, shown as an animation; 24 are good, 0: none."""

    def __post_init__(self) -> None:
        for name, least in (("beyond", 2), ("rivals", 1), ("walk", 4)):
            if getattr(self, name) and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0, or at least {least}")
        if self.fine_tune_networks < 1:
            raise ValueError(f"fine_tune_networks is {self.fine_tune_networks}; expected at least 1")
        if list(self.fine_tune) != sorted(set(self.fine_tune)) or min(self.fine_tune, default=0) < 0:
            raise ValueError(
                f"fine_tune is {self.fine_tune}; expected numbers of epochs, ascending: 0 1 5 20"
            )


@dataclass(frozen=True)
class Material:
    """What is evaluated, and on what."""

    generator: WeightGenerator
    """Sampled as it is evaluated."""
    zoo: Zoo
    task: Task
    held_out: HeldOut
    best: float
    """The best prompt."""
    num_prompts: int = 20
    """Of each metric that is prompted, where there are several."""
    num_seeds: int = 3

    @property
    def starts(self) -> Tensor:
        """Held-out initialisations (N, D)."""
        return self.held_out.theta[:, 0]

    @property
    def plan(self) -> RunPlan:
        return self.zoo.header.runs_plan

    def made(self, starts: Tensor) -> Prompted:
        """One update of each for the best prompt; of held-out starts the very networks of the first seed."""
        wish = torch.full((len(starts),), self.best)
        return prompt_networks(self.generator, self.task, starts, wish, rng=seeded(0, 0))

    def training(self) -> dict[str, Tensor]:
        return training_checkpoints(self.zoo, self.generator.origin.num_training_runs)

    def learned_from(self) -> dict[str, Tensor]:
        """Without what a hole has left out."""
        origin = self.generator.origin
        return outside(self.training(), origin.prompted, origin.hole)


def _beyond(m: Material, config: SuiteConfig, _: str) -> Found:
    return beyond_the_best(m.generator, m.task, m.starts, m.training(), num=config.beyond)


def _hole(m: Material, config: SuiteConfig, _: str) -> Found:
    hole = m.generator.origin.hole
    assert hole is not None
    return in_the_hole(m.generator, m.task, m.starts, m.training(), hole)


def _recursion(m: Material, config: SuiteConfig, _: str) -> Found:
    curves = recursive_curves(
        m.generator, m.task, m.starts, "own", seed=0, updates=config.rivals, best=m.best
    )
    curve = curves[f"test_{m.generator.metric}"]
    numbers = {
        "rival_generator_curve": median(curve, 0).tolist(),
        "rival_generator_curve_quartiles": [quartiles(each) for each in curve.T],
    }
    return numbers, {f"rival_generator_{name}": values for name, values in curves.items()}


def _rival(m: Material, config: SuiteConfig, optimizer: str) -> Found:
    training = training_starts(m.zoo, m.generator.origin.num_training_runs, TRAINING_STARTS)
    wanted = m.made(training).achieved[-1][m.generator.origin.prompted]
    reached = m.made(m.starts).achieved[-1][f"test_{m.generator.metric}"]
    arena = Arena.of(m.task, m.plan, len(m.starts), training, wanted, m.zoo.header.num_runs)
    return rival(arena, optimizer, m.held_out, reached, config.rivals)


def _tuned(m: Material, config: SuiteConfig, kind: str) -> Found:
    num, origin = min(config.fine_tune_networks, len(m.starts)), m.generator.origin
    if kind == "random":
        starts = m.starts[:num]
    elif kind == "retrieved":
        starts = nearest_of_runs(m.zoo, origin.num_training_runs, m.best, num, origin.hole)
    else:
        made = m.made(m.starts)
        starts = made.theta[:num]
        if kind == "trained":
            starts = networks_of_metric(m.held_out, origin.prompted, made.achieved[-1][origin.prompted][:num])
    return tuned(kind, m.task, m.plan, starts, config.fine_tune, m.zoo.header.num_runs)


def _clocks(m: Material, config: SuiteConfig, _: str) -> Found:
    return clocked(m.generator, m.task, m.plan, m.starts, m.zoo.header.num_runs), {}


def _walk(m: Material, config: SuiteConfig, _: str) -> Found:
    return latent_walk(m.generator, m.task, m.starts[0], frames=config.walk, prompt=m.best, seed=0)


def _alone(m: Material, config: SuiteConfig, metric: str) -> Found:
    repeated = {"num_prompts": m.num_prompts, "num_seeds": m.num_seeds}
    return several.alone(m.generator, m.task, m.starts, m.learned_from(), metric, **repeated)


def _together(m: Material, config: SuiteConfig, _: str) -> Found:
    repeated = {"num_prompts": m.num_prompts, "num_seeds": m.num_seeds}
    return several.together(m.generator, m.task, m.starts, m.learned_from(), best=m.best, **repeated)


PARTS: dict[str, Callable[[Material, SuiteConfig, str], Found]] = {
    "beyond": _beyond,
    "hole": _hole,
    "recursion": _recursion,
    "rival": _rival,
    "tuned": _tuned,
    "clocks": _clocks,
    "walk": _walk,
    "alone": _alone,
    "together": _together,
}


def parts_of(config: SuiteConfig, generator: WeightGenerator) -> list[tuple[str, str]]:
    """(part, what of it) for all that is to be done, the longest first."""
    found = [("rival", name) for name in RIVALS] + [("recursion", "")] if config.rivals else []
    found += [("tuned", kind) for kind in KINDS] if config.fine_tune else []
    found += [("together", "")] if len(generator.metrics) > 1 else []
    found += [("alone", name) for name in generator.metrics[1:]]  # the main one is what all else is about
    found += [("walk", "")] if config.walk else []
    found += [("beyond", "")] if config.beyond else []
    found += [("hole", "")] if generator.origin.hole is not None else []
    return found + ([("clocks", "")] if config.amortise else [])


def run_part(material: Material, config: SuiteConfig, part: tuple[str, str]) -> Found:
    """One of `parts_of`."""
    name, which = part
    return PARTS[name](material, config, which)
