"""Ranges on the command line: two numbers, or none."""

import pytest

from cluster.cli import _parse
from cluster.verbs import command_of

from .test_cli import Refused, refused  # noqa: F401


@pytest.mark.parametrize(
    ("given", "held"), [(["0.5", "0.9"], (0.5, 0.9)), (["-300", "-100"], (-300.0, -100.0)), ([], None)]
)
def test_a_range_that_may_be_none(given: list[str], held: tuple[float, float] | None) -> None:
    args = ["--hole", *given] if given else []
    assert _parse("train", command_of("train"), args)[0].hole == held


def test_half_a_range_is_refused_in_plain_words(refused: Refused) -> None:  # noqa: F811
    assert "--hole: got 0.5; expected a range of two numbers, LOW HIGH" in refused("train", "--hole", "0.5")
