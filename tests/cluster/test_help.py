"""What `theta` says of itself: its help, with lines as long as they can be, and its version."""

import signal
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.bench import BENCHMARKS
from cluster.cli import run
from cluster.verbs import VERBS, command_of

WIDTH = 76
"""Where the words of an option end at the latest, on 80 columns."""


@pytest.mark.parametrize("command", ["make", "train", "tune"])
def test_no_line_of_an_option_ends_before_it_has_to(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        run([command, "--help"])
    lines = [line.strip("│").rstrip()[1:] for line in capsys.readouterr().out.splitlines()]
    followed, early = 0, []
    for line, after in pairwise(lines):
        indent = len(after) - len(after.lstrip())
        if indent > 8 and line[:indent].isspace() and line[indent:].strip():
            followed += 1
            early += [line] if len(line) + 1 + len(after.split()[0]) <= WIDTH else []
    assert followed > 20
    assert early == []


@pytest.mark.parametrize(
    "command", [*(name for name in VERBS if name != "bench"), *(f"bench {name}" for name in BENCHMARKS)]
)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    for preset in command_of(command).presets:
        assert f"--preset {preset}" in text


def test_the_overview_costs_no_import_of_torch_or_ray() -> None:
    code = "import sys; from cluster.cli import run; run([]); print({'ray', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
    for verb in VERBS:
        assert verb in done.stdout


def test_who_has_read_enough_of_the_help_is_told_nothing() -> None:
    for asked in ("make --help", "bench", "--version"):
        command = f"{sys.executable} -m cluster {asked} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out.split() == ["thetaforge", declared]
