"""What belongs together: a generator and the zoo it was trained or is judged on; a zoo and task metrics."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ckpt_factory.zoo import HEADER, Zoo, sha256
from generator.artefact import CONFIG, WeightGenerator

from .progress import say


def check_belongs(generator: WeightGenerator, zoo: Zoo) -> None:
    """Refuse a zoo that a generator was not trained on: its held-out runs would not be held out.

    Raises:
        ValueError: another task or another zoo; of a released model, one it was not imported to be judged on.
    """
    origin = generator.origin
    if origin.task != zoo.header.task:
        raise ValueError(
            f"the generator is for task {origin.task!r}, zoo {zoo.path} holds {zoo.header.task!r}; give "
            "the zoo it was trained on"
        )
    if origin.zoo_sha256 == sha256(zoo.path / HEADER):
        return
    if origin.released:
        raise ValueError(
            f"the generator is the released model {origin.released}, which was not imported to be judged on "
            f"{zoo.path}; import it again: theta import-gpt FILE --model {origin.released} --zoo {zoo.path} "
            "--out DIR"
        )
    raise ValueError(
        f"the generator was trained on another zoo of {origin.task!r} than {zoo.path}, whose runs may "
        "be among its training runs; give the zoo it was trained on"
    )


def check_same_training(generator: Path, out: Path) -> None:
    """Refuse to replace a generator by a changed one that another training made.

    Args:
        generator: folder of the one that is changed.
        out: folder for the changed one; it may hold one of before, of the same training.

    Raises:
        ValueError: it holds another.
    """
    if not (out / CONFIG).exists():
        return
    with suppress(ValueError, KeyError, TypeError):  # of something else than a generator
        before, changed = (json.loads((folder / CONFIG).read_bytes()) for folder in (out, generator))
        if before["training"] == changed["training"]:
            return
    raise ValueError(
        f"{out} holds a generator of another training than {generator}; give another --out, or remove it"
    )


def as_prompted(zoo: Zoo, generator: WeightGenerator) -> Zoo:
    """The zoo as one of the generator's own metric: a released model may be prompted with another."""
    origin = generator.origin
    header = replace(zoo.header, prompted=origin.prompted, objective=origin.objective)
    return replace(zoo, header=header)


def say_what_is_held_out(generator: WeightGenerator) -> None:
    """Of a released model, that held-out runs are not what they are of one that was trained here."""
    if generator.origin.released:
        say(f"held-out runs: {generator.origin.held_out_means}", label="warning")


def check_measurable(zoo: Zoo, what: str) -> None:
    """Refuse a zoo whose metrics are not those of its task; `what` needs them, "an evaluation"."""
    if not zoo.header.remeasurable:
        raise ValueError(
            f"zoo {zoo.path} was imported with the metrics of its source; {what} needs those of the "
            "task on its validation and test data: import it again with --evaluate"
        )
