"""`theta import-gpt`: a released file in, a generator's folder out, or one line that says why not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ckpt_factory import RunPlan, make
from ckpt_factory.zoo import Zoo
from cluster.cli import run
from generator.artefact import WeightGenerator
from generator.gpt import PRESETS, Gpt
from generator.gpt.released import RELEASES

from ..conftest import write_zoo
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
    assert "is no released file: it holds something other than tensors" in line
    assert "invalid choice 'mnist'" in refused("import-gpt", tmp_path / "x.pt", "--model", "mnist")


@pytest.fixture(scope="module")
def mnist_zoo(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """12 short runs on MNIST."""
    plan = RunPlan(num_steps=20, batch_size=(32,), num_checkpoints=4)
    task = make("mnist-mlp-v0", data_root=data_root)
    return write_zoo(tmp_path_factory.mktemp("zoos") / "mnist", task, plan, num_runs=12, stack_size=6)


def test_a_zoo_of_another_task_is_refused(
    write: Callable[[str, str], Path],
    refused: Refused,  # noqa: F811
    digits_zoo: Zoo,
    tmp_path: Path,
) -> None:
    file, out = write("mnist_loss.pt", "mnist_loss"), tmp_path / "out"
    line = refused("import-gpt", file, "--zoo", digits_zoo.path, "--out", out)
    assert "task 'digits-mlp-v0', mnist_loss makes those of 'mnist-mlp-v0'; give a zoo of that task" in line
    assert "no zoo at" in refused("import-gpt", file, "--zoo", tmp_path / "none", "--out", out)
    assert "give that zoo with --zoo, too" in refused("import-gpt", file, "--held-out", "0.2", "--out", out)
    assert "expected a share" in refused("import-gpt", file, "--held-out", "1", "--zoo", digits_zoo.path)
    assert not out.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_released_model_is_judged_on_the_zoo_that_it_was_imported_with(
    ray_cluster: int,
    write: Callable[[str, str], Path],
    refused: Refused,  # noqa: F811
    mnist_zoo: Zoo,
    data_root: Path,
    tmp_path: Path,
) -> None:
    """Also one of errors on a zoo that is prompted with losses."""
    file, alone, judged = write("mnist_error.pt", "mnist_error"), tmp_path / "alone", tmp_path / "judged"
    assert run(["import-gpt", str(file), "--out", str(alone)]) == 0
    given = ["--zoo", str(mnist_zoo.path), "--data-root", str(data_root)]
    line = refused("evaluate", "--generator", alone, *given, "--out", tmp_path / "evaluation")
    assert f"import it again: theta import-gpt FILE --model mnist_error --zoo {mnist_zoo.path} --out" in line

    assert run(["import-gpt", str(file), *given[:2], "--held-out", "0.5", "--out", str(judged)]) == 0
    result = json.loads((judged / "result.json").read_text())
    assert (result["held_out_runs"], result["training_runs"]) == (6, 10_228)
    assert "runs with ids from 6: nothing here was trained on them" in (judged / "README.md").read_text()

    few = ["--num-networks", "2", "--steps", "2", "--generator", str(judged), *given]
    evaluation, audited, reported = (tmp_path / name for name in ("evaluation", "audit", "report"))
    less = ["--num-prompts", "3", "--num-seeds", "1", "--no-audit"]
    assert run(["evaluate", *few, *less, "--out", str(evaluation)]) == 0
    result = json.loads((evaluation / "result.json").read_text())
    # decoders of an untrained model are zero: what was made are the starts, which runs 6 and 7 began with
    rows = mnist_zoo.read_unit(1)
    assert result["one_update_test_error"] == pytest.approx(float(rows.metrics["test_error"][:2, 0].mean()))
    assert result["training_checkpoints"] == 6 * 4
    assert run(["audit", *few, "--num-prompts", "2", "--out", str(audited)]) == 1, "no better than starts"
    names = {"generator": judged, "zoo": mnist_zoo.path, "evaluation": evaluation, "out": reported}
    assert run(["report", *(str(each) for name in names for each in (f"--{name}", names[name]))]) == 0
    html = (reported / "report.html").read_text()
    assert "<b>A released model.</b> This is mnist_error" in html
    assert "never trained on" not in html
