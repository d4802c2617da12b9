"""What belongs together: a generator and the zoo it was trained on, a zoo and its task's metrics."""

from ckpt_factory.zoo import HEADER, Zoo, sha256
from generator.artefact import WeightGenerator


def check_belongs(generator: WeightGenerator, zoo: Zoo) -> None:
    """Refuse a zoo that a generator was not trained on: its held-out runs would not be held out."""
    origin = generator.origin
    if origin.task != zoo.header.task:
        raise ValueError(
            f"the generator is for task {origin.task!r}, zoo {zoo.path} holds {zoo.header.task!r}; give "
            "the zoo it was trained on"
        )
    if origin.zoo_sha256 != sha256(zoo.path / HEADER):
        raise ValueError(
            f"the generator was trained on another zoo of {origin.task!r} than {zoo.path}, whose runs may "
            "be among its "
            "training runs; give the zoo it was trained on"
        )


def check_measurable(zoo: Zoo, what: str) -> None:
    """Refuse a zoo whose metrics are not those of its task; `what` needs them, "an evaluation"."""
    if not zoo.header.remeasurable:
        raise ValueError(
            f"zoo {zoo.path} was imported with the metrics of its source; {what} needs those of the "
            "task on its validation and test data: import it again with --evaluate"
        )
