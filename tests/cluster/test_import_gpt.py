"""`theta import-gpt`: a released file in, a generator's folder out, or one line that says why not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.cli import run
from generator.artefact import WeightGenerator
from generator.gpt import PRESETS, Gpt
from generator.gpt.released import RELEASES

from .test_cli import Refused, refused  # noqa: F401


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Writes a released file, as narrow as a test can afford: (file's name, model's name) -> path."""
    for name in RELEASES:
        monkeypatch.setitem(PRESETS, name, replace(PRESETS[name], width=8, depth=1, heads=2))

    def written(file: str, name: str) -> Path:
        torch.manual_seed(0)
        state = Gpt(PRESETS[name]).state_dict()
        torch.save({"G": state, "G_ema": state}, tmp_path / file)
        return tmp_path / file

    return written


def test_a_released_file_becomes_a_generator(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    file, out = write("mnist_error.pt", "mnist_error"), tmp_path / "published"
    assert run(["import-gpt", str(file), "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert (result["model"], result["weights"], result["coefficient"]) == ("mnist_error", "ema", 4.185)
    generator = WeightGenerator.load(out)
    assert result["parameters"] == sum(p.numel() for p in generator.model.parameters())
    assert (generator.origin.task, generator.metric) == ("mnist-mlp-v0", "error")
    theta = torch.zeros(2, 7960)
    made = generator.update(theta, torch.full((2,), 0.9), 0.1, rng=torch.Generator(), steps=2)
    assert torch.equal(made, theta), "decoders of an untrained model are zero"
    assert "The published mnist_error model" in (out / "README.md").read_text()


def test_what_a_file_is_must_be_known(
    write: Callable[[str, str], Path],
    refused: Refused,  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    line = refused("import-gpt", write("some.pt", "mnist_loss"), "--out", out)
    assert "it may be mnist_loss or mnist_error; say with --model which" in line
    assert run(["import-gpt", str(write("other.pt", "cartpole")), "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["model"] == "cartpole"
    assert "holds a generator already" in refused("import-gpt", tmp_path / "other.pt", "--out", out)
    line = refused("import-gpt", write("cartpole.pt", "cifar10_loss"), "--out", tmp_path / "b")
    assert "not the 47 of cartpole" in line
    assert "it fits cifar10_loss and cifar10_error: " in line


def test_files_that_are_none_are_refused(refused: Refused, tmp_path: Path) -> None:  # noqa: F811
    assert "give the released file: theta import-gpt mnist_loss.pt" in refused("import-gpt")
    assert "no file" in refused("import-gpt", tmp_path / "mnist_loss.pt", "--out", tmp_path / "out")
    (tmp_path / "mnist_loss.pt").write_bytes(b"PK")
    line = refused("import-gpt", tmp_path / "mnist_loss.pt", "--out", tmp_path / "out")
    assert "is no torch checkpoint of tensors alone" in line
    assert "invalid choice 'mnist'" in refused("import-gpt", tmp_path / "x.pt", "--model", "mnist")
