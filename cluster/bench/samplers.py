"""Samplers against each other on one trained generator: quality by the number of evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation.evaluate import held_out_runs
from generator.report.quality_plots import quality_picture
from generator.sampling.quality import sampler_quality
from generator.sampling.samplers import SAMPLERS, Sampling
from generator.sampling.trajectory import GRID
from generator.sampling.uncertainty import measure_moments

from ..belongs import check_belongs
from ..progress import say
from ..tables import print_table
from ..tasks import task_of_zoo
from .benchmark import JudgedConfig, benchmark, check_filled

PICTURE = "samplers.png"
MOMENT_PAIRS = 512
ON_OPTIMAL = ("ddim", "extended-ddpm")
"""Samplers that are measured on optimal trajectories, too: these are meant for the second."""


@dataclass(frozen=True, kw_only=True)
class SamplersBenchConfig(JudgedConfig):
    """Alignment and weights by the number of a generator's evaluations, for all samplers, as a table and a
    picture. With up to 20 evaluations it takes a minute."""

    out: Path = Path("runs/bench")
    """Folder for result.json and the picture."""
    generator: Path | None = None
    """Folder of the generator."""
    zoo: Path | None = None
    """The zoo it was trained on."""
    evaluations: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
    """How often the model is evaluated for a network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_filled(self, "evaluations")


def opened(config: SamplersBenchConfig) -> tuple[WeightGenerator, Zoo]:
    """The generator and its zoo.

    Raises:
        ValueError: one of them is not given or not there, or they do not belong together.
    """
    if config.generator is None or config.zoo is None:
        raise ValueError("needs --generator and --zoo, the zoo it was trained on")
    generator, zoo = WeightGenerator.load(config.generator), Zoo.open(config.zoo)
    check_belongs(generator, zoo)
    return generator, zoo


def bench_samplers(config: SamplersBenchConfig) -> dict[str, Any]:
    """Every sampler with every number of evaluations: prints, draws and returns their quality."""
    generator, zoo = opened(config)
    if generator.moments is None:
        say("measuring how uncertain predictions are, which analytic samplers need to know")
        moments = measure_moments(generator, zoo, num_pairs=MOMENT_PAIRS, seed=0)
        generator = replace(generator, moments=moments)
    samplings = [Sampling(steps=n, sampler=name) for n in config.evaluations for name in SAMPLERS]
    samplings += [
        Sampling(steps=n, sampler=name, trajectory="optimal")
        for n in config.evaluations
        for name in ON_OPTIMAL
        if 1 < n <= GRID
    ]
    held_out = held_out_runs(zoo, generator, config.num_networks)
    task = task_of_zoo(zoo, config.data_root)
    rows: list[dict[str, Any]] = []
    for row in sampler_quality(generator, task, held_out, samplings, num_prompts=config.num_prompts):
        rows.append(row)
        say(f"{name_of(row)}: alignment {row['prompt_alignment']:.3f}")
    quality_picture(rows, config.out / PICTURE)
    _print(rows, len(held_out.run_ids), config.num_prompts)
    return {
        "networks": len(held_out.run_ids),
        "prompts": config.num_prompts,
        "picture": str(config.out / PICTURE),
        "samplers": rows,
    }


def name_of(row: dict[str, Any]) -> str:
    optimal = ", optimal" if row["trajectory"] == "optimal" else ""
    return f"{row['sampler']}{optimal}, {row['evaluations']:,}"


def _print(rows: Sequence[dict[str, Any]], networks: int, prompts: int) -> None:
    print_table(
        {
            name_of(row): {
                "alignment": row["prompt_alignment"],
                "one update": row["one_update"],
                "distance": row["wasserstein"],
                "broken": row["broken"],
                "nets/s": row["networks_per_s"],
            }
            for row in sorted(rows, key=lambda row: (row["sampler"], row["trajectory"], row["evaluations"]))
        },
        "samplers, with their evaluations of the model",
        f"{networks} held-out initialisations, {prompts} prompts each. One update: the test metric after the "
        "best prompt. Distance: sliced Wasserstein of weights to those of held-out runs at equal validation "
        "metric, in their standard deviations, mean over tensors.",
    )


COMMAND = benchmark(
    SamplersBenchConfig,
    bench_samplers,
    check=opened,
    examples="theta bench samplers --generator runs/generator --zoo runs/zoo\n"
    "theta bench samplers --generator runs/generator --zoo runs/zoo --evaluations 1 2 5 10 20",
)
