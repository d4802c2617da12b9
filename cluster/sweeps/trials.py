"""Trials of a sweep: each a Ray Train run of its own inside Ray Tune, then judged on held-out runs."""

import copy
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import ray.train
import ray.tune
import torch
import torch.distributed as dist
from jaxtyping import Float
from ray.tune.integration.ray_train import TuneReportCallback
from torch import Tensor

from ckpt_factory.files import write_text
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.comparison.sweep import Status, Trial
from generator.model.sizes import SizeName, sized
from generator.training.held_out_loss import HeldOutLoss
from generator.training.train import Report

from ..train import fit
from ..train_config import GeneratorConfig
from ..training_log import LOG, read_log
from .jury import Jury
from .placements import PLACEMENT, note_placement

RESULT = "trial.json"


class Point(TypedDict):
    """What a trial is trained with, as Ray Tune draws it."""

    size: SizeName | None
    tokens: str
    lr: float
    share: float
    seed: int


def name_of(point: Point) -> str:
    """A trial's folder: the same point is the same trial, whatever Ray Tune calls it after a restart."""
    size = f"{point['size']}-" if point["size"] else ""
    return f"{size}{point['tokens']}-lr{point['lr']!r}-share{point['share']!r}-seed{point['seed']}"


def trial_config(base: GeneratorConfig, point: Point) -> GeneratorConfig:
    """The training of one trial: that of the sweep but for what the point says, in a folder of its own."""
    model = base.training.model
    model = sized(model, point["size"]) if point["size"] else model
    chunk = model.chunk if point["tokens"] != "units" else None
    symmetry = model.symmetry if point["tokens"] in ("chunks", "gpt") else "shuffled"
    model = replace(model, tokens=point["tokens"], chunk=chunk, symmetry=symmetry)
    return replace(
        base,
        out=base.out / "trials" / name_of(point),
        held_out=base.held_out if point["share"] == 1 else 1 - point["share"] * (1 - base.held_out),
        training=replace(base.training, model=model, lr=point["lr"], seed=point["seed"]),
    )


@dataclass(frozen=True, kw_only=True)
class Judge(Jury):
    """What all trials of a sweep are judged by: the same runs, pairs, prompts and units for every one."""

    unit: Float[Tensor, " Z"]
    """Scales of updates that held-out losses are in."""
    num_pairs: int

    def observe(
        self, generator: WeightGenerator, report: Report, state: dict[str, Any] | None, *, out: Path
    ) -> Report:
        """Adds CPU seconds of all workers to every report, and the held-out loss where there is a state."""
        rank = ray.train.get_context().get_world_rank()
        model, loss = copy.deepcopy(generator.model).eval(), None
        if rank == 0:
            note_placement(out)
            loss = HeldOutLoss.of_zoo(Zoo.open(self.zoo), generator, self.first, self.num_pairs, self.unit)
        facts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_runs": generator.origin.num_training_runs,
        }
        used_s = state["cpu_s"] if state and rank == 0 else 0.0
        since = time.process_time()

        def observed(metrics: dict[str, float | int], state: dict[str, Any] | None) -> None:
            nonlocal used_s, since
            used_s += time.process_time() - since
            cpu_s = _sum_over_workers(used_s)
            found = metrics | facts | {"cpu_s": cpu_s, "held_out_loss": math.nan}
            if state is not None:
                state = state | {"cpu_s": cpu_s}
                if loss is not None:
                    model.load_state_dict(state["ema"])
                    found["held_out_loss"] = loss(model)
            used_s = cpu_s if rank == 0 else 0.0
            since = time.process_time()
            report(found, state)

        return observed


def _sum_over_workers(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total)


def run_trial(point: Point, *, base: GeneratorConfig, judge: Judge) -> None:
    """What Ray Tune runs: a Ray Train run, resumed where one was killed, and its judgement; twice is once."""
    torch.set_num_threads(1)
    config = trial_config(base, point)
    if not (config.out / RESULT).exists():
        fit(config, observe=partial(judge.observe, out=config.out), callbacks=(TuneReportCallback(),))
        (config.out / PLACEMENT).unlink(missing_ok=True)
        write_text(config.out / RESULT, json.dumps(judge.judged(config.out), indent=2) + "\n")
    last = read_log(config.out / LOG)[-1]
    alignment = json.loads((config.out / RESULT).read_text(encoding="utf-8"))["alignment"]
    ray.tune.report({**last, "alignment": alignment})


def folder_of(drawn: dict[str, Any], *, base: GeneratorConfig) -> Path:
    """The folder of a trial, by what Ray Tune drew for it."""
    return trial_config(base, Point(**drawn)).out  # pyright: ignore[reportArgumentType]


def read_trial(base: GeneratorConfig, point: Point, *, failed: bool = False) -> Trial:
    """What is known of a trial from its folder: all of it, or how far it came before it was stopped."""
    config = trial_config(base, point)
    curve, found = read_log(config.out / LOG), {}
    status: Status = "failed" if failed else "stopped"
    if (config.out / RESULT).exists():
        status, found = "finished", json.loads((config.out / RESULT).read_text(encoding="utf-8"))
    last: Mapping[str, Any] = curve[-1] if curve else {}
    workers, batch = config.num_workers, config.training.batch_size
    return Trial(
        **point,
        name=name_of(point),
        status=status,
        width=config.training.model.width,
        base_width=config.training.model.base_width,
        parameters=int(last.get("parameters", 0)),
        training_runs=int(last.get("training_runs", 0)),
        steps=int(last.get("step", 0)),
        pairs=int(last.get("step", 0)) * batch * workers,
        cpu_s=last.get("cpu_s", math.nan),
        held_out_loss=last.get("held_out_loss", math.nan),
        alignment=found.get("alignment", math.nan),
        one_update=found.get("one_update", {}),
        curve=[{key: float(value) for key, value in entry.items()} for entry in curve],
    )


def trainable(base: GeneratorConfig, judge: Judge) -> Any:
    """`run_trial` as Ray Tune takes it.

    A trial itself asks for no CPU: those are for the workers of its Ray Train run, and two trials that held
    one each would wait for ever for a third.
    """
    wrapped = ray.tune.with_parameters(run_trial, base=base, judge=judge)
    return ray.tune.with_resources(wrapped, {"memory": TRIAL_MEMORY})


TRIAL_MEMORY = 64 * 2**20
"""Bytes that a trial asks Ray for, which refuses to place what asks for nothing."""
