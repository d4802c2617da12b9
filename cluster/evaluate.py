"""Evaluating a generator on the cluster: a remote call a seed, and one a part of the zoo for distances."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from ckpt_factory import Task, with_options
from ckpt_factory.files import check_writable, write_tensors
from ckpt_factory.zoo import Zoo, sha256
from generator.artefact import MODEL, WeightGenerator
from generator.audit.audit import PARTS_OF_A_ZOO, AuditSettings, Each, audit_networks, subject_of_grid
from generator.audit.novelty import Search, merge, training_runs
from generator.evaluation.amortise import amortised
from generator.evaluation.evaluate import (
    HeldOut,
    held_out_runs,
    measured_again,
    networks_of_metric,
    prompt_grid,
    summarise,
    training_checkpoints,
)
from generator.evaluation.recipe import steps_per_epoch
from generator.evaluation.several import without_its_prompt
from generator.evaluation.starts import STARTS, recursive_curves
from generator.evaluation.suite import Found, SuiteConfig, parts_of
from generator.medians import median, quartiles
from generator.prompt import check_prompts
from generator.sampling.samplers import SamplingChange
from generator.training.hole import outside

from .audit import NUM_PARTS, over_ray
from .belongs import as_prompted, check_belongs, check_measurable, say_what_is_held_out
from .command import Command
from .progress import ProgressBar, say
from .suite import Evaluated, part_remotely, spent_on
from .tasks import task_of_zoo

DISTANCES = ("distance_generated", "distance_held_out", "distance_ratio")
"""What an audit measures of distances, that an evaluation measures without one, too."""
ARRAYS = "evaluation.safetensors"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and how thoroughly."""

    generator: Path = Path("runs/generator")
    """Folder of the generator."""
    zoo: Path = Path("runs/zoo")
    """The zoo it was trained on, or imported to be judged on; its held-out runs are what it is evaluated
    on."""
    out: Path = Path("runs/evaluation")
    """Folder for the results."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    num_networks: int = 64
    """Held-out initialisations to start from."""
    num_prompts: int = 20
    """Prompts for each, linear from the best metric to a share of the start network's: 0.9 of losses, 1 of
    returns. Of a generator of several metrics, that is the zoo's own, prompted alone, here as in all other
    parts; each of the others is prompted alone, too, and all of them together."""
    best_prompt: float | None = None
    """The best prompt; default the best validation metric of the training runs."""
    num_seeds: int = 3
    """Repetitions with other sampling noise; the spread over them is reported."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    distance_networks: int = 32
    """Networks that are audited, and whose distance to the training checkpoints is measured; 0 measures
    none."""
    audit: bool = True
    """With the audit of the networks (see `theta audit`), or without: are they copies, and how do they
    compare with noise on training networks, means and other baselines at equal novelty? Little longer than
    distances alone."""
    search_runs: int = 4096
    """Training runs, evenly spread, that networks are searched for in; 0: all. The cost is linear in them."""
    episodes: int | None = None
    """Episodes that every network is measured by, for tasks of that option; default as in the zoo. Of the zoo
    only held-out runs are measured again: the retrieval control keeps the zoo's metrics."""
    ood: int = 0
    """Updates in a row, always for the best metric, of starts unlike the zoo's (halved, doubled, orthogonal,
    uniform) and of its own; 0: none, 10 as published. They cost 5 times so many updates for each network, the
    prompts `num_prompts` times `num_seeds`."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    """Further parts."""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_networks", 1),
            ("num_prompts", 2),
            ("num_seeds", 1),
            ("distance_networks", 0),
            ("search_runs", 0),
            ("ood", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.audit and not self.distance_networks:
            raise ValueError("distance_networks is 0, which leaves nothing to audit; give --no-audit, too")


def load(config: EvaluateConfig) -> WeightGenerator:
    """The generator, sampled as it is evaluated."""
    return WeightGenerator.load(config.generator).with_sampling(config.sampling)


def task_of(config: EvaluateConfig, zoo: Zoo, data: Any = None) -> Task:
    """The zoo's task, with as many episodes as asked for.

    Raises:
        ValueError: the task knows no episodes, or its images are not there, or others.
    """
    return task_of_zoo(zoo, config.data_root, id=id_of_task(config, zoo), data=data)


def id_of_task(config: EvaluateConfig, zoo: Zoo) -> str:
    """Of the zoo's task, with as many episodes as asked for."""
    id = zoo.header.task
    if config.episodes is not None:
        try:
            id = with_options(id, episodes=config.episodes)
        except ValueError as error:
            raise ValueError(f"episodes is {config.episodes}, but {error}; leave --episodes out") from None
    return id


@ray.remote(num_cpus=1)
def grid_of_seed(config: EvaluateConfig, data: Any, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    generator, zoo = load(config), Zoo.open(config.zoo)
    return prompt_grid(
        generator,
        task_of(config, zoo, data),
        held_out_runs(zoo, generator, config.num_networks).theta[:, 0],
        seed=seed,
        num_prompts=config.num_prompts,
        best=config.best_prompt,
        networks=seed == 0,  # of the others only what they achieve is looked at
    )


@ray.remote(num_cpus=1)
def curves_of_start(config: EvaluateConfig, data: Any, kind: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    generator, zoo = load(config), Zoo.open(config.zoo)
    return recursive_curves(
        generator,
        task_of(config, zoo, data),
        held_out_runs(zoo, generator, config.num_networks).theta[:, 0],
        kind,
        seed=0,
        updates=config.ood,
        best=config.best_prompt,
    )


@ray.remote(num_cpus=1)
def measured_remotely(config: EvaluateConfig, data: Any) -> HeldOut:
    torch.set_num_threads(1)
    generator, zoo = load(config), Zoo.open(config.zoo)
    held_out = held_out_runs(zoo, generator, config.num_networks)
    return measured_again(held_out, task_of(config, zoo, data))


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a generator on the connected cluster; returns what `result.json` says and writes the arrays.

    Raises:
        ValueError: generator and zoo do not belong together, or the task has no such option.
    """
    started = time.monotonic()
    check_writable(config.out)
    generator, zoo = load(config), Zoo.open(config.zoo)
    check_belongs(generator, zoo)
    zoo = as_prompted(zoo, generator)
    say_what_is_held_out(generator)
    for warning in check_prompts(generator, () if config.best_prompt is None else (config.best_prompt,)):
        say(warning, label="warning")
    task = task_of(config, zoo)
    held_out = held_out_runs(zoo, generator, config.num_networks)
    if missing := zoo.header.num_units - len(zoo.finished_units()):
        say(
            f"{missing} of {zoo.header.num_units} shards are missing: distance and retrieval see the others "
            "alone, and copies of what is missing go unnoticed",
            label="warning",
        )
    data = ray.put(task.data)
    refs = _remote_parts(config, generator, zoo, data)
    more = NUM_PARTS if config.audit else PARTS_OF_A_ZOO if config.distance_networks else 0
    with ProgressBar("evaluate", sum(map(len, refs.values())) + more, "parts") as bar:
        counter = itertools.count(1)
        done: dict[str, list[Any]] = {name: [] for name in refs}
        for name, ref in [(name, ref) for name, each in refs.items() for ref in each]:
            done[name].append(ray.get(ref))
            bar.update(next(counter))
        each = over_ray(task, data, config.data_root, lambda: bar.update(next(counter)))
        grids, held_out = done["grids"], (done["held_out"] or [held_out])[0]
        training = training_checkpoints(zoo, generator.origin.num_training_runs)
        training = outside(training, generator.origin.prompted, generator.origin.hole)
        audited, arrays = _audit_or_distances(config, generator, zoo, task, held_out, grids[0], each)
    result, more = summarise(generator, held_out, grids, training, task)
    result |= audited
    arrays |= more | {"run_ids": torch.tensor(held_out.run_ids)}
    result |= _distance_numbers(arrays)
    numbers, tensors = _further(config, generator, zoo, held_out, grids, done["further"])
    result |= numbers
    arrays |= tensors
    for kind, curve in zip(STARTS, done["curves"], strict=False):
        arrays |= {f"ood_{kind}_{name}": values for name, values in curve.items()}
        reached = curve[f"test_{generator.metric}"].T  # (1 + updates, N)
        result[f"ood_{kind}"] = median(reached, 1).tolist()
        result[f"ood_{kind}_quartiles"] = [quartiles(each) for each in reached]
    write_tensors(config.out / ARRAYS, arrays)
    result["training_checkpoints"] = len(training[generator.origin.prompted])
    return result | {
        "task": zoo.header.task,
        "evaluated": {"zoo": generator.origin.zoo_sha256, "model": sha256(config.generator / MODEL)},
        "arrays": sha256(config.out / ARRAYS),
        **_sampled_as(generator),
        "networks_per_s": sum(grid["networks_per_s"] for grid in grids) / len(grids),
        "num_networks": len(held_out.run_ids),
        "num_seeds": config.num_seeds,
        "wall_s": time.monotonic() - started,
    }


def _sampled_as(generator: WeightGenerator) -> dict[str, Any]:
    """How the networks of an evaluation were sampled."""
    return {
        "sampler": generator.sampling.sampler,
        "sampling_steps": generator.sampling.steps,
        "trajectory": generator.sampling.trajectory,
        "guidance": generator.sampling.guidance,
        "calibrated_prompts": generator.calibration is not None,
    }


def _remote_parts(
    config: EvaluateConfig, generator: WeightGenerator, zoo: Zoo, data: Any
) -> dict[str, list[Any]]:
    """References to all that is measured, by what it is, in the order in which it is begun."""
    evaluated, parts = _evaluated(config, zoo), parts_of(config.suite, generator)
    again = config.episodes is not None
    return {
        "grids": [grid_of_seed.remote(config, data, seed) for seed in range(config.num_seeds)],
        "curves": [curves_of_start.remote(config, data, kind) for kind in STARTS if config.ood],
        "held_out": [measured_remotely.remote(config, data)] if again else [],
        "further": [part_remotely.remote(evaluated, config.suite, data, part) for part in parts],
    }


def _evaluated(config: EvaluateConfig, zoo: Zoo) -> Evaluated:
    return Evaluated(
        generator=config.generator,
        zoo=config.zoo,
        task=id_of_task(config, zoo),
        data_root=config.data_root,
        num_networks=config.num_networks,
        num_prompts=config.num_prompts,
        num_seeds=config.num_seeds,
        best=config.best_prompt,
        sampling=config.sampling,
    )


def _further(
    config: EvaluateConfig,
    generator: WeightGenerator,
    zoo: Zoo,
    held_out: HeldOut,
    grids: Sequence[dict[str, Any]],
    parts: Sequence[Found],
) -> Found:
    """What the further parts have found, and after how many networks the generator has paid for itself."""
    result, arrays = {}, {}
    for numbers, tensors in parts:
        result |= numbers
        arrays |= tensors
    if len(generator.metrics) > 1:
        result |= without_its_prompt(generator, grids, arrays)
    if config.suite.amortise:
        column = f"test_{zoo.header.prompted.removeprefix('validation_')}"
        spent, num_steps = spent_on(config.generator, zoo), zoo.header.runs_plan.num_steps
        paid = amortised(held_out, grids, column, zoo.header.objective, spent, result, num_steps)
        result |= paid[0]
        arrays |= paid[1]
    return result, arrays


def _audit_or_distances(
    config: EvaluateConfig,
    generator: WeightGenerator,
    zoo: Zoo,
    task: Task,
    held_out: HeldOut,
    grid: dict[str, Any],
    each: Each,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The audit's numbers and arrays, or only the distances to the nearest training checkpoint."""
    settings = AuditSettings(search_runs=config.search_runs)
    if config.audit:
        start = held_out.theta[:, 0]
        subject = subject_of_grid(generator, grid, start, most=config.distance_networks, seed=0)
        audited, arrays = audit_networks(subject, held_out.rows(), zoo, task, settings, each=each)
        shown = {name: value for name, value in audited.items() if name not in DISTANCES}
        return (
            {f"audit_{name}": value for name, value in shown.items()},
            {name if name.startswith("distance_") else f"audit/{name}": a for name, a in arrays.items()},
        )
    if not config.distance_networks:
        return {}, {}
    made = grid["theta"][: config.distance_networks, 0]
    reached = grid[generator.origin.prompted][: config.distance_networks, 0]
    matched = networks_of_metric(held_out, generator.origin.prompted, reached)
    first, units = generator.origin.num_training_runs, zoo.finished_units()
    runs = settings.searched(training_runs(zoo, first))
    search = Search(torch.cat([made, matched]), first, frozenset(runs), hole=generator.origin.hole)
    found = each("survey", search, [(zoo, units[i::PARTS_OF_A_ZOO]) for i in range(PARTS_OF_A_ZOO)])
    nearest = merge(found).neighbours.distance[:, 0]
    generated, reference = nearest.split(len(made))
    return {}, {"distance_generated": generated, "distance_held_out": reference}


def _distance_numbers(arrays: dict[str, Tensor]) -> dict[str, float]:
    """Medians and their ratio, where distances were measured."""
    if "distance_generated" not in arrays:
        return {}
    generated, reference = median(arrays["distance_generated"]), median(arrays["distance_held_out"])
    return {
        "distance_generated": float(generated),
        "distance_held_out": float(reference),
        "distance_ratio": float(generated / reference),
    }


def _check(config: EvaluateConfig) -> None:
    check_writable(config.out)
    zoo = Zoo.open(config.zoo)
    check_measurable(zoo, "an evaluation")
    generator = load(config)
    check_belongs(generator, zoo)
    check_prompts(generator, () if config.best_prompt is None else (config.best_prompt,))
    task = task_of(config, zoo)
    if config.suite.amortise:
        spent_on(config.generator, zoo)
    if config.suite.rivals:
        _ = zoo.header.runs_plan  # refused where runs were imported: rivals are trained as these were
    if config.suite.fine_tune:
        steps_per_epoch(task, zoo.header.runs_plan.batch_size[0])  # refused where there are no epochs


COMMAND = Command(
    EvaluateConfig,
    lambda config: (evaluate(config), config.out, 0),
    check=_check,
    examples="theta evaluate --generator runs/generator --zoo runs/zoo --out runs/evaluation\n"
    "theta evaluate --rivals 10 --fine-tune 0 1 5 20 --amortise --walk 24 --out runs/evaluation-whole",
)
