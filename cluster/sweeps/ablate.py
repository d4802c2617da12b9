"""Ablations: our training and every variant of it by one change, at equal CPU time, judged alike."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ckpt_factory.files import write_text
from generator.comparison.ablation import DEFAULT, Result, Summary, changed, chosen, summaries
from generator.model.dit import DiTConfig
from generator.report.ablation_plots import ablation_picture
from generator.training.train import TrainConfig

from .. import train
from ..command import Command, Outcome
from ..progress import say
from ..requests import wanted_of
from ..tables import print_table
from ..train_config import GeneratorConfig
from .contest import claim, contend, contestants
from .jury import Jury

TABLE, PICTURE = "ablation.csv", "ablation.png"
SPLIT = "validation"
"""That variants are judged on: defaults are chosen by what is found."""
MANY = 10**9
"""Steps of a training that the clock ends."""


@dataclass(frozen=True, kw_only=True)
class AblateConfig(GeneratorConfig):
    """What to compare with what; every option of `theta train` is a change of the default, and so of all."""

    out: Path = Path("runs/ablation")
    """Folder of the table, the picture and every training's generator. The same command again goes on, with
    more --seeds or other --only, too."""
    only: tuple[str, ...] = ()
    """Names of variants, beside the default; default all of them: prediction-v, prediction-noise, min-snr,
    path-linear, path-flow, flow-matching, shift-1, shift-8, condition-token, scales-single, rank-0, rank-32,
    hidden-space, chunks, chunks-none, canonical, behaviour-0, behaviour-10, pairs-published, dropout,
    guidance."""
    seeds: int = 3
    """Trainings of each variant."""
    cpu_seconds: float = 120.0
    """CPU seconds of each training."""
    num_workers: int = 1
    """Of each training: one. As many trainings run at once as the cluster has CPUs."""
    reservoir_gib: float = 2.0
    """Memory for runs per training; of a zoo that is larger as many runs of every shard as fit."""
    num_networks: int = 64
    """Held-out initialisations that generators are judged on, by the validation split: the last ones of the
    zoo, for evaluations take the first ones and the test split."""
    num_prompts: int = 20
    """Prompts for each of them."""
    training: TrainConfig = field(default_factory=lambda: TrainConfig(steps=MANY))
    """The training of the default."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen(self.only)
        for name, least in (("seeds", 1), ("num_networks", 1), ("num_prompts", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        if not 0 < self.cpu_seconds < float("inf"):
            raise ValueError(f"cpu_seconds is {self.cpu_seconds}; expected a positive number of seconds")
        if self.training.time_budget_s is not None or self.training.cpu_budget_s is not None:
            raise ValueError(
                "a budget of its own for the training; expected --cpu-seconds alone to say how long"
            )
        for name, expected in (("num_workers", 1), ("use_gpu", False), ("calibrate", 0), ("moments", 0)):
            if getattr(self, name) != expected:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; variants are trained by one CPU each and judged as "
                    f"they are, expected {expected}"
                )

    def base(self) -> GeneratorConfig:
        """The training of the default, which variants change."""
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(GeneratorConfig)}
        own["training"] = replace(self.training, cpu_budget_s=self.cpu_seconds)
        return GeneratorConfig(**own)

    def variants(self) -> dict[str, GeneratorConfig]:
        """By name, the trainings that are compared.

        Raises:
            ValueError: a variant does not go together with what was asked for.
        """
        found = {}
        for variant in chosen(self.only):
            try:
                found[variant.name] = changed(self.base(), variant.changes)
            except ValueError as error:
                raise ValueError(
                    f"variant {variant.name} is impossible here: {error}; name others by --only"
                ) from None
        return found


def digits() -> AblateConfig:
    """Twenty-two variants on the digits zoo, three seeds, two CPU minutes each: over an hour on two cores."""
    return AblateConfig(sampling_steps=5, sampler="ddim")


def smoke() -> AblateConfig:
    """Two CPU seconds of a small model each, to see that all works: the order means nothing."""
    training = TrainConfig(model=DiTConfig(width=32, depth=1), steps=MANY, batch_size=64, warmup_steps=10)
    return AblateConfig(
        seeds=1, cpu_seconds=2.0, num_networks=4, num_prompts=4, sampling_steps=2, training=training
    )


PRESETS = {"digits": digits, "smoke": smoke}


def ablate(config: AblateConfig) -> dict[str, Any]:
    """Compare the variants on the connected cluster, or go on with it; returns what result.json says.

    Raises:
        ValueError: `config.out` holds another comparison, or its trainings are impossible.
    """
    zoo, variants = train.check(config), config.variants()
    wanted = {name: value for name, value in wanted_of(config, zoo).items() if name not in ("only", "seeds")}
    wanted |= {"split": SPLIT}
    widths = {each.training.model.width for each in variants.values()}
    trainings = contestants(variants, config.seeds, config.out, claim(config.out, wanted, widths))
    say(f"{len(trainings)} trainings of {config.cpu_seconds:g} CPU seconds each, in {config.out}")
    jury = Jury.of(config, zoo, num_networks=config.num_networks, num_prompts=config.num_prompts, split=SPLIT)
    judged = contend("ablate", trainings, jury)
    metric = metric_of(judged)
    ablation_picture(judged, metric, config.out / PICTURE)
    write_csv(judged, config.out / TABLE)
    found = summaries(judged)
    print_summaries(
        found, metric, "ablation", f"{config.cpu_seconds:g} CPU seconds of training each", DEFAULT
    )
    best, about = found[0], {each.name: each.about for each in chosen(config.only)}
    return {
        "best_variant": best.variant,
        "best_alignment": best.alignment,
        "trainings": len(trainings),
        "trainings_failed": len(trainings) - len(judged),
        "cpu_s": sum(each.cpu_s for each in judged),
        "picture": str(config.out / PICTURE),
        "table": str(config.out / TABLE),
        "variants": [asdict(each) | {"about": about[each.variant]} for each in found],
        "judged": [each.row() for each in judged],
    }


def metric_of(judged: Sequence[Result]) -> str:
    """The metric that is shown: the error of classifiers, else the first one."""
    names = list(judged[0].one_update)
    return next((name for name in names if name.partition("_")[2] == "error"), names[0])


def write_csv(judged: Sequence[Result], path: Path) -> None:
    """A row for every training."""
    rows, content = [each.row() for each in judged], io.StringIO()
    writer = csv.DictWriter(content, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, content.getvalue())


def print_summaries(found: Sequence[Summary], metric: str, title: str, how: str, compared_with: str) -> None:
    """Alignments, gains over one of them, and a metric of one update, in a table."""
    split, _, short = metric.partition("_")
    print_table(
        {
            each.variant.removeprefix(f"{compared_with} "): {
                "alignment": each.alignment,
                "±": each.alignment_std,
                "gain": each.gain,
                "± ": each.gain_std,
                short: each.one_update[metric],
            }
            for each in found
        },
        title,
        f"{how}. Held-out initialisations, {split} split; ± standard deviations over seeds. Gain: of "
        f"alignment, over {compared_with}, seed by seed. {metric.replace('_', ' ').capitalize()}: after one "
        "update with the best prompt.",
    )


def _check(config: AblateConfig) -> None:
    train.check(config)
    config.variants()


def _run(config: AblateConfig) -> Outcome:
    result = ablate(config)
    return result, config.out, 1 if result["trainings_failed"] else 0


COMMAND = Command(
    AblateConfig,
    _run,
    presets=PRESETS,
    check=_check,
    resumes=True,
    examples="theta ablate --zoo runs/zoo --out runs/ablation\n"
    "theta ablate --only prediction-v min-snr path-flow --seeds 5 --cpu-seconds 60\n"
    "theta ablate --preset smoke --zoo runs/zoo --out runs/ablation-smoke",
)
