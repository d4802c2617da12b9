"""Auditing a generator, or networks from elsewhere, on the cluster: the parts of an audit as remote calls."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory import Task, make
from ckpt_factory.files import check_writable, write_tensors
from ckpt_factory.interchange import Source, open_folder
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.audit.audit import (
    PARTS,
    PARTS_OF_A_ZOO,
    AuditSettings,
    Each,
    Subject,
    audit_networks,
    subject_of_grid,
)
from generator.audit.baselines import BASELINES
from generator.audit.frontier import frontier_picture
from generator.evaluation.evaluate import finished_runs, prompt_grid
from generator.sampling.samplers import SamplingChange
from generator.training.hole import Hole

from .belongs import as_prompted, check_belongs, check_measurable, say_what_is_held_out
from .command import Command, Outcome
from .progress import ProgressBar, say
from .tasks import task_of_zoo

ARRAYS, PICTURE = "audit.safetensors", "frontier.png"
NUM_PROMPTS = 8
NUM_PARTS = 3 * PARTS_OF_A_ZOO + 3 + len(BASELINES)
"""Remote calls of an audit, without those that make or measure the networks."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What to audit: a generator, or a folder of networks that were made elsewhere."""

    generator: Path | None = None
    """Folder of the generator; default runs/generator unless --generated is given. Of several metrics the
    main one is prompted, alone. With --generated it only says what of the zoo it was trained on, its runs and
    its hole."""
    generated: Path | None = None
    """A folder of networks, state_dicts as safetensors (or .pt), to be audited in place of a generator's."""
    zoo: Path = Path("runs/zoo")
    """The zoo that they were learned from: whose copies they may be, and whose held-out runs they are held
    against."""
    out: Path = Path("runs/audit")
    """Folder for result.json, the arrays and frontier.png."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    num_networks: int = 32
    """Networks that are made for the best prompt, and as many for others; of a folder at most so many, drawn
    at random."""
    num_prompts: int | None = None
    """Prompts that the networks of a generator are made for; default 8."""
    held_out: float | None = None
    """Share of the zoo's runs, the last ones, that whoever made --generated never saw; default 0.1, or what
    --generator was trained with."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    thoroughness: AuditSettings = field(default_factory=AuditSettings)

    def __post_init__(self) -> None:
        for name, least in (("num_networks", 1), ("num_prompts", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        if self.generated is not None:
            for name, value in ({"num_prompts": self.num_prompts} | vars(self.sampling)).items():
                if value is not None:
                    raise ValueError(f"{name} is for networks of a generator; leave it out with --generated")
        if self.held_out is not None and (self.generated is None or self.generator is not None):
            raise ValueError("held_out is for --generated without --generator, which knows its held-out runs")

    @property
    def source(self) -> Path | None:
        """The generator's folder, if there is one."""
        if self.generator is None and self.generated is None:
            return Path("runs/generator")
        return self.generator


@ray.remote(num_cpus=1)
def part_remotely(name: str, id: str, data: Any, data_root: Path | None, shared: Any, *args: Any) -> Any:
    torch.set_num_threads(1)
    return PARTS[name](make(id, data=data, data_root=data_root), shared, *args)


@ray.remote(num_cpus=1)
def grid_remotely(config: AuditConfig, id: str, data: Any, theta: torch.Tensor) -> dict[str, Any]:
    torch.set_num_threads(1)
    assert config.generator is not None
    return prompt_grid(
        WeightGenerator.load(config.generator).with_sampling(config.sampling),
        make(id, data=data, data_root=config.data_root),
        theta,
        seed=config.thoroughness.seed,
        num_prompts=config.num_prompts or NUM_PROMPTS,
    )


def over_ray(task: Task, data: Any, data_root: Path | None, report: Callable[[], None]) -> Each:
    """The parts of an audit as remote calls; `report` is told of each that is done.

    Args:
        data: the task's, in the object store.
    """

    def each(name: str, shared: Any, jobs: Sequence[tuple]) -> list[Any]:
        stored, found = ray.put(shared), []
        for ref in [part_remotely.remote(name, task.id, data, data_root, stored, *job) for job in jobs]:
            found.append(ray.get(ref))
            report()
        return found

    return each


def audit(config: AuditConfig) -> dict[str, Any]:
    """Audit on the connected cluster; returns what `result.json` says, and writes arrays and picture.

    Raises:
        ValueError: generator, networks and zoo do not belong together.
    """
    check_writable(config.out)
    if config.source is not None:  # a default is relative to where this process runs, and no worker does
        config = dataclasses.replace(config, generator=config.source.absolute())
    zoo = Zoo.open(config.zoo)
    task = task_of_zoo(zoo, config.data_root)
    generator = WeightGenerator.load(config.source) if config.source is not None else None
    if generator is not None:
        zoo = as_prompted(zoo, generator)
        say_what_is_held_out(generator)
    first = _first_held_out(config, zoo, generator)
    held_out = finished_runs(zoo, first, config.num_networks)
    data, done = ray.put(task.data), 0
    sampled = PARTS_OF_A_ZOO if config.generated is not None else 1
    with ProgressBar("audit", NUM_PARTS + sampled, "parts") as bar:

        def report() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        each = over_ray(task, data, config.data_root, report)
        if config.generated is not None:
            hole = generator.origin.hole if generator is not None else None
            subject = _foreign(config, zoo, task, first, hole, each)
        else:
            assert generator is not None
            start = held_out.theta[:, 0]
            grid = ray.get(grid_remotely.remote(config, task.id, data, start))
            report()
            seed = config.thoroughness.seed
            subject = subject_of_grid(generator, grid, start, most=config.num_networks, seed=seed)
        result, arrays = audit_networks(subject, held_out, zoo, task, config.thoroughness, each=each)
    if arrays:
        write_tensors(config.out / ARRAYS, arrays)
        frontier_picture(config.out / PICTURE, result, arrays)
        say(f"frontier: {config.out / PICTURE}")
    return {"task": task.id, "audited": str(config.generated or config.source)} | result


def _first_held_out(config: AuditConfig, zoo: Zoo, generator: WeightGenerator | None) -> int:
    if generator is not None:
        return generator.origin.num_training_runs
    return zoo.header.num_training_runs(config.held_out or 0.1)


def _opened(folder: Path, task: Task) -> Source:
    return open_folder(
        folder,
        None,
        task=task,
        flag="--generated",
        refusal="networks cannot be audited",
        cure="remove their files",
    )


def _foreign(config: AuditConfig, zoo: Zoo, task: Task, first: int, hole: Hole | None, each: Each) -> Subject:
    """The networks of a folder, measured."""
    assert config.generated is not None
    source = _opened(config.generated, task)
    total = len(source.names)
    chosen = torch.randperm(total, generator=seeded(config.thoroughness.seed, 4))[: config.num_networks]
    theta = torch.cat([source.read(int(i)).theta for i in chosen.sort().values])
    chunks = theta.chunk(PARTS_OF_A_ZOO)
    metrics = each("measure", None, [(part,) for part in chunks])
    metric = torch.cat([part[zoo.header.prompted] for part in metrics])
    return Subject(theta, metric, first, len(theta), hole=hole, num_given=total)


def _run(config: AuditConfig) -> Outcome:
    result = audit(config)
    say(str(result["verdict"]), label="passes" if result["passes"] else "fails")
    return result, config.out, 0 if result["passes"] else 1


def _check(config: AuditConfig) -> None:
    check_writable(config.out)
    zoo = Zoo.open(config.zoo)
    check_measurable(zoo, "an audit")
    if config.source is not None:
        check_belongs(WeightGenerator.load(config.source).with_sampling(config.sampling), zoo)
    task = task_of_zoo(zoo, config.data_root)
    if config.generated is not None:
        _opened(config.generated, task)


COMMAND = Command(
    AuditConfig,
    _run,
    check=_check,
    examples="theta audit --generator runs/generator --zoo runs/zoo --out runs/audit\n"
    "theta audit --generated networks --zoo runs/zoo || exit 1    # a gate: 0 passes, 1 fails, 2 bad input",
)
