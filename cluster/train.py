"""Training the generator with Ray Train: a TorchTrainer over DDP, fed by Ray Data, resumed after any kill."""

import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model

from ckpt_factory import make
from ckpt_factory.files import check_same, check_writable, write_text
from ckpt_factory.zoo import HEADER, Zoo, sha256
from generator.artefact import CONFIG, Origin, WeightGenerator
from generator.calibration import calibrate
from generator.card import model_card
from generator.conditioning import Calibration, Scaling
from generator.coordinates import Coordinates
from generator.dit import DiTConfig
from generator.evaluate import training_checkpoints, training_starts
from generator.pairs import Reservoir, Runs, WindowFeed
from generator.samplers import SamplerName, Sampling
from generator.train import Report, TrainConfig, faster_precision, train

from .command import Command
from .data import name_of, partition, stream_runs, training_datasets
from .progress import say
from .rendezvous import torch_config
from .training_log import LOG, TrainingLog, following, read_log, resume_log

RAY_FOLDER, STATE, REQUEST = "ray_train", "state.pt", "request.json"
WORKER_CPUS = 0.9
"""CPUs of a training worker; what is left of a core is for the tasks of Ray Data that read for it."""
FIT_RUNS = 256
"""Training runs that coordinates and scales are fitted on."""
Observe = Callable[[WeightGenerator, Report, dict[str, Any] | None], Report]
"""(the generator, how to report, the state it goes on from) -> how to report instead."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What to train, on what."""

    zoo: Path = Path("runs/zoo")
    """The zoo to learn from."""
    out: Path = Path("runs/generator")
    """Folder of the artefact. The same command again resumes a training that was killed."""
    data_root: Path | None = None
    """Where the task's images are, as for `theta make`."""
    held_out: float = 0.1
    """Share of the runs, by whole groups, that is never trained on."""
    rank: int = 128
    """Directions of the inputs that incoming weights are kept in (function-space coordinates); 0: all, as
    they are."""
    num_workers: int = 2
    """Training processes, one CPU each."""
    use_gpu: bool = False
    """Give every training process a GPU."""
    reservoir_gib: float = 2.0
    """Memory for runs per worker; a zoo that fits is held there whole, of a larger one a moving window."""
    sampling_steps: int = 10
    """Sampling steps of an update, unless told otherwise when prompted. One gives the mean of the networks
    that fit, always the same: best for returns; many give samples."""
    sampler: SamplerName = "ddpm"
    """Ancestral (ddpm) or deterministic (ddim) sampling, unless told otherwise."""
    calibrate: int = 0
    """Training initialisations that prompts are calibrated on when the training is over: networks are made
    for 40 metrics from each, and measured on the validation split. 0: prompts are asked for as they are."""
    training: TrainConfig = field(default_factory=TrainConfig)
    """The training itself."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a share between 0 and 1")
        if self.rank < 0 or self.num_workers < 1 or not 0 < self.reservoir_gib < math.inf:
            raise ValueError(
                f"rank {self.rank} must not be negative, num_workers {self.num_workers} at least 1, "
                f"reservoir_gib {self.reservoir_gib} positive and finite"
            )
        if self.sampling_steps < 1 or self.calibrate < 0:
            raise ValueError(
                f"sampling_steps is {self.sampling_steps}, calibrate {self.calibrate}; expected at least 1, "
                "and not negative"
            )


def digits() -> GeneratorConfig:
    """For the digits zoo: three minutes on two cores."""
    return GeneratorConfig(training=TrainConfig(steps=100_000, time_budget_s=180))


def mnist() -> GeneratorConfig:
    """For the MNIST zoo: 25 minutes on two cores."""
    training = TrainConfig(steps=1_000_000, time_budget_s=1500, lr=3e-3, weight_decay=0.5)
    return GeneratorConfig(training=training)


def policies() -> GeneratorConfig:
    """For a zoo of policies: 25 minutes on two cores, then prompts are calibrated."""
    training = TrainConfig(steps=1_000_000, time_budget_s=1500)
    return GeneratorConfig(sampling_steps=1, sampler="ddim", calibrate=128, training=training)


def smoke() -> GeneratorConfig:
    """A few hundred steps of a small model, to see that all works."""
    training = TrainConfig(model=DiTConfig(width=32, depth=2), steps=200, batch_size=64, warmup_steps=10)
    return GeneratorConfig(num_workers=1, training=training)


PRESETS = {each.__name__: each for each in (digits, mnist, policies, smoke)}


def prepare(config: GeneratorConfig, zoo: Zoo) -> WeightGenerator:
    """The generator before training: coordinates and scales fitted on training runs alone."""
    task = make(zoo.header.task, data_root=config.data_root)
    num_training = zoo.header.num_training_runs(config.held_out)
    if num_training < 1:
        raise ValueError(
            f"zoo {zoo.path} has {zoo.header.num_runs} runs, too few to hold {config.held_out:.0%} out"
        )
    coordinates = Coordinates.fit(task, rank=config.rank)
    units = [u for u in zoo.finished_units() if zoo.header.run_ids(u)[0] < num_training]
    per_unit = -(-FIT_RUNS // max(1, len(units)))
    reservoir = Reservoir(per_unit * max(1, len(units)))
    for unit in units:
        rows = zoo.read_unit(unit)
        chosen = (rows.run_ids < num_training).nonzero().squeeze(1)[:per_unit]
        theta = rows.theta[chosen].float()
        z = coordinates.encode(theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
        reservoir.push(Runs(z, rows.metrics[zoo.header.prompted][chosen]))
    rng = torch.Generator().manual_seed(config.training.seed)
    seen = training_checkpoints(zoo, num_training)[zoo.header.prompted]
    scaling = Scaling.fit(coordinates, reservoir.sample(20_000, rng=rng), seen, zoo.header.objective)
    origin = Origin.of_zoo(zoo, num_training)
    reference = reservoir.best(zoo.header.objective)
    made = WeightGenerator.untrained(
        origin, coordinates, scaling, config.training.model, config.training.seed, reference
    )
    return replace(made, sampling=Sampling(steps=config.sampling_steps, sampler=config.sampler))


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
            "capacity_runs": max(1, int(config.reservoir_gib * 2**30 / run_bytes)),
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
            name="run",
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
    runs = stream_runs(ray.train.get_dataset_shard(name_of(rank)), epochs=epochs)
    feed = WindowFeed(runs, num_runs, capacity_runs=capacity)
    state = last_state()
    feed.begin(state["step"] if state else 0)
    train(
        generator.model,
        lambda step, num, rng: generator.arrange(feed.draw(step, num, rng), rng=rng),
        generator.scaling,
        config,
        report=observe(generator, report, state) if observe else report,
        state=state,
        wrap=prepare_model,
        rank=rank,
        device=get_device(),
    )


@ray.remote(num_cpus=1)
def calibrated(
    config: GeneratorConfig, path: Path, parts: tuple[Any, Any], state: dict[str, Any]
) -> Calibration | None:
    """How the trained generator's prompts are calibrated."""
    torch.set_num_threads(1)
    zoo, generator = Zoo.open(path), WeightGenerator.from_parts(*parts)
    generator.model.load_state_dict(state)
    starts = training_starts(zoo, generator.origin.num_training_runs, config.calibrate)
    task = make(zoo.header.task, data_root=config.data_root)
    rng = torch.Generator().manual_seed(config.training.seed)
    return calibrate(generator, task, starts, rng=rng)


def report(metrics: dict[str, float | int], state: dict[str, Any] | None) -> None:
    """To Ray Train, with a checkpoint where there is a state; every rank calls it, rank 0 writes."""
    if state is None or ray.train.get_context().get_world_rank() != 0:
        ray.train.report(dict(metrics))
        return
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, Path(folder) / STATE)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(
            dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=f"step-{metrics['step']:08.0f}"
        )


def last_state() -> dict[str, Any] | None:
    """The state of the last checkpoint of this training, if it was interrupted after one."""
    checkpoint = ray.train.get_checkpoint()
    return load_state(checkpoint) if checkpoint else None


def load_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, weights_only=True, map_location="cpu")


def check(config: GeneratorConfig) -> Zoo:
    """The zoo to train on, if it can be.

    Raises:
        ValueError: no zoo, an empty one, no images for its task, or `out` cannot be written.
    """
    zoo = Zoo.open(config.zoo)
    check_writable(config.out)
    if not zoo.finished_units():
        raise ValueError(f"zoo {zoo.path} has no finished shard yet; run `theta make --out {zoo.path}` first")
    zoo.header.check_prompted(make(zoo.header.task, data_root=config.data_root))
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
        generator = prepare(config, zoo)
        limit = generator.origin.num_training_runs
        partition(zoo, limit, num_workers=config.num_workers, seed=config.training.seed)
    config = _claim(config, zoo)
    if (config.out / CONFIG).exists() and _loads(config.out):
        say(f"{config.out} holds the finished generator of this very training: nothing to do")
        return json.loads((config.out / CONFIG).read_text())["training"]
    check_resources(config)
    started = time.monotonic()
    saved = (config.out / RAY_FOLDER).glob("*/step-*")
    resume_log(config.out, max((int(path.name.removeprefix("step-")) for path in saved), default=None))
    generator = generator or prepare(config, zoo)
    say(f"training {sum(p.numel() for p in generator.model.parameters()):,} parameters on {zoo.path}")
    trainer = make_trainer(config, zoo, generator, observe, callbacks)
    try:
        with following(config.out / LOG):
            result = trainer.fit()
    except SystemExit:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from None
    if result.checkpoint is None:
        raise ValueError(f"training ended without a checkpoint: {result.error}")
    state = load_state(result.checkpoint)
    generator.model.load_state_dict(state["ema"])
    if config.calibrate:
        say(f"calibrating prompts on {config.calibrate} training initialisations")
        (found,) = ray.get([calibrated.remote(config, zoo.path, generator.to_parts(), state["ema"])])
        generator = replace(generator, calibration=found)
    curve = read_log(config.out / LOG)
    pairs = int(state["step"]) * config.training.batch_size * config.num_workers
    metrics = {
        "steps": int(state["step"]),
        "pairs": pairs,
        "train_s": float(state["elapsed_s"]),
        "loss": curve[-1]["loss"] if curve else None,
        "pairs_per_s": pairs / float(state["elapsed_s"]),
        "data_wait_share": sum(entry["data_wait_share"] for entry in curve) / len(curve) if curve else None,
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "training_runs": generator.origin.num_training_runs,
        "held_out_runs": zoo.header.num_runs - generator.origin.num_training_runs,
        "wall_s": time.monotonic() - started,
    }
    metrics["config"] = json.loads(json.dumps(asdict(config), default=str))
    generator.save(config.out, training=metrics, card=model_card(generator, metrics))
    shutil.rmtree(config.out / RAY_FOLDER, ignore_errors=True)  # the states to resume from are of no more use
    return metrics


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
    ignored = ("zoo", "out", "data_root")
    wanted = {
        key: value
        for key, value in json.loads(json.dumps(asdict(config), default=str)).items()
        if key not in ignored
    }
    wanted |= {"zoo_header": sha256(zoo.path / HEADER), "shards": len(zoo.finished_units())}
    path = config.out / REQUEST
    if not path.exists():
        shutil.rmtree(config.out / RAY_FOLDER, ignore_errors=True)  # states of a training that nobody knows
        precision = config.training.precision
        if precision == "auto":
            precision = "bfloat16" if config.use_gpu else faster_precision(config.training.model.width)
        write_text(path, json.dumps(wanted | {"precision_used": precision}, indent=2) + "\n")
    try:
        held = json.loads(path.read_text())
        held, wanted = held | held.pop("training"), wanted | wanted.pop("training")
        precision = held["precision_used"]
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder, or give another --out") from None
    check_same(f"{config.out} holds another training", held, wanted)
    return replace(config, training=replace(config.training, precision=precision))


COMMAND = Command(
    GeneratorConfig,
    lambda config: (fit(config), config.out, 0),
    presets=PRESETS,
    check=check,
    examples="theta train --preset digits --zoo runs/zoo --out runs/generator",
)
