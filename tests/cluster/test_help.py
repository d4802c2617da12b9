"""The help of the command line on a narrow terminal: its lines are as long as they can be."""

from itertools import pairwise

import pytest

from cluster.cli import run

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
