"""What a command says when it is interrupted: whether the same command goes on, or begins anew."""

import dataclasses
from pathlib import Path

import pytest

from cluster import cli
from cluster.bench import BENCHMARKS
from cluster.info import InfoConfig
from cluster.verbs import VERBS, command_of


@pytest.mark.parametrize(
    ("resumes", "told", "words"),
    [
        (True, "", "the same command goes on from here"),
        (False, "", "the same command begins anew"),
        (True, "nothing is saved yet", "nothing is saved yet"),
    ],
)
def test_what_goes_on_after_an_interrupt_and_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    *,
    resumes: bool,
    told: str,
    words: str,
) -> None:
    def interrupted(_: InfoConfig) -> None:
        raise KeyboardInterrupt(*([told] if told else []))

    command = dataclasses.replace(command_of("info"), run=interrupted, check=lambda _: None, resumes=resumes)
    monkeypatch.setattr(cli, "command_of", lambda _: command)
    assert cli.run(["info", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == f"theta info: interrupted; {words}\n"


def test_commands_that_keep_what_is_done_are_known() -> None:
    names = [*(set(VERBS) - {"bench"}), *(f"bench {name}" for name in BENCHMARKS)]
    assert {name for name in names if command_of(name).resumes} == {
        *("make", "import", "export", "train", "tune", "ablate", "demo"),
        *("bench generator", "bench memorisation"),
    }
