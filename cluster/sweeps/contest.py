"""Trainings side by side on the cluster, one process each: trained, judged alike, and none done twice."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from ckpt_factory.files import atomic_path, write_text
from ckpt_factory.zoo import Zoo
from generator.artefact import CONFIG, WeightGenerator
from generator.card import model_card
from generator.comparison.ablation import Result
from generator.training.pairs import DRAWS
from generator.training.reading import reservoir_of
from generator.training.train import Precision, faster_precision, train

from ..fitted import FITTED
from ..progress import say
from ..requests import REQUEST, check_held
from ..train import begun, behaviour_in, prepare
from ..train_config import GeneratorConfig
from ..training_log import LOG, following_all, read_log, resume_log
from .jury import Jury

TRAININGS, RESULT, STATE = "trainings", "judged.json", "state.pt"


def claim(out: Path, wanted: Mapping[str, Any], widths: set[int]) -> dict[int, Precision]:
    """Note in `out` which contest it holds, or refuse a folder that holds another.

    Returns:
        The precision of models of each width, decided once for all of its trainings.
    """
    path = out / REQUEST
    if not path.exists():
        used = {str(width): faster_precision(width) for width in sorted(widths)}
        write_text(path, json.dumps(dict(wanted) | {"precision_used": used}, indent=2) + "\n")
    held = check_held(path, dict(wanted), "another comparison", also="precision_used")
    return {int(width): used for width, used in held["precision_used"].items()}


def contestants(
    configs: Mapping[str, GeneratorConfig], seeds: int, out: Path, precision: Mapping[int, Precision]
) -> dict[tuple[str, int], GeneratorConfig]:
    """The trainings by name and seed, as they are done: seeds outermost, all come to a first result."""
    found = {}
    for seed in range(seeds):
        for name, config in configs.items():
            training = replace(config.training, seed=config.training.seed + seed)
            if training.precision == "auto":
                training = replace(training, precision=precision[training.model.width])
            folder = out / TRAININGS / f"{name.replace(' ', '-')}-seed{seed}"
            found[name, seed] = replace(config, out=folder, training=training)
    return found


def contend(title: str, trainings: Mapping[tuple[str, int], GeneratorConfig], jury: Jury) -> list[Result]:
    """Train and judge what is not yet done, as much at once as the cluster has CPUs for; returns all results.

    Raises:
        ValueError: every training has failed.
    """
    missing = {key: config for key, config in trainings.items() if not (config.out / RESULT).exists()}
    refs = {train_and_judge.remote(config, jury): key for key, config in missing.items()}
    failed: list[str] = []
    folders = [config.out for config in trainings.values()]
    with following_all(title, lambda: folders, RESULT, len(trainings), "trainings"):
        try:
            while refs:
                (ref,), _ = ray.wait(list(refs), num_returns=1)
                name, seed = refs.pop(ref)
                try:
                    ray.get(ref)
                except RayError as error:
                    cause = getattr(error, "cause", None) or error
                    failed.append(f"{name}, seed {seed}: {' '.join(str(cause).split())[:300]}")
        finally:
            for ref in refs:  # interrupted
                with suppress(RayError):
                    ray.cancel(ref)
    for words in failed:
        say(f"a training failed: {words}", label="warning")
    if len(failed) == len(trainings):
        raise ValueError(f"all {len(failed)} trainings failed: {failed[0]}")
    return [
        Result(variant=name, seed=seed, **json.loads((config.out / RESULT).read_text(encoding="utf-8")))
        for (name, seed), config in trainings.items()
        if (config.out / RESULT).exists()
    ]


@ray.remote(num_cpus=1)
def train_and_judge(config: GeneratorConfig, jury: Jury) -> None:
    """What is interrupted goes on from its last state; what is done is not done again."""
    torch.set_num_threads(1)
    train_alone(config)
    trained = json.loads((config.out / CONFIG).read_text(encoding="utf-8"))["training"]
    facts = {name: trained[name] for name in ("cpu_s", "steps", "pairs", "parameters")}
    judged = jury.judged(config.out, seed=config.training.seed)
    write_text(config.out / RESULT, json.dumps(judged | facts, indent=2) + "\n")


def train_alone(config: GeneratorConfig) -> None:
    """Train a generator in this process, on a zoo in its memory, and save it, if that is not yet done."""
    if not (config.out / CONFIG).exists():
        _train_alone(config)
    for name in (STATE, FITTED):  # of no more use, be it that one was killed before this
        (config.out / name).unlink(missing_ok=True)


def _train_alone(config: GeneratorConfig) -> None:
    zoo = Zoo.open(config.zoo)
    path = config.out / STATE
    state = torch.load(path, weights_only=True) if path.exists() else None
    generator = begun(config, zoo, None if state else prepare(config, zoo))
    limit = generator.origin.num_training_runs
    run_bytes = 4 * generator.coordinates.Z * zoo.header.plan.num_checkpoints
    most = min(zoo.header.num_runs, max(1, int(config.reservoir_gib * 2**30 / run_bytes)))
    runs = reservoir_of(zoo, generator.coordinates, 0, limit, most, config.hole, generator.origin.columns)
    draw = DRAWS[config.training.pairs]
    resume_log(config.out, state["step"] if state else None)

    def report(metrics: dict[str, float | int], state: dict[str, Any] | None) -> None:
        if state is not None:
            with atomic_path(path) as temporary:
                torch.save(state, temporary)
        with (config.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    ema = train(
        generator.model,
        lambda step, num, rng: generator.arrange(draw(runs, num, rng=rng), rng=rng),
        generator.scaling,
        config.training,
        report=report,
        behaviour=behaviour_in(config.training, generator, config.data_root),
        state=state,
    )
    generator.model.load_state_dict(ema.state_dict())
    metrics = _facts(config, zoo, generator)
    generator.save(config.out, training=metrics, card=model_card(generator, metrics))


def _facts(config: GeneratorConfig, zoo: Zoo, generator: WeightGenerator) -> dict[str, Any]:
    """What a finished training was."""
    last = read_log(config.out / LOG)[-1]
    return {
        "steps": last["step"],
        "pairs": last["step"] * config.training.batch_size,
        "train_s": last["train_s"],
        "cpu_s": last["process_s"],
        "loss": last["loss"],
        "parameters": sum(p.numel() for p in generator.model.parameters()),
        "training_runs": generator.origin.num_training_runs,
        "held_out_runs": zoo.header.num_runs - generator.origin.num_training_runs,
        "config": json.loads(json.dumps(asdict(config), default=str)),
    }
