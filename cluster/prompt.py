"""Prompting networks from the command line, as one remote call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from rich.table import Table

from ckpt_factory.files import check_writable
from ckpt_factory.tasks.base import seeded
from ckpt_factory.words import counted
from generator.artefact import WeightGenerator
from generator.channels import check_names
from generator.prompt import Prompted, check_made, check_prompts, load_network, prompt_networks, save_networks
from generator.sampling.samplers import SamplingChange

from .command import Command, Outcome
from .progress import say
from .result import RESULT
from .tables import show_table
from .tasks import task_of_generator

ROWS = 20
"""Networks in the table that is shown; result.json has them all ..."""
ASIDE = ("_std", "_episodes")
"""... and what else is measured on the test split, like the spread of returns."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What to make with a generator."""

    generator: Path = Path("runs/generator")
    """Folder of the generator."""
    prompts: tuple[float, ...] = ()
    """The metrics wished for, as in `--prompts 0.1 0.5 1.0`; default the best that the zoo has seen. Of a
    generator of several metrics, the main one alone."""
    prompt: tuple[str, ...] | None = None
    """Instead, any of the metrics that the generator was trained with by name, as in `--prompt error=0.05` or
    `--prompt loss=0.3 error=0.05`, both at once. Several values make several prompts: `--prompt loss=0.3
    error=0.05,0.1,0.2`, as many of each metric, or one for all. Calibration is of the main one alone."""
    start: Path | None = None
    """A state_dict as safetensors to start from; default fresh initialisations."""
    num_networks: int | None = None
    """Fresh initialisations to start from; default 4."""
    updates: int = 1
    """Updates in a row, each from the metric that the last one achieved."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    seed: int = 0
    """Seed of initialisations and sampling noise."""
    out: Path = Path("runs/prompted")
    """Folder for the networks, one safetensors state_dict each, in place of those of a prompt before."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""

    def __post_init__(self) -> None:
        for name in ("num_networks", "updates"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; expected a non-negative integer")
        if self.start is not None and self.num_networks is not None:
            raise ValueError("num_networks is for fresh initialisations; leave it out with --start")
        if self.prompts and self.prompt is not None:
            raise ValueError(
                f"prompts are {self.prompts} and prompt {' '.join(self.prompt)}; give one of them: --prompts "
                "is of the main metric alone"
            )
        if len({f"{prompt:.6g}" for prompt in self.prompts}) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; expected each only once, to six digits")
        _ = self.named

    @property
    def named(self) -> dict[str, list[float]] | None:
        """The prompts of --prompt by metric, as many of each; None if it is not given."""
        return None if self.prompt is None else read_prompt(self.prompt)


def read_prompt(given: Sequence[str]) -> dict[str, list[float]]:
    """Prompts by metric from `loss=0.3 error=0.05,0.1`, as many of each.

    Raises:
        ValueError: no metric at all, one without numbers, twice, or with another number of them.
    """
    found: dict[str, list[float]] = {}
    for each in given:
        name, _, values = each.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if not name or not numbers or name in found:
            raise ValueError(
                f"prompt is {' '.join(given)!r}; expected metrics and numbers, each metric once: loss=0.3 "
                "error=0.05, or several with commas, error=0.05,0.1"
            )
        found[name] = numbers
    if not found:
        raise ValueError("prompt names no metric; expected some, as in --prompt loss=0.3 error=0.05")
    most = max(map(len, found.values()))
    odd = [f"{len(numbers)} of {name}" for name, numbers in found.items() if len(numbers) not in (1, most)]
    if odd:
        raise ValueError(f"prompt has {', '.join(odd)}; expected {most} of each metric, or one for all")
    found = {name: numbers * (most // len(numbers)) for name, numbers in found.items()}
    if (
        len({tuple(f"{value:.6g}" for value in values) for values in zip(*found.values(), strict=True)})
        < most
    ):
        raise ValueError(f"prompt is {' '.join(given)!r}; expected each only once, to six digits")
    return found


def wishes_of(config: PromptConfig, generator: WeightGenerator) -> dict[str, list[float]]:
    """What is prompted, by metric, as many of each; says what lies outside of what the zoo has seen.

    Raises:
        ValueError: the generator knows no such metric, or a prompt is no finite number.
    """
    main = list(config.prompts) or [generator.best_metric]
    wishes = {generator.metric: main} if config.named is None else config.named
    for name, values in wishes.items():
        for warning in check_prompts(generator, list(dict.fromkeys(values)), name):
            say(warning, label="warning")
    return wishes


@ray.remote(num_cpus=1)
def prompt_remotely(
    config: PromptConfig, data: Any, theta: torch.Tensor, prompt: dict[str, torch.Tensor]
) -> Prompted:
    torch.set_num_threads(1)
    generator = WeightGenerator.load(config.generator).with_sampling(config.sampling)
    return prompt_networks(
        generator,
        task_of_generator(generator.origin, config.data_root, data=data),
        theta,
        prompt,
        rng=seeded(config.seed, 1),
        updates=config.updates,
    )


def prompt(config: PromptConfig) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Make networks on the connected cluster and save them: (one row a network, the same in short)."""
    generator = WeightGenerator.load(config.generator)
    wishes = wishes_of(config, generator)
    num = len(next(iter(wishes.values())))
    check_writable(config.out)
    spec = generator.coordinates.spec
    task = task_of_generator(generator.origin, config.data_root)
    if config.start is not None:
        starts = load_network(config.start, spec)
    else:
        starts = task.init([seeded(config.seed, 0, k) for k in range(config.num_networks or 4)])
    theta = starts.repeat_interleave(num, 0)
    wish = {name: torch.tensor(values).repeat(len(starts)) for name, values in wishes.items()}
    say(f"making {counted(len(theta), 'network')} with {config.generator}")
    made = ray.get(prompt_remotely.remote(config, ray.put(task.data), theta, wish))
    keys = {name: "prompt" if config.named is None else f"prompt_{name}" for name in wishes}
    names = names_of(
        {keys[name].removeprefix("prompt_"): value.tolist() for name, value in wish.items()}, num
    )
    if removed := remove_former(config.out, () if config.start is None else (config.start,)):
        say(f"removed {removed} networks of the prompt before from {config.out}")
    save_networks(config.out, spec, made.theta, names)
    for warning in check_made(generator, made):
        say(warning, label="warning")
    rows = [
        {"file": f"{name}.safetensors"}
        | {keys[metric]: float(values[k]) for metric, values in wish.items()}
        | {f"start_{key}": float(values[k]) for key, values in made.start.items()}
        | _on_the_way(made, [generator.column_of(name) for name in wishes], k)
        | {key: float(values[k]) for key, values in made.achieved[-1].items()}
        for k, name in enumerate(names)
    ]
    return rows, _result(generator, made, rows, by_name=config.named is not None)


def names_of(asked: Mapping[str, Sequence[float]], num: int) -> list[str]:
    """Names of files that sort as the networks do: the start network, and what was asked of it.

    Args:
        asked: by metric, of every network.
        num: prompts of each start network, one after the other.
    """
    count = len(next(iter(asked.values())))
    digits = max(3, len(str((count - 1) // num)))
    return [
        "-".join(
            [f"network-{k // num:0{digits}d}", *(f"{name}-{value[k]:.6g}" for name, value in asked.items())]
        )
        for k in range(count)
    ]


def _on_the_way(made: Prompted, columns: Sequence[str], k: int) -> dict[str, float]:
    """What network k had reached of what is prompted, after each update but the last."""
    return {
        f"{column}_after_{u + 1}": float(step[column][k])
        for column in columns
        for u, step in enumerate(made.achieved[:-1])
    }


def remove_former(folder: Path, keep: Sequence[Path]) -> int:
    """Remove the networks that the result.json of an earlier prompt lists, and nothing else, so that a folder
    holds those of one prompt alone; returns how many they were.

    Args:
        keep: files that stay, whoever made them.
    """
    try:
        networks = json.loads((folder / RESULT).read_text(encoding="utf-8"))["networks"]
        files = [folder / Path(row["file"]).name for row in networks]
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is of another command
        return 0
    kept = {path.resolve() for path in keep}
    former = [
        path
        for path in files
        if path.suffix == ".safetensors" and path.is_file() and path.resolve() not in kept
    ]
    for path in former:
        path.unlink()
    return len(former)


def _result(
    generator: WeightGenerator, made: Prompted, rows: list[dict[str, Any]], *, by_name: bool
) -> dict[str, Any]:
    """What result.json says; with metrics given by name what is said of them has names, too."""
    columns = {name: generator.column_of(name) for name in made.prompts}
    result: dict[str, Any] = {"networks": rows}
    if by_name:
        result["prompted_columns"] = list(columns.values())
    else:
        result["prompted_column"] = columns[generator.metric]
    for name, column in columns.items():
        gap = (made.achieved[-1][column] - made.prompts[name]).abs()
        result[f"mean_absolute_gap{f'_{name}' * by_name}"] = float(gap.mean())
    result["networks_per_s"] = made.networks_per_s
    for column in columns.values():
        curve = [float(step[column].mean()) for step in made.achieved]
        result[f"mean_{column}_after_each_update"] = curve
    return result


def _run(config: PromptConfig) -> Outcome:
    rows, result = prompt(config)
    rows = [row | {"network": row["file"].split("-")[1]} for row in rows]
    asked = [name for name in rows[0] if name.startswith("prompt")]
    columns = result.get("prompted_columns") or [result["prompted_column"]]
    if len(columns) == 1:
        shown = [*asked, f"start_{columns[0]}", *(n for n in rows[0] if "_after_" in n), *columns]
    else:  # with their starts, which result.json has, they would be too wide for a screen
        shown = [each for pair in zip(asked, columns, strict=True) for each in pair]
    shown += [name for name in rows[0] if name.startswith("test_") and not name.endswith(ASIDE)]
    table = Table("network", *(name.replace("_", " ") for name in shown))
    for row in rows[:ROWS]:
        table.add_row(row["network"], *(f"{row[name]:.4f}" for name in shown))
    show_table(table)
    if len(rows) > ROWS:
        say(f"and {counted(len(rows) - ROWS, 'more network')}; all are in {config.out / RESULT}")
    say(
        f"networks: {config.out}/{rows[0]['file']}, ..."
        if len(rows) > 1
        else f"network: {config.out}/{rows[0]['file']}"
    )
    return result, config.out, 0


def _check(config: PromptConfig) -> None:
    generator = WeightGenerator.load(config.generator).with_sampling(config.sampling)
    wishes = config.named or {generator.metric: config.prompts}
    check_names(generator.metrics, list(wishes))
    for name, values in wishes.items():
        check_prompts(generator, values, name)
    if config.start is not None:
        load_network(config.start, generator.coordinates.spec)
    task_of_generator(generator.origin, config.data_root)
    check_writable(config.out)


COMMAND = Command(
    PromptConfig,
    _run,
    check=_check,
    examples="theta prompt --generator runs/generator --prompts 0.1 0.5 1.0\n"
    "theta prompt --generator runs/generator-of-both --prompt loss=0.3 error=0.05\n"
    "theta prompt --generator runs/generator --start mine.safetensors --prompts 0.1 --updates 3",
)
