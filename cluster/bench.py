"""Benchmarks as commands: what a run, a stored checkpoint and a second CPU cost on this machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.bench import (
    RECIPES,
    Variant,
    label_noise_experiment,
    machine,
    measure_factory,
    measure_storage,
    paired_difference,
    whole_stacks,
)
from ckpt_factory.files import check_writable
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator

from .command import Command, Outcome
from .policies_bench import bench_curves, bench_rl
from .progress import say
from .runtime import RayConfig, ray_session
from .sampler_bench import measure_samplers
from .scaling import measure_memory, measure_scaling
from .tables import print_factory, print_table

VariantName = Literal["float32", "float32_compiled", "bfloat16", "bfloat16_compiled"]
OPTIONS = {
    **dict.fromkeys(("tasks", "variants", "full"), ("factory",)),
    "data_root": ("factory", "samplers", "generator"),
    "seconds": ("factory", "rl"),
    **dict.fromkeys(("runs_per_actor", "num_runs"), ("scaling",)),
    **dict.fromkeys(("noises", "gammas", "runs_per_setting"), ("tailr",)),
    "runs": ("curves",),
    **dict.fromkeys(("generator", "evaluations"), ("samplers",)),
    **dict.fromkeys(("zoo", "num_networks", "num_prompts"), ("samplers", "generator")),
    **dict.fromkeys(("cpu_seconds", "published_cpu_seconds", "seeds"), ("generator",)),
    **dict.fromkeys(("published_steps", "our_steps", "table_steps", "changes"), ("generator",)),
    "repeats": ("factory", "storage", "scaling", "rl"),
}
"""Which of the benchmarks an option is for; the others are for all."""
LONGEST_STACK_S = 900.0
"""A stack that takes longer is not trained whole by --full: its figures stay extrapolated."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    what: tyro.conf.Positional[
        Literal["factory", "storage", "scaling", "tailr", "rl", "curves", "samplers", "generator"]
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
    generator: ours against the published one on a zoo of digits, and what every difference between them
    brings, at equal CPU time: 17 trainings a seed; hours, the same command again goes on."""
    out: Path = Path("runs/bench")
    """Folder for result.json; what is measured is written below it and removed."""
    repeats: int = 5
    """factory, storage, scaling, rl: rounds in which all take turns; figures are medians."""
    tasks: tuple[str, ...] = ("digits-mlp-v0", "mnist-mlp-v0", "cifar-cnn-v0")
    """factory: tasks to train; those that are not there are left out, and named."""
    data_root: Path | None = None
    """factory, samplers, generator: where images are, as for `theta make`."""
    variants: tuple[VariantName, ...] = ("float32", "bfloat16_compiled")
    """factory: precisions of our inner loop."""
    seconds: float = 0.5
    """factory, rl: CPU seconds of one measurement."""
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
    runs: int = 32
    """curves: runs of each algorithm, each with its own seed."""
    generator: Path | None = None
    """samplers: folder of the generator."""
    zoo: Path | None = None
    """samplers: the zoo it was trained on; generator: the zoo to train on."""
    evaluations: tuple[int, ...] = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
    """samplers: how often the model is evaluated for a network."""
    num_networks: int = 16
    """samplers, generator: held-out initialisations."""
    num_prompts: int = 8
    """samplers, generator: prompts for each, 2 or more."""
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
    seeds: int = 3
    """generator: trainings of each."""

    def __post_init__(self) -> None:
        for field in fields(self):
            owners = OPTIONS.get(field.name, (self.what,))
            if self.what not in owners and getattr(self, field.name) != field.default:
                flag = "--" + field.name.replace("_", "-")
                raise ValueError(f"{flag} is for `theta bench {' or '.join(owners)}`, not for {self.what}")
        positive = ("repeats", "seconds", "runs_per_actor", "runs_per_setting", "runs", "seeds")
        for name in (
            *positive,
            "cpu_seconds",
            "published_cpu_seconds",
            "published_steps",
            "our_steps",
            "table_steps",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("tasks", "variants", "num_runs", "noises", "gammas", "evaluations"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; expected at least one")
        for name in ("num_runs", "evaluations"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1 each")
        if self.num_networks < 1 or self.num_prompts < 2:
            raise ValueError(
                f"num_networks is {self.num_networks}, num_prompts {self.num_prompts}; expected at least "
                "1 and 2"
            )
        if self.what == "samplers" and (self.generator is None or self.zoo is None):
            raise ValueError("`theta bench samplers` needs --generator and --zoo, the zoo it was trained on")
        if self.what == "generator" and self.zoo is None:
            raise ValueError("`theta bench generator` needs --zoo, the zoo to train both on")


def bench_factory(config: BenchConfig) -> dict[str, Any]:
    """Measure the recipes of the tasks that are there."""
    by_task: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, task in _tasks(config, left_out):
        say(f"measuring {name}: {RECIPES[name].text}")
        whole: dict[str, dict[str, dict[str, float | int]]] = {}
        try:
            found = measure_factory(
                task,
                RECIPES[name],
                config.variants,
                repeats=config.repeats,
                seconds=config.seconds,
                folder=config.out,
            )
            if config.full:
                whole = _whole(name, task, found["contenders"], config.out)
        except ValueError as error:
            left_out[name] = str(error)
            say(f"{name} left out: {error}")
            continue
        by_task[name] = found | whole
        print_factory(name, by_task[name])
    if not by_task:
        raise ValueError(f"no task is left to measure ({'; '.join(left_out.values())})")
    headline = {
        f"{task} {name} cpu_s_per_run": each["cpu_s_per_run"]
        for task, found in by_task.items()
        for name, each in found["contenders"].items()
    }
    return headline | {"tasks": by_task, "left_out": left_out}


def _tasks(config: BenchConfig, left_out: dict[str, str]) -> Iterator[tuple[str, Task]]:
    for name in config.tasks:
        try:
            task = make(name, data_root=config.data_root)
            if name not in RECIPES:
                raise ValueError(f"no recipe to measure it on; there are recipes for {', '.join(RECIPES)}")
        except ValueError as error:
            left_out[name] = str(error)
            say(f"{name} left out: {error}")
        else:
            yield name, task


def _whole(
    name: str, task: Task, contenders: Mapping[str, Any], out: Path
) -> dict[str, dict[str, dict[str, float | int]]]:
    """Whole stacks by variant, and how the final test error of all runs differs from that in float32."""
    found, finals, recipe = {}, {}, RECIPES[name]
    for variant in [each for each in contenders if each not in ("plain_loop", "vmap")]:
        seconds = contenders[variant]["cpu_s_per_run"] * recipe.stack_size
        if seconds > LONGEST_STACK_S:
            say(f"{name} {variant}: a stack would take {seconds:,.0f} CPU s; it stays extrapolated")
            continue
        say(f"training two whole stacks of {name}, {variant}: {2 * seconds:,.0f} CPU s or so")
        found[variant], finals[variant] = whole_stacks(task, recipe, Variant.of_name(variant), out)
    paired = {
        variant: paired_difference(values["test_error"], finals["float32"]["test_error"])
        for variant, values in finals.items()
        if variant != "float32" and "float32" in finals
    }
    return {"whole_stacks": found, "final_test_error_against_float32": paired}


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
        "curves": lambda config: bench_curves(config.runs, config.out),
        "samplers": bench_samplers,
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
    check=lambda config: check_writable(config.out),
    starts_ray=False,
    examples="theta bench factory --data-root data --full\n"
    "theta bench storage\n"
    "theta bench scaling --num-runs 1000 10000 100000\n"
    "theta bench tailr\n"
    "theta bench rl\n"
    "theta bench curves\n"
    "theta bench samplers --generator runs/generator --zoo runs/zoo --evaluations 1 2 5 10 20\n"
    "theta bench generator --zoo runs/zoo --published-cpu-seconds 14400 --out runs/bench-generator",
)
