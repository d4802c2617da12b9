"""Origin: where a generator comes from, and what it may be asked for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ckpt_factory.zoo import HEADER, Zoo, sha256

from .channels import Channels
from .training.hole import Hole


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a generator comes from: enough to know what it may be asked for."""

    task: str
    prompted: str
    """The zoo's column that prompts are about, "validation_loss"; of several the main one."""
    objective: str
    zoo_sha256: str
    """Of the zoo's header; of a released model without a zoo, of the released file."""
    num_training_runs: int
    """Runs with a smaller id were trained on; the others are held out."""
    inputs: str = ""
    """How a network's input is made from raw data."""
    hole: Hole | None = None
    """Training checkpoints with a metric between these two were never learned from."""
    also: Channels = ()
    """Further columns that prompts may be about, each with its objective."""
    released: str = ""
    """Of a released model its name. Its zoo is the one it is judged on, and nobody here knows whether its
    authors trained on any of those runs: held out are those that nothing here was trained on."""

    @classmethod
    def of_zoo(
        cls, zoo: Zoo, num_training_runs: int, hole: Hole | None = None, also: Channels = ()
    ) -> "Origin":
        return cls(
            task=zoo.header.task,
            prompted=zoo.header.prompted,
            objective=zoo.header.objective,
            zoo_sha256=sha256(zoo.path / HEADER),
            num_training_runs=num_training_runs,
            inputs=zoo.header.inputs,
            hole=hole,
            also=also,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Origin":
        """From what config.json says."""
        hole = fields.get("hole")  # generators saved before say nothing of it
        also = tuple((column, objective) for column, objective in fields.get("also", ()))
        return cls(**{**fields, "hole": None if hole is None else tuple(hole), "also": also})

    def to_fields(self) -> dict[str, Any]:
        """What config.json says; `from_fields` is the way back."""
        fields = asdict(self)
        if not self.also:
            del fields["also"]  # a generator of one metric is the very file that it was before
        if not self.released:
            del fields["released"]  # as above
        return fields

    @property
    def held_out_means(self) -> str:
        """What it means that runs are held out."""
        if not self.released:
            return "never trained on"
        return (
            f"nothing here was trained on them; whether the authors of {self.released} did is not known, "
            "unless the zoo is their own published set"
        )

    @property
    def channels(self) -> Channels:
        """All columns that prompts may be about, the main one first, each with its objective."""
        return ((self.prompted, self.objective), *self.also)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for column, _ in self.channels)
