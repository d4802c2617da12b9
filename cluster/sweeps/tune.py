"""Sweeps with Ray Tune: many trainings of generators side by side, and the laws that their losses follow."""

import csv
import importlib.util
import io
import json
import math
import os
import pickle
import shutil
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.table import Table

from ckpt_factory.files import write_text
from ckpt_factory.zoo import Zoo
from generator.comparison.sweep import Status, Trial, scaling_laws
from generator.report.sweep_page import sweep_page, sweep_picture

from .. import train
from ..command import Command
from ..progress import say
from ..requests import REQUEST, check_held, wanted_of
from ..tables import show_table
from ..training_log import following_all
from .jury import best_of
from .placements import GiveBack
from .trials import RESULT, Judge, Point, folder_of, read_trial, trainable
from .tune_config import PRESETS, TuneConfig

TUNE_FOLDER = "ray_tune"
METRIC = "held_out_loss"
GRACE, FACTOR, LAST = 0.1, 3, 0.5
"""ASHA looks at trials after a tenth of their training, goes on with one in three of them, and so on up to
the half: what was trained for longer is finished and judged."""


def judge_of(config: TuneConfig, zoo: Zoo) -> Judge:
    """By what the trials of a sweep are judged."""
    largest = train.prepare(replace(config.base(), held_out=config.held_out), zoo)
    first = zoo.header.num_training_runs(config.held_out)
    return Judge(
        zoo=config.zoo,
        data_root=config.data_root,
        first=first,
        unit=largest.scaling.update_scale,
        best=best_of(zoo, first),
        num_pairs=config.held_out_pairs,
        num_networks=config.num_networks,
        num_prompts=config.num_prompts,
    )


def make_tuner(config: TuneConfig, judge: Judge) -> tune.Tuner:
    """Ray's own tuner for a sweep: a new one, or the one that was interrupted in the same folder."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # which would return from Ctrl-C as if all were done
    run, space = trainable(config.base(), judge), _space(config)
    path = config.out / TUNE_FOLDER / "sweep"
    callbacks: list[tune.Callback] = [GiveBack(partial(folder_of, base=config.base()))]
    if tune.Tuner.can_restore(str(path)):
        with suppress(
            EOFError, pickle.UnpicklingError
        ):  # killed while it was written: trials know themselves
            tuner = tune.Tuner.restore(str(path), run, resume_errored=True, param_space=space)
            # it has what it was begun with, and the folder may have been moved since
            tuner._local_tuner.get_run_config().callbacks = callbacks  # pyright: ignore[reportOptionalMemberAccess]
            return tuner
    shutil.rmtree(path, ignore_errors=True)
    return tune.Tuner(
        run,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=config.num_trials or 1,
            scheduler=_scheduler(config),
            search_alg=_search(config),
            max_concurrent_trials=_room(config),
        ),
        run_config=tune.RunConfig(
            name=path.name,
            storage_path=str(path.parent.absolute()),
            failure_config=tune.FailureConfig(max_failures=2),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def _space(config: TuneConfig) -> dict[str, Any]:
    if config.search == "grid":
        return {name: tune.grid_search(list(values)) for name, values in config.axes.items()}
    space: dict[str, Any] = {
        name: tune.choice(list(values)) if len(values) > 1 else next(iter(values))
        for name, values in config.axes.items()
    }
    return space | {"lr": tune.loguniform(min(config.learning_rates), max(config.learning_rates))}


def _scheduler(config: TuneConfig) -> TrialScheduler:
    if config.scheduler == "fifo":
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="progress",
        max_t=LAST,  # pyright: ignore[reportArgumentType]
        grace_period=GRACE,  # pyright: ignore[reportArgumentType]
        reduction_factor=FACTOR,
        stop_last_trials=False,
    )


def _search(config: TuneConfig) -> Any:
    if config.search == "grid":
        return None
    import optuna  # noqa: PLC0415  an optional extra
    from ray.tune.search.optuna import OptunaSearch  # noqa: PLC0415  as above

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=config.training.seed)


def _room(config: TuneConfig) -> int:
    """How many trials the cluster holds at once."""
    has = ray.cluster_resources()
    kinds = ("CPU", "GPU") if config.use_gpu else ("CPU",)
    return max(1, min(int(has.get(kind, 0)) // config.num_workers for kind in kinds))


def check(config: TuneConfig) -> None:
    """Refuse what no trial could do.

    Raises:
        ValueError: no zoo to train on, too small a share of it, or Optuna is not installed.
    """
    zoo = train.check(config)
    for share in config.shares:
        own = replace(config.base(), held_out=1 - share * (1 - config.held_out))
        if zoo.header.num_training_runs(own.held_out) < 1:
            raise ValueError(f"a share of {share} of zoo {zoo.path} is not one run; give larger --shares")
    if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
        raise ValueError("search is 'optuna', which is not installed; pip install '.[tune]'")


def sweep(config: TuneConfig) -> tuple[dict[str, Any], int]:
    """Run a sweep on the connected cluster, or go on with it; returns (its results, the exit status).

    Raises:
        ValueError: `config.out` holds another sweep, or its trainings are impossible.
    """
    zoo = train.check(config)
    train.check_resources(config)
    _claim(config, zoo)
    say(f"{config.total} trials, {_room(config)} at a time, in {config.out}")
    tuner = make_tuner(config, judge_of(config, zoo))
    folders = partial((config.out / "trials").glob, "*")
    with following_all("tune", folders, RESULT, config.total, "trials"):
        grid = tuner.fit()
    base = config.base()
    errors = [str(result.error).strip().splitlines()[-1] for result in grid if result.error]
    trials = [
        read_trial(base, Point(**result.config), failed=result.error is not None)  # pyright: ignore
        for result in grid
        if result.config
    ]
    trials.sort(key=lambda trial: (trial.tokens, trial.width, trial.share, trial.lr, trial.seed))
    for error in errors:
        say(f"a trial failed: {error[:300]}", label="warning")
    if errors and len(errors) == len(trials):
        raise ValueError(f"all {len(trials)} trials failed: {errors[0][:400]}")
    return write_results(config, trials), 1 if errors else 0


def write_results(config: TuneConfig, trials: list[Trial]) -> dict[str, Any]:
    """Table, plots and page of a sweep; returns what result.json says."""
    laws = scaling_laws(trials)
    rows = [trial.row() for trial in trials]
    table = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(table, list(names))
    writer.writeheader()
    writer.writerows(rows)
    write_text(config.out / "trials.csv", table.getvalue())
    sweep_picture(trials, laws, config.out / "scaling.png")
    write_text(config.out / "tune.html", sweep_page(trials, laws))
    _show(trials)
    finished = [trial for trial in trials if trial.status == "finished"]
    best = min(finished, key=lambda trial: trial.held_out_loss, default=None)
    count = {status: sum(trial.status == status for trial in trials) for status in get_args(Status)}
    result: dict[str, Any] = {f"trials_{status}": number for status, number in count.items()}
    if best is not None:
        result |= {
            "best_trial": best.name,
            "best_held_out_loss": best.held_out_loss,
            "best_alignment": best.alignment,
        }
    result |= {f"exponent {name}": words for name, law in laws.items() for words in [law.in_words()]}
    return result | {
        "cpu_s": sum(trial.cpu_s for trial in trials if math.isfinite(trial.cpu_s)),
        "laws": {name: asdict(law) for name, law in laws.items()},
        "trials": [row | {"curve": trial.curve} for row, trial in zip(rows, trials, strict=True)],
    }


def _show(trials: list[Trial]) -> None:
    table = Table("size", "tokens", "lr", "runs", "seed", "status", title="trials")
    for name in ("parameters", "CPU s", "held-out loss", "alignment"):
        table.add_column(name, justify="right", overflow="fold")
    for trial in trials:
        table.add_row(
            *(trial.size or "-", trial.tokens, f"{trial.lr:.3g}", f"{trial.training_runs:,}"),
            *(str(trial.seed), trial.status, f"{trial.parameters:,}"),
            *(f"{value:.4g}" for value in (trial.cpu_s, trial.held_out_loss, trial.alignment)),
        )
    show_table(table)


def _claim(config: TuneConfig, zoo: Zoo) -> None:
    """Note in `out` which sweep it holds, or refuse a folder that holds another."""
    wanted, path = wanted_of(config, zoo), config.out / REQUEST
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=2) + "\n")
    check_held(path, wanted, "another sweep")


def _run(config: TuneConfig) -> tuple[dict[str, Any], Path, int]:
    result, status = sweep(config)
    return result, config.out, status


COMMAND = Command(
    TuneConfig,
    _run,
    presets=PRESETS,
    check=check,
    resumes=True,
    examples="theta tune --preset rates --zoo runs/zoo --out runs/rates\n"
    "theta tune --preset scaling --zoo runs/zoo --out runs/scaling --num-seeds 2\n"
    "theta tune --sizes 0.3M 1M --learning-rates 1e-3 1e-2 --search optuna --num-trials 12 --scheduler asha",
)
