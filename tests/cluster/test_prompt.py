"""`theta prompt` into a folder that holds networks already, and what it and `theta evaluate` refuse."""

import json
from pathlib import Path

import pytest

from ckpt_factory.zoo import Zoo
from cluster.cli import run
from cluster.prompt import names_of, remove_former
from cluster.train import prepare
from cluster.train_config import GeneratorConfig

from .test_cli import Refused, refused  # noqa: F401


def test_networks_of_an_earlier_prompt_make_room_and_nothing_else_does(tmp_path: Path) -> None:
    own = [tmp_path / f"network-{k:03d}-prompt-0.1.safetensors" for k in range(3)]
    others = [tmp_path / "mine.safetensors", tmp_path / "notes.txt", tmp_path.parent / "outside.safetensors"]
    for path in (*own, *others):
        path.touch()
    listed = [*(path.name for path in own), "gone.safetensors", "notes.txt", "../outside.safetensors"]
    (tmp_path / "result.json").write_text(json.dumps({"networks": [{"file": name} for name in listed]}))
    assert remove_former(tmp_path, [own[1]]) == 2
    assert [path.exists() for path in (*own, *others)] == [False, True, False, True, True, True]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"networks": 3}', '{"networks": [1]}'])
def test_without_a_list_of_them_all_stays(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "mine.safetensors").touch()
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert remove_former(tmp_path, []) == 0
    assert (tmp_path / "mine.safetensors").exists()


def test_files_sort_as_the_networks_do() -> None:
    for starts, first, last in ((1000, "000", "999"), (1001, "0000", "1000")):
        asked = {"loss": [0.5, 0.25] * starts, "error": [0.1, 0.2] * starts}
        names = names_of(asked, 2)
        assert names[:2] == [f"network-{first}-loss-0.5-error-0.1", f"network-{first}-loss-0.25-error-0.2"]
        assert names[-1] == f"network-{last}-loss-0.25-error-0.2"
        assert sorted(names[::2]) == names[::2]


@pytest.mark.ray
@pytest.mark.parametrize(("networks", "shown", "more"), [(20, 20, None), (21, 20, "1 more network;")])
def test_of_many_networks_the_first_are_shown(
    networks: int,
    shown: int,
    more: str | None,
    ray_cluster: int,
    digits_zoo: Zoo,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generator = prepare(GeneratorConfig(zoo=digits_zoo.path, held_out=0.25), digits_zoo)
    generator.save(tmp_path / "generator", training={}, card="")
    flags = ["--num-networks", str(networks), "--steps", "1", "--prompts", "0.5"]
    where = ["--generator", str(tmp_path / "generator"), "--out", str(tmp_path / "out")]
    assert run(["prompt", *where, *flags]) == 0
    said = capsys.readouterr()
    cells = [line.split()[1] for line in said.out.splitlines() if line.startswith("│")]
    assert [cell for cell in cells if cell.isdigit()] == [f"{k:03d}" for k in range(shown)]
    lines = [line for line in said.err.splitlines() if "more network" in line]
    path = tmp_path / "out" / "result.json"
    assert len(json.loads(path.read_text())["networks"]) == networks
    if more is None:
        assert lines == []
    else:
        (line,) = lines
        assert line.endswith(f"and {more} all are in {path}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["prompt", "--prompts", "nan"], "prompt is nan; expected a finite loss, like"),
        (["prompt", "--prompts", "0.3", "inf"], "prompt is inf; expected a finite loss, like"),
        (["prompt", "--prompt", "loss=nan"], "prompt is nan; expected a finite loss, like"),
        (["evaluate", "--best-prompt", "nan"], "prompt is nan; expected a finite loss, like"),
        *[
            ([command, *flags], words)
            for command in ("prompt", "evaluate", "audit")
            for flags, words in (
                (["--steps", "0"], "sampling steps: got 0, expected at least 1"),
                (["--guidance", "nan"], "guidance is nan; expected a finite number"),
                (
                    ["--guidance", "2"],
                    "guidance is 2, but the generator has learned nothing without a prompt",
                ),
                (["--sampler", "extended-ddpm"], "'extended-ddpm' needs to know how uncertain"),
                (["--trajectory", "optimal"], "an optimal trajectory needs to know how uncertain"),
            )
        ],
    ],
)
def test_what_cannot_be_sampled_is_refused_before_ray_starts(
    flags: list[str],
    words: str,
    refused: Refused,  # noqa: F811
    digits_zoo: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = prepare(GeneratorConfig(zoo=digits_zoo.path, held_out=0.25), digits_zoo)
    generator.save(tmp_path / "generator", training={}, card="")
    monkeypatch.setattr("cluster.cli.ray_session", None)  # to start it would be an error of another kind
    zoo = ["--zoo", digits_zoo.path] if flags[0] != "prompt" else []
    given = [*flags, "--generator", tmp_path / "generator", *zoo, "--out", tmp_path / "out"]
    assert words in refused(*given)
