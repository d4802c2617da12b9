"""Our generator against the published one on one zoo, and what each difference between the recipes brings."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from .bench import BenchConfig

TABLE, PICTURE = "changes.csv", "changes.png"
OURS, PUBLISHED, LONG = "ours", "published", "published at length"


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


def measure_generator(config: BenchConfig) -> dict[str, Any]:
    """Train and judge both, then the table of changes; prints, draws and returns what was found."""
    assert config.zoo is not None
    steps, out = (config.our_steps, config.table_steps), config.out
    ours, published = (
        replace(each, data_root=config.data_root) for each in recipes(config.zoo, config.cpu_seconds, steps)
    )
    zoo = train.check(replace(ours, out=out))
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
    config: BenchConfig, zoo: Zoo, ours: GeneratorConfig, long: GeneratorConfig
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
