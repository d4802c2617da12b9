"""The generator's training on this machine: its step against the matrix-product peak, its wait for data."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_factory import RunPlan, make, train_stack
from ckpt_factory.bench.peak import PRECISIONS
from ckpt_factory.zoo import Zoo, ZooHeader
from generator.comparison.bench import measure_steps
from generator.model.dit import DiTConfig
from generator.model.sizes import SizeName, sized
from generator.training.reading import reservoir_of
from generator.training.train import TrainConfig

from ..progress import say
from ..requests import REQUEST
from ..tables import print_table
from ..tasks import task_of_zoo
from ..train import FIT_RUNS, prepare
from ..train_config import GeneratorConfig
from .benchmark import RepeatedConfig, benchmark, check_filled, check_positive
from .scaling import run_theta

ZOO_RUNS, STACK = 512, 128
"""Digits runs that are trained to learn from, where no zoo is given."""


@dataclass(frozen=True, kw_only=True)
class TrainingBenchConfig(RepeatedConfig):
    """CPU seconds of the generator's training step and its share of the matrix-product peak, and the wait for
    data of a real `theta train`."""

    zoo: Path | None = None
    """The zoo to train on; default one of 512 digits runs, made for it."""
    data_root: Path | None = None
    """Where images are, as for `theta make`."""
    sizes: tuple[SizeName, ...] = ("1M", "10M")
    """Sizes of the transformer; 1M is that of `theta train`."""
    seconds: float = 0.5
    """CPU seconds of one measurement of steps."""
    train_s: float = 30.0
    """Seconds of a real `theta train` of each size; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "seconds")
        check_filled(self, "sizes")
        if not 0 <= self.train_s < math.inf:
            raise ValueError(f"train_s is {self.train_s}; expected a number of seconds, or 0 for none")


def bench_training(config: TrainingBenchConfig) -> dict[str, Any]:
    """Steps of the training loop, and a real `theta train` of each size: prints and returns their cost."""
    with tempfile.TemporaryDirectory(dir=config.out) as temporary:
        folder = Path(temporary)
        opened = Zoo.open(config.zoo) if config.zoo else digits_zoo(folder / "zoo", ZOO_RUNS)
        training = GeneratorConfig(zoo=opened.path, data_root=config.data_root)
        made = {size: prepare(_of_size(training, size), opened) for size in config.sizes}
        first = next(iter(made.values()))
        runs = reservoir_of(opened, first.coordinates, 0, first.origin.num_training_runs, FIT_RUNS)
        task = task_of_zoo(opened, config.data_root)
        say(f"measuring training steps of {', '.join(config.sizes)} parameters on {opened.header.task}")
        found = measure_steps(dict(made), runs, task, repeats=config.repeats, seconds=config.seconds)
        waits = {
            size: real_training(size, opened, config.data_root, config.train_s, folder / size)
            for size in config.sizes
            if config.train_s
        }
    _print(found, waits)
    headline = {
        f"{name} {key}": each[key]
        for name, each in found["steps"].items()
        for key in ("cpu_s_per_step", "gflop_per_cpu_s", "share_of_peak")
    }
    headline |= {f"{size} auto": each["auto"] for size, each in found["models"].items()}
    headline |= {f"{size} data_wait_share": each["data_wait_share"] for size, each in waits.items()}
    return headline | found | {"training": waits}


def digits_zoo(path: Path, num_runs: int) -> Zoo:
    """A zoo of digits runs as `theta make` makes them, trained in this process."""
    task, plan = make("digits-mlp-v0"), RunPlan()
    header = ZooHeader.of_task(
        task, plan, num_runs=num_runs, stack_size=min(STACK, num_runs), dtype="float32"
    )
    zoo = Zoo.create(path, header)
    for unit in range(header.num_units):
        zoo.write_unit(unit, train_stack(task, plan, plan.runs(header.run_ids(unit))))
    return zoo


def _of_size(config: GeneratorConfig, size: SizeName) -> GeneratorConfig:
    return replace(config, training=TrainConfig(model=sized(DiTConfig(), size)))


def real_training(
    size: SizeName, zoo: Zoo, data_root: Path | None, seconds: float, out: Path
) -> dict[str, Any]:
    """A `theta train` of one worker with room for half of the zoo, so that reading goes on all along.

    Returns:
        Its share of the time spent waiting for data, pairs a second and precision.
    """
    model, header = sized(DiTConfig(), size), zoo.header
    say(f"training {size} parameters for {seconds:g} s with `theta train`")
    run_bytes = 4 * header.spec.D * header.plan.num_checkpoints
    words: list[object] = ["train", "--zoo", zoo.path, "--out", out, "--num-workers", 1]
    words += ["--reservoir-gib", repr(run_bytes * header.num_runs / 2**31), "--time-budget-s", seconds]
    words += ["--steps", 10**9, "--width", model.width, "--depth", model.depth, "--heads", model.heads]
    run_theta(*words, *(("--data-root", data_root) if data_root else ()))
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    request = json.loads((out / REQUEST).read_text(encoding="utf-8"))
    kept = ("steps", "train_s", "pairs_per_s", "data_wait_share")
    return {key: found[key] for key in kept} | {"precision": request["precision_used"]}


def _print(found: dict[str, Any], waits: Mapping[str, dict[str, Any]]) -> None:
    peaks = ", ".join(f"{p} {found[f'peak_{p}_gflop_per_cpu_s']:,.0f}" for p in PRECISIONS)
    models = found["models"]
    print_table(
        {
            f"{name} {precision}" + ", auto" * (models[name]["auto"] == precision): {
                "ms/step": 1e3 * each["cpu_s_per_step"],
                "GFLOP/s": each["gflop_per_cpu_s"],
                "% peak": 100 * each["share_of_peak"],
                "% mm": 100 * each["products_share_of_step"],
                "mm % peak": 100 * each["products_share_of_peak"],
                "% draw": 100 * each["drawing_share_of_step"],
            }
            for name in models
            for precision in PRECISIONS
            for each in [found["steps"][f"{name} {precision}"]]
        },
        f"training steps of {found['batch_size']} pairs",
        "CPU ms of a whole step, optimizer, average and what networks answer included. GFLOP per CPU second: "
        f"matrix products (mm) of forward and backward pass, counted. Their peak: {peaks}; each is compared "
        "with that of its precision. Draw: drawing pairs. Auto: what `--precision auto` takes.",
    )
    if waits:
        print_table(
            {
                f"{name} {each['precision']}": {
                    "steps": each["steps"],
                    "pairs/s": each["pairs_per_s"],
                    "% data wait": 100 * each["data_wait_share"],
                }
                for name, each in waits.items()
            },
            "`theta train`, one worker",
            "Wall time, whatever else the machine does. The window holds half of the zoo, so that runs are "
            "read all along.",
        )


COMMAND = benchmark(
    TrainingBenchConfig,
    bench_training,
    examples="theta bench training\ntheta bench training --zoo runs/zoo --sizes 1M 5M --train-s 0",
)
