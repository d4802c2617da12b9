"""Samplers against each other on one trained generator: quality by the number of evaluations."""

from collections.abc import Sequence
from dataclasses import replace
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

PICTURE = "samplers.png"
MOMENT_PAIRS = 512
ON_OPTIMAL = ("ddim", "extended-ddpm")
"""Samplers that are measured on optimal trajectories, too: these are meant for the second."""


def measure_samplers(
    generator: WeightGenerator,
    zoo: Zoo,
    *,
    evaluations: Sequence[int],
    num_networks: int,
    num_prompts: int,
    data_root: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Every sampler with every number of evaluations: prints, draws and returns their quality."""
    check_belongs(generator, zoo)
    if generator.moments is None:
        say("measuring how uncertain predictions are, which analytic samplers need to know")
        moments = measure_moments(generator, zoo, num_pairs=MOMENT_PAIRS, seed=0)
        generator = replace(generator, moments=moments)
    samplings = [Sampling(steps=n, sampler=name) for n in evaluations for name in SAMPLERS]
    samplings += [
        Sampling(steps=n, sampler=name, trajectory="optimal")
        for n in evaluations
        for name in ON_OPTIMAL
        if 1 < n <= GRID
    ]
    held_out = held_out_runs(zoo, generator, num_networks)
    task = task_of_zoo(zoo, data_root)
    rows: list[dict[str, Any]] = []
    for row in sampler_quality(generator, task, held_out, samplings, num_prompts=num_prompts):
        rows.append(row)
        say(f"{name_of(row)}: alignment {row['prompt_alignment']:.3f}")
    quality_picture(rows, out / PICTURE)
    _print(rows, len(held_out.run_ids), num_prompts)
    return {
        "networks": len(held_out.run_ids),
        "prompts": num_prompts,
        "picture": str(out / PICTURE),
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
