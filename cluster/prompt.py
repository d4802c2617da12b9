"""Prompting networks from the command line, as one remote call."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from ckpt_factory import make
from ckpt_factory.files import check_writable
from ckpt_factory.tasks.base import seeded
from generator.artefact import WeightGenerator
from generator.prompt import Prompted, check_made, check_prompts, load_network, prompt_networks, save_networks
from generator.samplers import SamplerName, Trajectory

from .command import Command, Outcome
from .progress import say


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What to make with a generator."""

    generator: Path = Path("runs/generator")
    """Folder of the generator."""
    prompts: tuple[float, ...] = ()
    """The metrics wished for, as in `--prompts 0.1 0.5 1.0`; default the best that the zoo has seen."""
    start: Path | None = None
    """A state_dict as safetensors to start from; default fresh initialisations."""
    num_networks: int | None = None
    """Fresh initialisations to start from; default 4."""
    updates: int = 1
    """Updates in a row, each from the metric that the last one achieved."""
    steps: int | None = None
    """Sampling steps of an update; default the generator's own. With another sampling than its own, prompts
    are not calibrated."""
    sampler: SamplerName | None = None
    """Ancestral (ddpm), deterministic (ddim, dpm-solver++) or analytic sampling (after `theta moments`);
    default the generator's own."""
    trajectory: Trajectory | None = None
    """Steps even in time, or optimal by what the model misses (after `theta moments`); default the
    generator's own."""
    guidance: float | None = None
    """How far prompts are followed, 1 as the model says; others need a generator that was trained with
    --prompt-dropout. Default the generator's own."""
    seed: int = 0
    """Seed of initialisations and sampling noise."""
    out: Path = Path("runs/prompted")
    """Folder for the networks, one safetensors state_dict each."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""

    def __post_init__(self) -> None:
        for name in ("num_networks", "updates", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected a non-negative integer")
        if self.start is not None and self.num_networks is not None:
            raise ValueError("num_networks is for fresh initialisations; leave it out with --start")
        if len({f"{prompt:.6g}" for prompt in self.prompts}) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; expected each only once, to six digits")


@ray.remote(num_cpus=1)
def prompt_remotely(config: PromptConfig, data: Any, theta: torch.Tensor, prompt: torch.Tensor) -> Prompted:
    torch.set_num_threads(1)
    generator = WeightGenerator.load(config.generator)
    return prompt_networks(
        generator,
        make(generator.origin.task, data=data),
        theta,
        prompt,
        rng=seeded(config.seed, 1),
        updates=config.updates,
        steps=config.steps,
        sampler=config.sampler,
        trajectory=config.trajectory,
        guidance=config.guidance,
    )


def prompt(config: PromptConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Make networks on the connected cluster and save them: (one row a network, the same in short)."""
    generator = WeightGenerator.load(config.generator)
    wishes = config.prompts or (generator.best_metric,)
    for warning in check_prompts(generator, wishes):
        say(warning, label="warning")
    check_writable(config.out)
    spec = generator.coordinates.spec
    task = make(generator.origin.task, data_root=config.data_root)
    if config.start is not None:
        starts = load_network(config.start, spec)
    else:
        starts = task.init([seeded(config.seed, 0, k) for k in range(config.num_networks or 4)])
    theta = starts.repeat_interleave(len(wishes), 0)
    wish = torch.tensor(wishes).repeat(len(starts))
    made = ray.get(prompt_remotely.remote(config, ray.put(getattr(task, "data", None)), theta, wish))
    names = [f"network-{k // len(wishes):03d}-prompt-{value:.6g}" for k, value in enumerate(wish.tolist())]
    save_networks(config.out, spec, made.theta, names)
    for warning in check_made(generator, made):
        say(warning, label="warning")
    rows = [
        {"file": f"{name}.safetensors", "prompt": float(wish[k])}
        | {f"start_{key}": float(values[k]) for key, values in made.start.items()}
        | {key: float(values[k]) for key, values in made.achieved[-1].items()}
        for k, name in enumerate(names)
    ]
    column = generator.origin.prompted
    gap = (made.achieved[-1][column] - made.prompt).abs()
    curve = [float(step[column].mean()) for step in made.achieved]
    return rows, {
        "networks": rows,
        "prompted_column": column,
        "mean_absolute_gap": float(gap.mean()),
        "networks_per_s": made.networks_per_s,
        f"mean_{column}_after_each_update": curve,
    }


def _run(config: PromptConfig) -> Outcome:
    rows, result = prompt(config)
    column = result["prompted_column"]
    rows = [row | {"network": row["file"].split("-")[1]} for row in rows]
    shown = ["prompt", f"start_{column}", column, *(name for name in rows[0] if name.startswith("test_"))]
    table = Table("network", *(name.replace("_", " ") for name in shown))
    for row in rows:
        table.add_row(row["network"], *(f"{row[name]:.4f}" for name in shown))
    Console().print(table)
    say(
        f"networks: {config.out}/{rows[0]['file']}, ..."
        if len(rows) > 1
        else f"network: {config.out}/{rows[0]['file']}"
    )
    return result, config.out, 0


def _check(config: PromptConfig) -> None:
    generator = WeightGenerator.load(config.generator)
    if config.start is not None:
        load_network(config.start, generator.coordinates.spec)
    make(generator.origin.task, data_root=config.data_root)
    check_writable(config.out)


COMMAND = Command(
    PromptConfig,
    _run,
    check=_check,
    examples="theta prompt --generator runs/generator --prompts 0.1 0.5 1.0\n"
    "theta prompt --generator runs/generator --start mine.safetensors --prompts 0.1 --updates 3",
)
