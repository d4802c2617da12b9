"""Memorisation against the number of training runs: trainings on the cluster, then an audit of each."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from ckpt_factory.files import write_text
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.audit.audit import AuditSettings
from generator.audit.memorisation import by_number, memorisation_picture, memorised
from generator.model.dit import DiTConfig
from generator.model.sizes import SizeName
from generator.training.train import TrainConfig

from ..progress import ProgressBar, say
from ..sweeps.trials import Judge
from ..sweeps.tune import judge_of, sweep
from ..sweeps.tune_config import TuneConfig
from ..tables import print_table
from ..tasks import task_of_zoo
from .benchmark import JudgedConfig, benchmark, check_positive

SWEEP, AUDIT, TABLE, PICTURE = "sweep", "audit.json", "memorisation.csv", "memorisation.png"
SETTINGS = AuditSettings(search_runs=0)
"""Every training run is searched, however many there are."""
KEPT = ("size", "training_runs", "seed", "parameters", "steps", "cpu_s", "held_out_loss")
"""What of a training stands in the table beside its audit."""


@dataclass(frozen=True, kw_only=True)
class MemorisationBenchConfig(JudgedConfig):
    """The same training on 250 to 64,000 runs, and the audit of each: what is remembered, and what is
    learned. It takes as long as its trainings do; killed, the same command goes on."""

    out: Path = Path("runs/bench")
    """Folder of the trainings, the table, the picture and result.json. The same command again goes on."""
    zoo: Path | None = None
    """The zoo whose first runs are trained on."""
    runs: tuple[int, ...] = (250, 1000, 4000, 16_000, 64_000)
    """Numbers of training runs, of 2 or more, each once."""
    sizes: tuple[SizeName, ...] = ("1M",)
    """Size of the transformer, one."""
    steps: int = 2000
    """Optimizer steps of every training, so that all take the same time."""
    num_seeds: int = 3
    """Trainings on each number of runs."""
    reservoir_gib: float = 2.0
    """Memory for runs of each training. Where it holds the largest zoo, too, trainings on all numbers of runs
    do the same work; what does not fit is read again and again, and costs time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "steps", "num_seeds", "reservoir_gib")
        if len(self.sizes) != 1:
            raise ValueError(f"sizes are {self.sizes}; expected one")
        if len(set(self.runs)) < len(self.runs) or min(self.runs, default=0) < 2:
            raise ValueError(f"runs are {self.runs}; expected numbers of 2 or more, each once")


def check(config: MemorisationBenchConfig) -> Zoo:
    """The zoo, if it has the runs.

    Raises:
        ValueError: none is given, or it has too few runs, unfinished shards, or groups that would be cut.
    """
    if config.zoo is None:
        raise ValueError("needs --zoo, whose runs are trained on")
    zoo = Zoo.open(config.zoo)
    header, most = zoo.header, max(config.runs)
    needed = most + config.num_networks
    group = header.plan.group_size
    if header.num_runs < needed:
        raise ValueError(
            f"zoo {zoo.path} has {header.num_runs:,} runs; training on {most:,} and {config.num_networks} "
            f"held-out ones need {needed:,}: make them with `theta make --task {header.task} --num-runs "
            f"{needed} --out {zoo.path}-{needed}` and the recipe of this zoo"
        )
    if len(zoo.finished_units()) < header.num_units:
        raise ValueError(
            f"zoo {zoo.path} lacks {header.num_units - len(zoo.finished_units())} of its "
            f"{header.num_units} shards; finish it with `theta make --out {zoo.path}`"
        )
    if cut := [number for number in config.runs if number % group]:
        raise ValueError(
            f"runs are {config.runs}; runs of this zoo share mini-batches in groups of {group}, expected "
            f"multiples of that in place of {cut}"
        )
    return zoo


def trainings_of(config: MemorisationBenchConfig, zoo: Zoo) -> TuneConfig:
    """The sweep of them: the same held-out runs, all after the largest number of training runs."""
    most = max(config.runs)
    return TuneConfig(
        zoo=zoo.path,
        out=config.out / SWEEP,
        data_root=config.data_root,
        held_out=1 - most / zoo.header.num_runs,
        sizes=config.sizes,
        shares=tuple(number / most for number in sorted(config.runs)),
        num_seeds=config.num_seeds,
        num_networks=config.num_networks,
        num_prompts=config.num_prompts,
        reservoir_gib=config.reservoir_gib,
        training=TrainConfig(model=DiTConfig(base_width=128), steps=config.steps),
    )


@ray.remote(num_cpus=1)
def audit_remotely(judge: Judge, folder: Path) -> None:
    """Audit the generator in a folder against what it was trained on, and leave the numbers there."""
    torch.set_num_threads(1)
    zoo = Zoo.open(judge.zoo)
    found = memorised(
        WeightGenerator.load(folder),
        zoo,
        task_of_zoo(zoo, judge.data_root),
        first=judge.first,
        best=judge.best,
        num_networks=judge.num_networks,
        num_prompts=judge.num_prompts,
        settings=SETTINGS,
    )
    write_text(folder / AUDIT, json.dumps(found, indent=2) + "\n")


def bench_memorisation(config: MemorisationBenchConfig) -> dict[str, Any]:
    """Train on every number of runs and audit what came of it, on the connected cluster.

    Killed, the same call goes on: what is trained is not trained again, what is audited not audited.

    Raises:
        ValueError: the zoo has too few runs, `out` holds another sweep, or a training failed.
    """
    zoo = check(config)
    trainings = trainings_of(config, zoo)
    swept, status = sweep(trainings)
    if status:
        raise ValueError(f"{swept['trials_failed']} trainings failed; the same command goes on with them")
    folders = {row["name"]: trainings.out / "trials" / row["name"] for row in swept["trials"]}
    missing = [folder for folder in folders.values() if not (folder / AUDIT).exists()]
    if missing:
        judge = ray.put(judge_of(trainings, zoo))
        with ProgressBar("audit", len(missing), "generators") as bar:
            for done, ref in enumerate([audit_remotely.remote(judge, folder) for folder in missing], 1):
                ray.get(ref)
                bar.update(done)
    rows = [
        {name: row[name] for name in KEPT}
        | json.loads((folders[row["name"]] / AUDIT).read_text(encoding="utf-8"))
        for row in swept["trials"]
    ]
    return write_results(rows, config.out)


def write_results(rows: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Table, picture and CSV; returns what result.json says."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, text.getvalue())
    memorisation_picture(rows, out / PICTURE)
    means = by_number(rows)
    shown = {
        "distance ratio": "distance_ratio",
        "copies": "copy_rate",
        "IoU": "overlap_nearest",
        "alignment": "prompt_alignment",
        "loss": "held_out_loss",
        "CPU s": "cpu_s",
    }
    print_table(
        {
            f"{number:,} runs": {title: each.get(name) for title, name in shown.items()}
            | {"± ratio": each.get("distance_ratio_std"), "± align.": each.get("prompt_alignment_std")}
            for number, each in means.items()
        },
        f"memorisation of {rows[0]['size']} parameters, {rows[0]['steps']:,} steps each",
        "Means over seeds, ± their standard deviation. Distance to the nearest training network over that of "
        "held-out networks of equal loss; share of copies; IoU of mistakes with the nearest in weights; "
        "alignment on held-out initialisations, test split; loss of training on held-out runs.",
    )
    say(f"picture: {out / PICTURE}")
    headline = {
        f"{number} runs {name}": each.get(name)
        for number, each in means.items()
        for name in ("distance_ratio", "copy_rate", "overlap_nearest", "prompt_alignment")
    }
    facts = {"picture": str(out / PICTURE), "by_number": {str(n): each for n, each in means.items()}}
    return headline | facts | {"trainings": list(rows)}


COMMAND = benchmark(
    MemorisationBenchConfig,
    bench_memorisation,
    check=check,
    starts_ray=True,
    resumes=True,
    examples="theta bench memorisation --zoo runs/zoo-64k --runs 250 1000 4000 16000 64000\n"
    "theta bench memorisation --zoo runs/zoo --runs 250 1000 --steps 500 --out runs/memorisation",
)
