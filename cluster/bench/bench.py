"""Benchmarks as commands: what a run, a stored checkpoint and a second CPU cost on this machine."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from ckpt_factory import RunPlan, make
from ckpt_factory.bench import (
    label_noise_experiment,
    machine,
    measure_storage,
)
from ckpt_factory.files import check_writable
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.model.sizes import SizeName

from ..command import Command, Outcome
from ..progress import say
from ..runtime import RayConfig, ray_session
from ..tables import print_table
from .factory_bench import measure_recipes
from .memorisation import Comparison, measure_memorisation
from .policies_bench import bench_curves, bench_rl
from .sampler_bench import measure_samplers
from .scaling import measure_memory, measure_scaling
from .training_bench import measure_training

VariantName = Literal["float32", "float32_compiled", "bfloat16", "bfloat16_compiled"]
OPTIONS = {
    **dict.fromkeys(("tasks", "variants", "full"), ("factory",)),
    "data_root": ("factory", "samplers", "training", "memorisation", "generator"),
    "seconds": ("factory", "rl", "training"),
    **dict.fromkeys(("runs_per_actor", "num_runs"), ("scaling",)),
    **dict.fromkeys(("noises", "gammas", "runs_per_setting"), ("tailr",)),
    "runs": ("curves", "memorisation"),
    "zoo": ("samplers", "training", "memorisation", "generator"),
    **dict.fromkeys(("generator", "evaluations"), ("samplers",)),
    **dict.fromkeys(("num_networks", "num_prompts"), ("samplers", "memorisation", "generator")),
    "sizes": ("training", "memorisation"),
    "train_s": ("training",),
    "steps": ("memorisation",),
    "num_seeds": ("memorisation", "generator"),
    **dict.fromkeys(("cpu_seconds", "published_cpu_seconds"), ("generator",)),
    **dict.fromkeys(("published_steps", "our_steps", "table_steps", "changes"), ("generator",)),
    "repeats": ("factory", "storage", "scaling", "rl", "training"),
}
"""Which of the benchmarks an option is for; the others are for all."""
POSITIVE = (
    *("repeats", "seconds", "runs_per_actor", "runs_per_setting", "steps", "num_seeds"),
    *("cpu_seconds", "published_cpu_seconds", "published_steps", "our_steps", "table_steps"),
)
"""Options that are more than 0."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    what: tyro.conf.Positional[
        Literal[
            "factory",
            "storage",
            "scaling",
            "tailr",
            "rl",
            "curves",
            "samplers",
            "training",
            "memorisation",
            "generator",
        ]
    ] = "factory"
    """factory: CPU seconds of a training run, against the plain loop and torch.func.vmap;
    three to seven minutes.
    storage: writing and reading checkpoints, against LMDB, safetensors and npy; a minute.
    scaling: one actor against two, and the memory of the driver; ten minutes.
    tailr: accuracy and calibration under wrong labels, cross-entropy against TaiLr; half a
    minute.
    rl: steps of CartPole and CPU seconds to a good policy, against the usual loops and
    Stable-Baselines3; two minutes.
    curves: PPO and evolution strategies on CartPole and Pendulum, return by steps of the environment, and
    a picture of it; four minutes.
    samplers: alignment and weights by the number of a generator's evaluations, for all
    samplers, as a table and a picture; a quarter of an hour, with up to 20 a minute.
    training: CPU seconds of the generator's training step and its share of the matrix-product peak, and the
    wait for data of a real `theta train`; five minutes.
    memorisation: the same training on 250 to 64,000 runs, and the audit of each: what is remembered, and
    what is learned. As long as its trainings take; killed, the same command goes on.
    generator: ours against the published one on a zoo of digits, and what every difference between them
    brings, at equal CPU time: 19 trainings a seed; hours, the same command again goes on."""
    out: Path = Path("runs/bench")
    """Folder for result.json; what is measured is written below it and removed."""
    repeats: int = 5
    """factory, storage, scaling, rl, training: rounds in which all take turns; figures are medians."""
    tasks: tuple[str, ...] = ("digits-mlp-v0", "mnist-mlp-v0", "cifar-cnn-v0")
    """factory: tasks to train; those that are not there are left out, and named."""
    data_root: Path | None = None
    """factory, samplers, training, memorisation, generator: where images are, as for `theta make`."""
    variants: tuple[VariantName, ...] = ("float32", "bfloat16_compiled")
    """factory: precisions of our inner loop."""
    seconds: float = 0.5
    """factory, rl, training: CPU seconds of one measurement."""
    full: bool = False
    """factory: also train two whole stacks of each recipe and write them, which takes minutes."""
    runs_per_actor: int = 4096
    """scaling: digits runs that each actor trains."""
    num_runs: tuple[int, ...] = (1000, 10_000)
    """scaling: sizes of zoos that the driver's memory is measured at."""
    noises: tuple[float, ...] = (0.0, 0.2, 0.4)
    """tailr: shares of wrong training labels."""
    gammas: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5)
    """tailr: its gammas; 0 is cross-entropy."""
    runs_per_setting: int = 64
    """tailr: runs of each share and gamma, all from the same initialisations."""
    runs: tuple[int, ...] = ()
    """curves: runs of each algorithm, each with its own seed; default 32. memorisation: numbers of training
    runs; default 250 1000 4000 16000 64000."""
    generator: Path | None = None
    """samplers: folder of the generator."""
    zoo: Path | None = None
    """samplers: the zoo it was trained on. memorisation: the zoo whose first runs are trained on. generator:
    the zoo to train both on. training: the zoo to train on; default one of 512 digits runs, made for it."""
    evaluations: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
    """samplers: how often the model is evaluated for a network."""
    num_networks: int = 16
    """samplers, memorisation, generator: held-out initialisations."""
    num_prompts: int = 8
    """samplers, memorisation, generator: prompts for each, 2 or more."""
    sizes: tuple[SizeName, ...] = ()
    """training: sizes of the transformer; default 1M, which is that of `theta train`, and 10M. memorisation:
    one size; default 1M."""
    steps: int = 2000
    """memorisation: optimizer steps of every training, so that all take the same time."""
    num_seeds: int = 3
    """memorisation, generator: trainings of each kind."""
    train_s: float = 30.0
    """training: seconds of a real `theta train` of each size; 0: none."""
    cpu_seconds: float = 120.0
    """generator: CPU seconds of our training and of every other in the table of changes."""
    published_cpu_seconds: float = 1800.0
    """generator: CPU seconds of the published training that ours is held against."""
    published_steps: int = 1000
    """generator: sampling steps of that one."""
    our_steps: int = 5
    """generator: sampling steps of ours."""
    changes: bool = True
    """generator: make the table of changes, too."""
    table_steps: int = 50
    """generator: sampling steps of the published schedule in that table."""

    def __post_init__(self) -> None:
        for field in fields(self):
            owners = OPTIONS.get(field.name, (self.what,))
            if self.what not in owners and getattr(self, field.name) != field.default:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} is for `theta bench {' or '.join(owners)}`, not for {self.what}")
        for name in POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("tasks", "variants", "num_runs", "noises", "gammas", "evaluations"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one")
        for name in ("num_runs", "evaluations", "runs"):
            if min(getattr(self, name), default=1) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1 each")
        if not 0 <= self.train_s < math.inf:
            raise ValueError(f"train_s is {self.train_s}; expected a number of seconds, or 0 for none")
        if self.num_networks < 1 or self.num_prompts < 2:
            raise ValueError(
                f"num_networks is {self.num_networks}, num_prompts {self.num_prompts}; expected at least "
                "1 and 2"
            )
        self._check_what_is_measured()

    def _check_what_is_measured(self) -> None:
        if self.what == "curves" and len(self.runs) > 1:
            raise ValueError(f"runs are {self.runs}; expected one number for `theta bench curves`")
        if self.what == "memorisation":
            if self.zoo is None:
                raise ValueError("`theta bench memorisation` needs --zoo, whose runs are trained on")
            if len(self.sizes) > 1:
                raise ValueError(f"sizes are {self.sizes}; expected one for `theta bench memorisation`")
            if len(set(self.runs)) < len(self.runs) or min(self.runs, default=2) < 2:
                raise ValueError(f"runs are {self.runs}; expected numbers of 2 or more, each once")
        if self.what == "samplers" and (self.generator is None or self.zoo is None):
            raise ValueError("`theta bench samplers` needs --generator and --zoo, the zoo it was trained on")
        if self.what == "generator" and self.zoo is None:
            raise ValueError("`theta bench generator` needs --zoo, the zoo to train both on")


def bench_factory(config: BenchConfig) -> dict[str, Any]:
    """Measure the recipes of the tasks that are there."""
    return measure_recipes(
        config.tasks,
        config.variants,
        data_root=config.data_root,
        repeats=config.repeats,
        seconds=config.seconds,
        full=config.full,
        out=config.out,
    )


def bench_storage(config: BenchConfig) -> dict[str, Any]:
    """Measure the formats."""
    found = measure_storage(repeats=config.repeats, folder=config.out)
    for name in found["without"]:
        say(f"{name} is not installed and left out; `pip install '.[dev]'` has it")
    kinds = {
        "write MB/s": "write_mb_per_cpu_s",
        "scan MB/s": "scan_mb_per_cpu_s",
        "run ms": "read_run_ms",
        "bytes": "bytes_per_checkpoint",
        "write x": "write_times_lmdb",
        "scan x": "scan_times_lmdb",
    }
    print_table(
        {
            name: {title: each.get(kind) for title, kind in kinds.items()}
            for name, each in found["formats"].items()
        },
        f"storage: {found['checkpoints']:,} checkpoints of {found['parameters']:,} parameters",
        "MB per CPU second, of parameters in the format's precision; ms to read one run of "
        f"{found['checkpoints_per_run']} checkpoints; bytes a checkpoint; x: times as fast as LMDB. "
        "Page cache, no fsync.",
    )
    headline = {f"{name} {kind}": each[kind] for name, each in found["formats"].items() for kind in each}
    return {key: value for key, value in headline.items() if "mb_per" in key or "bytes" in key} | found


def bench_scaling(config: BenchConfig) -> dict[str, Any]:
    """Measure one actor against two, then the driver's memory."""
    found = measure_scaling(config.runs_per_actor, config.repeats, config.out)
    found |= measure_memory(config.num_runs, config.out)
    print_table(
        {
            f"{actors} actor{'s' * (actors > 1)}": {
                "runs/s": found[f"runs_per_s_{actors}"],
                "CPU s/run": found[f"cpu_s_per_run_{actors}"],
                "CPU share": found[f"cpu_share_{actors}"],
                "% idle": 100 * found[f"idle_share_{actors}"],
            }
            for actors in (1, 2)
        },
        f"scaling: two actors make {found['speedup']:.3g} times the runs of one, "
        f"{found['speedup_by_cpu_time']:.3g} times by their CPU time",
        "digits, each actor from its first unit's start to its last one's end. CPU share: CPU time by wall "
        "time of its units; on a busy machine it is below 1, and the figure by CPU time is the one to "
        "believe. Idle: waiting for the next unit.",
    )
    print_table(
        {f"{int(size):,} runs": {"peak RSS MB": mb} for size, mb in found["driver_peak_rss_mb"].items()},
        "memory of the driver",
        "peak of `theta make`'s own process, with Ray and torch loaded.",
    )
    return found


def bench_tailr(config: BenchConfig) -> dict[str, Any]:
    """Train digits networks on wrong labels and measure them on right ones."""
    task, plan, rows = make("digits-mlp-v0"), RunPlan(), []
    assert isinstance(task, MLPClassifier)
    for noise in config.noises:
        for gamma in config.gammas:
            rows.append(label_noise_experiment(task, plan, noise, gamma, config.runs_per_setting))
            say(f"{100 * noise:.0f} % wrong labels, gamma {gamma:g}: {rows[-1]['test_accuracy']:.3f}")
    print_table(
        {
            f"{100 * row['label_noise']:.0f} % wrong, gamma {row['gamma']:g}": {
                "accuracy": row["test_accuracy"],
                "std": row["test_accuracy_std"],
                "ECE": row["test_ece"],
                "ECE std": row["test_ece_std"],
                "loss": row["test_loss"],
            }
            for row in rows
        },
        "TaiLr under label noise: digits-mlp-v0, test split",
        f"Mean and standard deviation over {config.runs_per_setting} runs; gamma 0 is cross-entropy. ECE: "
        "expected calibration error, 15 bins.",
    )
    return {"settings": rows}


def bench_samplers(config: BenchConfig) -> dict[str, Any]:
    """Measure the samplers on a trained generator."""
    assert config.generator is not None
    assert config.zoo is not None
    return measure_samplers(
        WeightGenerator.load(config.generator),
        Zoo.open(config.zoo),
        evaluations=config.evaluations,
        num_networks=config.num_networks,
        num_prompts=config.num_prompts,
        data_root=config.data_root,
        out=config.out,
    )


def bench_training(config: BenchConfig) -> dict[str, Any]:
    """Measure the generator's training step, and real trainings."""
    return measure_training(
        config.sizes or ("1M", "10M"),
        config.zoo,
        data_root=config.data_root,
        train_s=config.train_s,
        repeats=config.repeats,
        seconds=config.seconds,
        out=config.out,
    )


def comparison_of(config: BenchConfig) -> Comparison:
    """What `theta bench memorisation` compares."""
    assert config.zoo is not None
    return Comparison(
        zoo=config.zoo,
        runs=config.runs or (250, 1000, 4000, 16_000, 64_000),
        size=config.sizes[0] if config.sizes else "1M",
        steps=config.steps,
        num_seeds=config.num_seeds,
        num_networks=config.num_networks,
        num_prompts=config.num_prompts,
        data_root=config.data_root,
        out=config.out,
    )


def bench_memorisation(config: BenchConfig) -> dict[str, Any]:
    """Train on more and more runs, and audit each; on a Ray started here unless one is connected."""
    with ray_session(RayConfig()):
        return measure_memorisation(comparison_of(config))


def _check(config: BenchConfig) -> None:
    check_writable(config.out)
    if config.what == "memorisation":
        comparison_of(config).check()


def bench_generator(config: BenchConfig) -> dict[str, Any]:
    """Ours against the published one, on a cluster of this machine."""
    from .generator_bench import measure_generator  # noqa: PLC0415  with Ray: for this one alone

    with ray_session(RayConfig()):
        return measure_generator(config)


def _run(config: BenchConfig) -> Outcome:
    torch.set_num_threads(1)  # and OMP_NUM_THREADS=1 stood in the environment before torch was loaded
    measure = {
        "factory": bench_factory,
        "storage": bench_storage,
        "scaling": bench_scaling,
        "tailr": bench_tailr,
        "rl": lambda config: bench_rl(config.repeats, config.seconds),
        "curves": lambda config: bench_curves((config.runs or (32,))[0], config.out),
        "samplers": bench_samplers,
        "training": bench_training,
        "memorisation": bench_memorisation,
        "generator": bench_generator,
    }[config.what]
    config.out.mkdir(parents=True, exist_ok=True)
    about = machine()
    say(f"on {about['cpu']}, torch {about['torch']}, 1 thread, load {about['load_average']:.1f}")
    repeats = {"repeats": config.repeats} if config.what in OPTIONS["repeats"] else {}
    result = about | {"threads": 1} | repeats | measure(config)
    return result, config.out, 1 if result.get("trainings_failed") else 0


COMMAND = Command(
    BenchConfig,
    _run,
    check=_check,
    starts_ray=False,
    examples="theta bench factory --data-root data --full\n"
    "theta bench storage\n"
    "theta bench scaling --num-runs 1000 10000 100000\n"
    "theta bench tailr\n"
    "theta bench rl\n"
    "theta bench curves\n"
    "theta bench training\n"
    "theta bench memorisation --zoo runs/zoo-64k --runs 250 1000 4000 16000 64000\n"
    "theta bench samplers --generator runs/generator --zoo runs/zoo --evaluations 1 2 5 10 20\n"
    "theta bench generator --zoo runs/zoo --published-cpu-seconds 14400 --out runs/bench-generator",
)
