"""Our generator against the published one on one zoo, and what each difference between the recipes brings."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_factory.zoo import Zoo
from generator.comparison.ablation import CHANGES, Result, between, summaries
from generator.report.ablation_plots import ablation_picture
from generator.training.train import Precision

from .. import train
from ..progress import say
from ..requests import wanted_of
from ..sweeps.ablate import MANY, metric_of, print_summaries, write_csv
from ..sweeps.contest import claim, contend, contestants
from ..sweeps.jury import Jury
from ..tables import print_table
from ..train_config import GeneratorConfig, digits, gpt_digits
from .benchmark import JudgedConfig, benchmark, check_positive

TABLE, PICTURE = "changes.csv", "changes.png"
OURS, PUBLISHED, LONG = "ours", "published", "published at length"


@dataclass(frozen=True, kw_only=True)
class GeneratorBenchConfig(JudgedConfig):
    """Ours against the published one on a zoo of digits, and what every difference between them brings, at
    equal CPU time: 19 trainings a seed, which takes hours. Killed, the same command goes on."""

    out: Path = Path("runs/bench")
    """Folder of the trainings, the table, the picture and result.json. The same command again goes on."""
    zoo: Path | None = None
    """The zoo to train both on."""
    num_seeds: int = 3
    """Trainings of each kind."""
    cpu_seconds: float = 120.0
    """CPU seconds of our training and of every other in the table of changes."""
    published_cpu_seconds: float = 1800.0
    """CPU seconds of the published training that ours is held against."""
    published_steps: int = 1000
    """Sampling steps of that one."""
    our_steps: int = 5
    """Sampling steps of ours."""
    changes: bool = True
    """With the table of changes, or without."""
    table_steps: int = 50
    """Sampling steps of the published schedule in that table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "num_seeds", "cpu_seconds", "published_cpu_seconds")
        check_positive(self, "published_steps", "our_steps", "table_steps")


def recipes(zoo: Path, cpu_seconds: float, steps: tuple[int, int]) -> tuple[GeneratorConfig, GeneratorConfig]:
    """(ours, the published one) for a zoo, each in one process for so many CPU seconds, sampled in so many
    steps."""

    def alone(config: GeneratorConfig) -> GeneratorConfig:
        training = replace(config.training, steps=MANY, time_budget_s=None, cpu_budget_s=cpu_seconds)
        return replace(config, zoo=zoo, num_workers=1, calibrate=0, training=training)

    ours, published = (
        replace(alone(config), sampling_steps=own)
        for config, own in zip((digits(), gpt_digits()), steps, strict=True)
    )
    return ours, published


def changes(ours: GeneratorConfig, published: GeneratorConfig) -> dict[str, GeneratorConfig]:
    """One change at a time in both directions, by name: ours minus it, the published recipe plus it."""
    every = frozenset(CHANGES)
    found = {OURS: between(ours, published, ()), PUBLISHED: between(ours, published, every)}
    for change in CHANGES:
        found[f"{OURS} minus {change}"] = between(ours, published, {change})
        found[f"{PUBLISHED} plus {change}"] = between(ours, published, every - {change})
    return found


def asked(config: GeneratorBenchConfig) -> tuple[GeneratorConfig, GeneratorConfig, Zoo]:
    """(ours, the published one, the zoo) of the table of changes.

    Raises:
        ValueError: no zoo is given, or it cannot be trained on.
    """
    if config.zoo is None:
        raise ValueError("needs --zoo, the zoo to train both on")
    ours, published = (
        replace(each, data_root=config.data_root)
        for each in recipes(config.zoo, config.cpu_seconds, (config.our_steps, config.table_steps))
    )
    return ours, published, train.check(replace(ours, out=config.out))


def bench_generator(config: GeneratorBenchConfig) -> dict[str, Any]:
    """Train and judge both, then the table of changes; prints, draws and returns what was found."""
    (ours, published, zoo), out = asked(config), config.out
    long = replace(
        published,
        sampling_steps=config.published_steps,
        training=replace(published.training, cpu_budget_s=config.published_cpu_seconds),
    )
    table = changes(ours, published) if config.changes else {OURS: ours}
    trainings = contestants(table | {LONG: long}, config.num_seeds, out, _claimed(config, zoo, ours, long))
    say(
        f"{len(trainings)} trainings in {out}: {config.num_seeds} of {config.published_cpu_seconds:g} CPU "
        f"seconds, the others of {config.cpu_seconds:g}"
    )
    jury = Jury.of(ours, zoo, num_networks=config.num_networks, num_prompts=config.num_prompts)
    judged = contend("bench", trainings, jury)
    metric = metric_of(judged)
    write_csv(judged, out / TABLE)
    both = [each for each in judged if each.variant in (OURS, LONG)]
    found = _side_by_side(both, metric, jury) if both else {}
    found |= {
        "trainings": len(trainings),
        "trainings_failed": len(trainings) - len(judged),
        "table": str(out / TABLE),
        "judged": [each.row() for each in judged],
    }
    others = [each for each in judged if each.variant != LONG]
    if not config.changes or not others:
        return found
    ablation_picture(others, metric, out / PICTURE, compared_with=(OURS, PUBLISHED))
    return found | {
        "picture": str(out / PICTURE),
        "ours minus a change": _direction(OURS, others, metric, config.cpu_seconds),
        "published plus a change": _direction(PUBLISHED, others, metric, config.cpu_seconds),
    }


def _claimed(
    config: GeneratorBenchConfig, zoo: Zoo, ours: GeneratorConfig, long: GeneratorConfig
) -> dict[int, Precision]:
    """Precisions by width, once the folder is known to hold this very comparison."""
    wanted = wanted_of(ours, zoo) | {
        "published": json.loads(json.dumps(asdict(long.training))),
        "published_steps": config.published_steps,
        "table_steps": config.table_steps,
        "judged_on": [config.num_networks, config.num_prompts],
    }
    return claim(config.out, wanted, {each.training.model.width for each in (ours, long)})


def _side_by_side(judged: Sequence[Result], metric: str, jury: Jury) -> dict[str, Any]:
    """Both generators in a table, and its numbers by name."""
    rows = {
        each.variant: {
            "alignment": each.alignment,
            "±": each.alignment_std,
            metric.removeprefix("test_"): each.one_update[metric],
            "CPU s": each.cpu_s,
            "evaluations": each.evaluations,
            "nets/CPU s": each.networks_per_cpu_s,
        }
        for each in summaries(judged, compared_with=LONG)
    }
    print_table(
        rows,
        "our generator against the published one",
        f"{jury.num_networks} held-out initialisations, {jury.num_prompts} prompts each, test split; ± "
        f"standard deviation over seeds. {metric.replace('_', ' ').capitalize()}: after one update with the "
        "best prompt. CPU seconds of training; evaluations of the model for a network.",
    )
    return {f"{name}: {key}": value for name, row in rows.items() for key, value in row.items()}


def _direction(base: str, judged: Sequence[Result], metric: str, cpu_seconds: float) -> list[dict[str, Any]]:
    """The table of one direction, printed and returned."""
    found = summaries([each for each in judged if each.variant.startswith(base)], compared_with=base)
    if not found:
        return []
    print_summaries(
        found,
        metric,
        "ours, one change taken back" if base == OURS else "the published recipe, one change made",
        f"{cpu_seconds:g} CPU seconds of training each; with but one of tokens and conditioning as published "
        "it is our own chunks or units",
        base,
    )
    return [asdict(each) for each in found]


COMMAND = benchmark(
    GeneratorBenchConfig,
    bench_generator,
    check=asked,
    starts_ray=True,
    resumes=True,
    examples="theta bench generator --zoo runs/zoo --out runs/bench-generator\n"
    "theta bench generator --zoo runs/zoo --published-cpu-seconds 14400 --num-seeds 1 --no-changes "
    "--out runs/bench-generator-4h",
)
