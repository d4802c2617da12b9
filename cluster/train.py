"""Training the generator with Ray Train: a TorchTrainer over DDP, fed by Ray Data, resumed after any kill."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer, get_device, prepare_model

from ckpt_factory.files import check_writable, write_text
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import CONFIG, WeightGenerator
from generator.card import model_card
from generator.channels import columns_of_names, with_objectives
from generator.coordinates import Coordinates
from generator.evaluation.evaluate import training_checkpoints
from generator.model.dit import DiTConfig
from generator.origin import Origin
from generator.training.behaviour import Behaviour, behaviour_of
from generator.training.hole import check_hole, outside
from generator.training.pairs import WindowFeed
from generator.training.reading import reservoir_of, some_networks
from generator.training.scales import fit_scaling
from generator.training.train import Report, TrainConfig, faster_precision, train

from .calibration import calibrated, in_words
from .command import Command
from .data import name_of, partition, runs_per_batch, stream_runs, training_datasets
from .fitted import FITTED, read_fitted, write_fitted
from .moments import measured
from .progress import say
from .rendezvous import torch_config
from .requests import REQUEST, check_held, wanted_of
from .states import RAY_FOLDER, RUN, STATE, is_state_saved, last_sound_step, load_state, name_of_step
from .tasks import task_of_generator, task_of_zoo
from .train_config import PRESETS, GeneratorConfig
from .training_log import LOG, TrainingLog, following, read_log, resume_log, warn_if_warming_up

WORKER_CPUS = 0.9
"""CPUs of a training worker; what is left of a core is for the tasks of Ray Data that read for it."""
FIT_RUNS = 256
"""Training runs that coordinates and scales are fitted on."""
HIDDEN_RUNS = 64
"""Training runs whose hidden units say what the layers behind them read."""
Observe = Callable[[WeightGenerator, Report, dict[str, Any] | None], Report]
"""(the generator, how to report, the state it goes on from) -> how to report instead."""


def prepare(config: GeneratorConfig, zoo: Zoo) -> WeightGenerator:
    """The generator before training: coordinates and scales fitted on training runs alone."""
    task = task_of_zoo(zoo, config.data_root)
    num_training = zoo.header.num_training_runs(config.held_out)
    if num_training < 1:
        raise ValueError(
            f"zoo {zoo.path} has {zoo.header.num_runs} runs, too few to hold {config.held_out:.0%} out"
        )
    names = columns_of_names(config.metrics, zoo.header, task)
    columns = training_checkpoints(zoo, num_training)
    check_hole(columns[zoo.header.prompted], config.hole)
    columns = outside(columns, zoo.header.prompted, config.hole)
    _, *also = with_objectives(names, columns, zoo.header.objective)
    origin = Origin.of_zoo(zoo, num_training, config.hole, tuple(also))
    networks = None
    if config.hidden_space:
        networks = some_networks(zoo, task, num_training, HIDDEN_RUNS, config.hole, rng=seeded(0))
    coordinates = Coordinates.fit(task, rank=config.rank, networks=networks)
    reservoir = reservoir_of(zoo, coordinates, 0, num_training, FIT_RUNS, config.hole, names)
    rng = torch.Generator().manual_seed(config.training.seed)
    model = config.training.model
    seen = torch.stack([columns[name] for name in names], 1)
    objectives = [objective for _, objective in origin.channels]
    scaling = fit_scaling(model, config.scales, coordinates, reservoir, seen, objectives, rng=rng)
    reference = reservoir.best(zoo.header.objective)
    made = WeightGenerator.untrained(origin, coordinates, scaling, model, config.training.seed, reference)
    return replace(made, sampling=config.sampling)


def begun(config: GeneratorConfig, zoo: Zoo, fresh: WeightGenerator | None = None) -> WeightGenerator:
    """The generator as it was when the training in `config.out` began, or as it is when it does so now.

    Args:
        fresh: prepared just now, where the training begins.
    """
    if fresh is None and (found := read_fitted(config.out, seed=config.training.seed)) is not None:
        return found
    generator = fresh or prepare(config, zoo)
    write_fitted(config.out, generator)
    return generator


def make_trainer(
    config: GeneratorConfig,
    zoo: Zoo,
    generator: WeightGenerator,
    observe: Observe | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> TorchTrainer:
    """Ray's own trainer for a generator; `fit()` trains it, the same config again resumes it."""
    workers, limit = config.num_workers, generator.origin.num_training_runs
    parts = partition(zoo, limit, num_workers=workers, seed=config.training.seed)
    run_bytes = 4 * generator.coordinates.Z * zoo.header.plan.num_checkpoints
    return TorchTrainer(
        partial(train_loop, observe=observe),
        train_loop_config={
            "training": asdict(config.training),
            "parts": generator.to_parts(),
            "data_root": config.data_root,
            "capacity_runs": max(1, int(config.reservoir_gib * 2**30 / run_bytes)),
            "runs_per_batch": runs_per_batch(run_bytes),
            "num_runs": [sum(group.num_runs for group in part) for part in parts],
        },
        datasets=training_datasets(zoo, generator, parts),  # pyright: ignore[reportArgumentType]
        dataset_config=DataConfig(
            datasets_to_split=[], execution_options=ExecutionOptions(preserve_order=True)
        ),
        # Nine tenths of a core each: what is left over is for the tasks of Ray Data that read for the
        # workers.
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": WORKER_CPUS, "GPU": int(config.use_gpu)},
        ),
        torch_config=torch_config("cpu:gloo,cuda:nccl" if config.use_gpu else "gloo"),
        run_config=RunConfig(
            name=RUN,
            storage_path=str((config.out / RAY_FOLDER).absolute()),
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[TrainingLog(config.out.absolute() / LOG), *callbacks],
        ),
    )


def train_loop(loop_config: dict[str, Any], observe: Observe | None = None) -> None:
    """What every training worker runs."""
    torch.set_num_threads(1)
    config = TrainConfig(**loop_config["training"] | {"model": DiTConfig(**loop_config["training"]["model"])})
    generator = WeightGenerator.from_parts(*loop_config["parts"], seed=config.seed)
    rank = ray.train.get_context().get_world_rank()
    num_runs, capacity = loop_config["num_runs"][rank], loop_config["capacity_runs"]
    epochs = 1 if num_runs <= capacity else None  # what fits into memory is read once
    shard = ray.train.get_dataset_shard(name_of(rank))
    runs = stream_runs(shard, batch_size=loop_config["runs_per_batch"], epochs=epochs)
    feed = WindowFeed(runs, num_runs, capacity_runs=capacity, pairs=config.pairs)
    state = last_state()
    feed.begin(state["step"] if state else 0)
    train(
        generator.model,
        lambda step, num, rng: generator.arrange(feed.draw(step, num, rng), rng=rng),
        generator.scaling,
        config,
        report=observe(generator, report, state) if observe else report,
        behaviour=behaviour_in(config, generator, loop_config["data_root"]),
        state=state,
        wrap=prepare_model,
        rank=rank,
        device=get_device(),
    )


def behaviour_in(config: TrainConfig, generator: WeightGenerator, data_root: Path | None) -> Behaviour | None:
    """What a training minds of the answers of predicted networks.

    Raises:
        ValueError: it shall, and the task's networks answer no examples.
    """
    task = task_of_generator(generator.origin, data_root)
    return behaviour_of(task, generator.coordinates, config.behaviour, config.behaviour_examples)


def report(metrics: dict[str, float | int], state: dict[str, Any] | None) -> None:
    """To Ray Train, with a checkpoint where there is a state; every rank calls it, rank 0 writes."""
    if state is None or ray.train.get_context().get_world_rank() != 0:
        ray.train.report(dict(metrics))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name_of_step(metrics["step"])
        )


def last_state() -> dict[str, Any] | None:
    """The state of the last checkpoint of this training, if it was interrupted after one."""
    checkpoint = ray.train.get_checkpoint()
    return load_state(checkpoint) if checkpoint else None


def check(config: GeneratorConfig) -> Zoo:
    """The zoo to train on, if it can be.

    Raises:
        ValueError: no zoo, an empty one, no images for its task, metrics that it has not, or `out` cannot be
            written.
    """
    zoo = Zoo.open(config.zoo)
    check_writable(config.out)
    if not zoo.finished_units():
        raise ValueError(f"zoo {zoo.path} has no finished shard yet; run `theta make --out {zoo.path}` first")
    task = task_of_zoo(zoo, config.data_root)
    zoo.header.check_prompted(task)
    columns_of_names(config.metrics, zoo.header, task)
    return zoo


def fit(
    config: GeneratorConfig, *, observe: Observe | None = None, callbacks: Sequence[UserCallback] = ()
) -> dict[str, Any]:
    """Train a generator on the connected cluster, or go on where a killed training stopped; returns its
    metrics.

    Args:
        observe: what adds to every report, in the worker that makes it.
        callbacks: of Ray Train, which see all reports.

    Raises:
        ValueError: `config.out` holds another training, or the zoo cannot be trained on.
    """
    zoo = check(config)
    missing = zoo.header.num_units - len(zoo.finished_units())
    if missing:
        say(f"zoo {zoo.path} lacks {missing} of its {zoo.header.num_units} shards: training on the others")
    generator = None
    if not (config.out / REQUEST).exists():  # what could refuse does so before the folder is claimed
        check_resources(config)
        say(f"reading training runs of {zoo.path}, to fit the generator's coordinates and scales on")
        generator = prepare(config, zoo)
        if config.training.behaviour:  # left to its default it takes what there is and refuses nothing
            behaviour_in(config.training, generator, config.data_root)
        limit = generator.origin.num_training_runs
        partition(zoo, limit, num_workers=config.num_workers, seed=config.training.seed)
    config = _claim(config, zoo)
    if (config.out / CONFIG).exists() and _loads(config.out):
        say(f"{config.out} holds the finished generator of this very training: nothing to do")
        _forget(config.out)
        return json.loads((config.out / CONFIG).read_text(encoding="utf-8"))["training"]
    check_resources(config)
    started = time.monotonic()
    resume_log(config.out, last_sound_step(config.out))
    generator = begun(config, zoo, generator)
    say(f"training {sum(p.numel() for p in generator.model.parameters()):,} parameters on {zoo.path}")
    trainer = make_trainer(config, zoo, generator, observe, callbacks)
    try:
        with following(config.out / LOG):
            result = trainer.fit()
    except (SystemExit, KeyboardInterrupt):  # the former is what Ray Train makes of Ctrl-C
        begins = "no state of the training is saved yet; the same command begins it again"
        raise KeyboardInterrupt("" if is_state_saved(config.out) else begins) from None
    except WorkerGroupError as error:
        raise _cause(error) from None
    if result.checkpoint is None:
        raise ValueError(f"training ended without a checkpoint: {result.error}")
    state = load_state(result.checkpoint)
    generator.model.load_state_dict(state["ema"])
    generator = _completed(config, zoo, generator, int(state["step"]))
    metrics = _metrics(config, zoo, generator, state) | {"wall_s": time.monotonic() - started}
    metrics["config"] = json.loads(json.dumps(asdict(config), default=str))
    generator.save(config.out, training=metrics, card=model_card(generator, metrics))
    _forget(config.out)
    return metrics


def _cause(error: WorkerGroupError) -> Exception:
    """What a worker said was wrong, like a training that diverged, without Ray's traceback before it."""
    told = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
    return next((cause for cause in told if isinstance(cause, ValueError)), error)


def _forget(folder: Path) -> None:
    """Remove what a finished training would have been resumed from."""
    shutil.rmtree(folder / RAY_FOLDER, ignore_errors=True)
    (folder / FITTED).unlink(missing_ok=True)


def _completed(config: GeneratorConfig, zoo: Zoo, generator: WeightGenerator, steps: int) -> WeightGenerator:
    """A generator after its training, with what is measured of it then: moments, calibration."""
    warn_if_warming_up(steps, config.training.warmup_steps)
    if config.moments:
        generator = replace(generator, moments=measured(generator, zoo, config.moments, config.training.seed))
    if config.calibrate:
        say(f"calibrating prompts on {config.calibrate} training initialisations")
        found = calibrated(generator, zoo, config.data_root, config.calibrate, config.training.seed)
        generator = replace(generator, calibration=found)
        say(in_words(found, generator.metric))
    return generator


def _metrics(
    config: GeneratorConfig, zoo: Zoo, generator: WeightGenerator, state: dict[str, Any]
) -> dict[str, Any]:
    """What a finished training was."""
    curve = read_log(config.out / LOG)
    pairs = int(state["step"]) * config.training.batch_size * config.num_workers
    return {
        "steps": int(state["step"]),
        "pairs": pairs,
        "train_s": float(state["elapsed_s"]),
        "cpu_s": float(state["process_s"]) * config.num_workers,
        "loss": curve[-1]["loss"] if curve else None,
        "divergence": curve[-1].get("divergence") if curve else None,
        "pairs_per_s": pairs / float(state["elapsed_s"]),
        "data_wait_share": sum(entry["data_wait_share"] for entry in curve) / len(curve) if curve else None,
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "training_runs": generator.origin.num_training_runs,
        "held_out_runs": zoo.header.num_runs - generator.origin.num_training_runs,
    }


def _loads(folder: Path) -> bool:
    try:
        WeightGenerator.load(folder)
    except ValueError as error:
        say(f"{error}: doing so", label="warning")
        return False
    return True


def check_resources(config: GeneratorConfig) -> None:
    """Ray would wait for ever for what the cluster does not have."""
    has = ray.cluster_resources()
    for name, each in (("CPU", WORKER_CPUS), ("GPU", int(config.use_gpu))):
        if has.get(name, 0) < each * config.num_workers:
            raise ValueError(
                f"{config.num_workers} workers need {each * config.num_workers:g} {name}s, the cluster has "
                f"{has.get(name, 0):g}; ask for fewer --num-workers"
                + (" or no --use-gpu" if name == "GPU" else "")
            )


def _claim(config: GeneratorConfig, zoo: Zoo) -> GeneratorConfig:
    """Note in `out` which training it holds, or refuse a folder that holds another.

    Returns:
        The config with its precision decided, once, for all workers and for a resumed training alike.
    """
    wanted, path = wanted_of(config, zoo), config.out / REQUEST
    if not path.exists():
        shutil.rmtree(config.out / RAY_FOLDER, ignore_errors=True)  # states of a training that nobody knows
        precision = config.training.precision
        if precision == "auto":
            precision = "bfloat16" if config.use_gpu else faster_precision(config.training.model.width)
        write_text(path, json.dumps(wanted | {"precision_used": precision}, indent=2) + "\n")
    held = check_held(path, wanted, "another training", also="precision_used")
    return replace(config, training=replace(config.training, precision=held["precision_used"]))


COMMAND = Command(
    GeneratorConfig,
    lambda config: (fit(config), config.out, 0),
    presets=PRESETS,
    check=check,
    resumes=True,
    examples="theta train --preset digits --zoo runs/zoo --out runs/generator\n"
    "theta train --preset digits --metrics loss error --zoo runs/zoo --out runs/generator-of-both",
)
