"""The factory's inner loop on the recipes of tasks: what a run costs, and what whole stacks say of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckpt_factory import Task, make
from ckpt_factory.bench import RECIPES, Variant, measure_factory, paired_difference, whole_stacks

from ..progress import say
from ..tables import print_factory
from .benchmark import RepeatedConfig, benchmark, check_filled, check_positive

VariantName = Literal["float32", "float32_compiled", "bfloat16", "bfloat16_compiled"]
LONGEST_STACK_S = 900.0
"""A stack that takes longer is not trained whole by --full: its figures stay extrapolated."""


@dataclass(frozen=True, kw_only=True)
class FactoryBenchConfig(RepeatedConfig):
    """CPU seconds of a training run, against the plain loop and torch.func.vmap."""

    tasks: tuple[str, ...] = ("digits-mlp-v0", "mnist-mlp-v0", "cifar-cnn-v0")
    """Tasks to train; those that are not there are left out, and named."""
    data_root: Path | None = None
    """Where images are, as for `theta make`."""
    variants: tuple[VariantName, ...] = ("float32", "bfloat16_compiled")
    """Precisions of our inner loop."""
    seconds: float = 0.5
    """CPU seconds of one measurement."""
    full: bool = False
    """Also train two whole stacks of each recipe and write them, which takes minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "seconds")
        check_filled(self, "tasks", "variants")


def bench_factory(config: FactoryBenchConfig) -> dict[str, Any]:
    """Measure the recipes of the tasks that are there: prints and returns what a run costs.

    Raises:
        ValueError: none of the tasks is there.
    """
    by_task: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, task in _there(config, left_out):
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


def _there(config: FactoryBenchConfig, left_out: dict[str, str]) -> Iterator[tuple[str, Task]]:
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


COMMAND = benchmark(
    FactoryBenchConfig,
    bench_factory,
    examples="theta bench factory --data-root data --full\n"
    "theta bench factory --tasks digits-mlp-v0 --variants float32 float32_compiled bfloat16 --repeats 3",
)
