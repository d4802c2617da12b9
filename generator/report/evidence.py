"""Evidence: what a report is about, and the words that its sections share."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator


@dataclass(frozen=True)
class Evidence:
    """What a report is about."""

    zoo: Zoo
    generator: WeightGenerator
    result: Mapping[str, Any]
    arrays: Mapping[str, Tensor]
    curve: Sequence[dict[str, Any]]

    @property
    def column(self) -> str:
        """The test column of the prompted metric, "test_loss"."""
        return f"test_{self.generator.metric}"

    @property
    def rival(self) -> str:
        """What made the zoo, in two letters or three."""
        return "RL" if "sgd_total_env_steps" in self.result else "SGD"

    @property
    def tested(self) -> list[str]:
        """Test columns that say how good a network is, the prompted one first."""
        names = [n for n in self.zoo.header.metrics if n.startswith("test_")]
        shown = sorted(n for n in names if not n.endswith(("_std", "_episodes")) and n != self.column)
        return [self.column, *shown]

    @property
    def audited(self) -> bool:
        """Whether the evaluation holds an audit with its frontier."""
        return "audit_verdict" in self.result and self.has("audit/made/quality")

    def has(self, *names: str) -> bool:
        return all(name in self.arrays and self.arrays[name].numel() for name in names)


def label(column: str) -> str:
    """A column's name for readers, as HTML."""
    return html.escape(column.replace("_", " "))
