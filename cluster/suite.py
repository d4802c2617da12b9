"""The evaluation's further parts on the cluster: a remote call each."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory import make
from ckpt_factory.zoo import Zoo
from generator.artefact import CONFIG, WeightGenerator
from generator.evaluation.amortise import Spent
from generator.evaluation.evaluate import held_out_runs
from generator.evaluation.suite import Found, Material, SuiteConfig, run_part
from generator.sampling.samplers import SamplingChange

from .belongs import as_prompted
from .factory import logged


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What is evaluated and how, as it travels to remote calls."""

    generator: Path
    zoo: Path
    task: str
    """The zoo's, with the options of the evaluation."""
    data_root: Path | None
    num_networks: int
    num_prompts: int
    num_seeds: int
    best: float | None
    sampling: SamplingChange


@ray.remote(num_cpus=1)
def part_remotely(evaluated: Evaluated, config: SuiteConfig, data: Any, part: tuple[str, str]) -> Found:
    torch.set_num_threads(1)
    return run_part(material_of(evaluated, data), config, part)


def material_of(evaluated: Evaluated, data: Any) -> Material:
    """All that a part of the evaluation looks at."""
    generator, zoo = WeightGenerator.load(evaluated.generator), Zoo.open(evaluated.zoo)
    generator = generator.with_sampling(evaluated.sampling)
    best = generator.best_metric if evaluated.best is None else evaluated.best
    held_out = held_out_runs(zoo, generator, evaluated.num_networks)
    task = make(evaluated.task, data=data, data_root=evaluated.data_root)
    zoo = as_prompted(zoo, generator)
    return Material(generator, zoo, task, held_out, best, evaluated.num_prompts, evaluated.num_seeds)


def spent_on(generator: Path, zoo: Zoo) -> Spent:
    """What a generator and its zoo have cost, as both have recorded it.

    Raises:
        ValueError: one has no record, as a zoo or a generator that was imported.
    """
    reports = logged(zoo)
    runs, cpu_s = (sum(each[name] for each in reports) for name in ("runs", "cpu_s"))
    if not runs:
        raise ValueError(
            f"zoo {zoo.path} has no record of what its runs have cost (factory.log.jsonl); leave --amortise "
            "out"
        )
    trained = json.loads((generator / CONFIG).read_text(encoding="utf-8"))["training"]
    if "cpu_s" not in trained:
        raise ValueError(
            f"the generator in {generator} has no record of the CPU seconds of its training; leave "
            "--amortise out, or train it anew"
        )
    return Spent(
        zoo_s=cpu_s / runs * sum(len(zoo.header.run_ids(unit)) for unit in zoo.finished_units()),
        training_s=trained["cpu_s"],
        run_s=cpu_s / runs,
    )
