"""What a training step of the generator costs: CPU seconds, and its share of the matrix-product peak."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ckpt_factory import Task
from ckpt_factory.bench.clock import calls_for, cpu_seconds, interleaved, medians
from ckpt_factory.bench.peak import PRECISIONS, peak_probes
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..training.behaviour import Behaviour, behaviour_of
from ..training.pairs import Pairs, Reservoir
from ..training.train import Precision, TrainConfig, faster_precision, train

PRODUCTS = {
    *(torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm),
    *(torch.ops.aten.convolution, torch.ops.aten.convolution_backward),
}
"""Convolutions are of networks that answer examples, all else is the model's, too."""
Key = tuple[str, str, str]
"""(name of the generator, precision, "step_s" | "products_s"), (name, "", "drawing_s") or ("peak", precision,
"")."""


class ProductTimer(TorchDispatchMode):
    """Counts the CPU seconds of the matrix products inside, those of backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        began = time.process_time()
        result = func(*args, **(kwargs or {}))
        self.cpu_s += time.process_time() - began
        return result


@dataclass(frozen=True)
class Loop:
    """The training loop as it is, on pairs of runs held in memory; it changes the generator's model."""

    generator: WeightGenerator
    runs: Reservoir
    precision: Precision
    batch_size: int
    behaviour: Behaviour | None = None
    """What it minds of the answers of predicted networks."""

    def draw(self, step: int, num: int, rng: torch.Generator) -> Pairs:
        return self.generator.arrange(self.runs.sample(num, rng=rng), rng=rng)

    def run(self, num: int) -> list[float]:
        """Train for `num` steps from a new state; returns the CPU seconds of each but the first.

        The optimizer makes its state in the first one.
        """
        marks: list[float] = []
        config = TrainConfig(
            model=self.generator.model.config,
            steps=num,
            batch_size=self.batch_size,
            precision=self.precision,
            report_every=1,
            checkpoint_every=num,
            checkpoint_every_s=1e9,
        )
        train(
            self.generator.model,
            self.draw,
            self.generator.scaling,
            config,
            behaviour=self.behaviour,
            report=lambda metrics, state: marks.append(time.process_time()),
        )
        return [after - before for before, after in pairwise(marks)]

    def gflop(self) -> float:
        """Floating-point operations of a step's matrix products, in 10^9, counted on a real step."""
        with FlopCounterMode(display=False) as counter:
            self.run(1)
        return counter.get_total_flops() / 1e9

    def products_s(self, num: int) -> float:
        """CPU seconds of a step's matrix products."""
        with ProductTimer() as timer:
            self.run(num)
        return timer.cpu_s / num


def measure_steps(
    generators: Mapping[str, WeightGenerator],
    runs: Reservoir,
    task: Task,
    *,
    repeats: int,
    seconds: float,
    batch_size: int = TrainConfig.batch_size,
) -> dict[str, Any]:
    """Steps of all generators in both precisions and the peak of the core, in turns; figures are medians.

    Args:
        generators: by name; their models are trained on.
        runs: in their coordinates, which pairs are drawn from.
        task: of the networks; what they answer is minded as by default, where they answer examples.
        seconds: CPU seconds of a measurement, which has two steps at least.
    """
    examples = TrainConfig.behaviour_examples
    loops = {
        (name, precision): Loop(generator, runs, precision, batch_size, behaviour)
        for name, generator in generators.items()
        for behaviour in [behaviour_of(task, generator.coordinates, None, examples)]
        for precision in PRECISIONS
    }
    probes: dict[Key, Callable[[], float]] = {
        ("peak", precision, ""): probe for precision, probe in peak_probes(seconds).items()
    }
    for (name, precision), loop in loops.items():
        num = max(2, math.ceil(seconds / mean(loop.run(2))))
        probes[name, precision, "step_s"] = lambda loop=loop, num=num: mean(loop.run(1 + num))
        probes[name, precision, "products_s"] = lambda loop=loop: loop.products_s(2)
        probes[name, "", "drawing_s"] = _drawing(loop, seconds / 10)
    samples = interleaved(probes, repeats)
    work = {name: loop.gflop() for (name, _), loop in loops.items()}
    return figures(generators, work, batch_size, medians(samples)) | {
        "samples": {" ".join(filter(None, key)): values for key, values in samples.items()},
    }


def _drawing(loop: Loop, seconds: float) -> Callable[[], float]:
    rng = seeded(0)

    def draw() -> object:
        return loop.draw(0, loop.batch_size, rng)

    calls = calls_for(draw, seconds)
    return lambda: cpu_seconds(draw, calls)


def figures(
    generators: Mapping[str, WeightGenerator],
    work: Mapping[str, float],
    batch_size: int,
    found: Mapping[Key, float],
) -> dict[str, Any]:
    """What the medians say: CPU seconds a step, and the share of the peak that its products reach.

    Args:
        work: GFLOP of a step's matrix products, by name.
    """
    steps: dict[str, dict[str, float]] = {}
    models: dict[str, dict[str, Any]] = {}
    for name, generator in generators.items():
        for precision in PRECISIONS:
            step_s, products_s = (found[name, precision, kind] for kind in ("step_s", "products_s"))
            rate = work[name] / step_s
            steps[f"{name} {precision}"] = {
                "cpu_s_per_step": step_s,
                "pairs_per_cpu_s": batch_size / step_s,
                "gflop_per_cpu_s": rate,
                "share_of_peak": rate / found["peak", precision, ""],
                "products_share_of_step": products_s / step_s,
                "products_share_of_peak": work[name] / products_s / found["peak", precision, ""],
                "drawing_share_of_step": found[name, "", "drawing_s"] / step_s,
            }
        models[name] = {
            "parameters": sum(p.numel() for p in generator.model.parameters()),
            "gflop_per_step": work[name],
            "auto": faster_precision(generator.model.config.width),
            "fastest": min(PRECISIONS, key=lambda precision: found[name, precision, "step_s"]),
        }
    return {
        "batch_size": batch_size,
        **{f"peak_{p}_gflop_per_cpu_s": found["peak", p, ""] for p in PRECISIONS},
        "models": models,
        "steps": steps,
    }
