"""Several metrics from the command line: trained, prompted, evaluated, and refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from cluster.cli import run
from cluster.prompt import read_prompt
from cluster.requests import REQUEST, check_held
from cluster.sweeps.tune_config import TuneConfig
from cluster.train_config import GeneratorConfig
from generator.artefact import WeightGenerator
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def both(ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of loss and error, trained by the command line."""
    out = tmp_path_factory.mktemp("generators") / "both"
    size = ["--width", "32", "--depth", "1", "--steps", "150", "--batch-size", "32", "--num-workers", "1"]
    flags = ["--precision", "float32", "--held-out", "0.25", "--metrics", "error", "loss"]
    assert run(["train", "--zoo", str(digits_zoo.path), *size, *flags, "--out", str(out)]) == 0
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `theta` and returns the one line that it refuses with."""

    def check(*args: object) -> str:
        assert run([str(arg) for arg in args]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("theta ")]
        assert len(lines) == 1
        return lines[0]

    return check


def prompted(generator: Path, out: Path, *flags: str) -> dict[str, Any]:
    flags = (*flags, "--num-networks", "2", "--steps", "2", "--out", str(out))
    assert run(["prompt", "--generator", str(generator), *flags]) == 0
    return json.loads((out / "result.json").read_text())


def test_the_zoos_own_metric_is_the_main_one(both: Path) -> None:
    generator = WeightGenerator.load(both)
    assert generator.metrics == ("loss", "error")
    said = json.loads((both / "config.json").read_text())
    assert said["origin"]["also"] == [["validation_error", "min"]]
    assert "| or, alone or together | validation_error, min; seen from" in (both / "README.md").read_text()


def test_any_metrics_are_prompted_and_asked_and_achieved_are_said(
    both: Path, digits: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = prompted(both, tmp_path / "a", "--prompt", "loss=0.5", "error=0.1,0.3")
    assert result["prompted_columns"] == ["validation_loss", "validation_error"]
    rows = result["networks"]
    asked = [row[f"prompt_{name}"] for row in rows for name in ("loss", "error")]
    assert asked == pytest.approx([0.5, 0.1, 0.5, 0.3] * 2)  # as float32
    for row in rows:
        assert {"start_validation_error", "validation_loss", "validation_error", "test_error"} <= set(row)
        assert (tmp_path / "a" / row["file"]).is_file()
    assert rows[1]["file"] == "network-000-loss-0.5-error-0.3.safetensors"
    for name in ("loss", "error"):
        gaps = [abs(row[f"prompt_{name}"] - row[f"validation_{name}"]) for row in rows]
        assert result[f"mean_absolute_gap_{name}"] == pytest.approx(sum(gaps) / 4)
    text = " ".join(capsys.readouterr().out.split())
    assert "prompt" in text
    assert f"{rows[0]['validation_error']:.4f}" in text
    alone = prompted(both, tmp_path / "b", "--prompt", "error=0.2")
    assert alone["prompted_columns"] == ["validation_error"]
    theta = digits.init([seeded(0, 0, k) for k in range(2)])
    metric = digits.evaluate(theta, "validation")
    expected = WeightGenerator.load(both).update(theta, metric, {"error": 0.2}, rng=seeded(0, 1), steps=2)
    reached = digits.evaluate(expected, "validation")["error"]
    assert [row["validation_error"] for row in alone["networks"]] == pytest.approx(reached.tolist(), abs=1e-6)


def test_prompts_without_names_are_of_the_main_metric(both: Path, tmp_path: Path) -> None:
    plain = prompted(both, tmp_path / "a", "--prompts", "0.5")
    assert plain["prompted_column"] == "validation_loss"
    assert [row["prompt"] for row in plain["networks"]] == [0.5, 0.5]
    assert plain["networks"][0]["file"] == "network-000-prompt-0.5.safetensors"
    named = prompted(both, tmp_path / "b", "--prompt", "loss=0.5")
    gaps = plain["mean_absolute_gap"], named["mean_absolute_gap_loss"]
    assert gaps[0] == gaps[1]


def test_an_evaluation_has_every_metric_alone_and_all_together(
    both: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    paths = ["--zoo", str(digits_zoo.path), "--generator", str(both)]
    flags = ["--num-networks", "3", "--num-prompts", "4", "--num-seeds", "2", "--steps", "2", "--beyond", "0"]
    flags += ["--distance-networks", "0", "--no-audit", "--out", str(tmp_path / "e")]
    assert run(["evaluate", *paths, *flags]) == 0
    result = json.loads((tmp_path / "e" / "result.json").read_text())
    for key in (
        "prompt_alignment",
        "channel_error_prompt_alignment",
        "channel_error_prompt_alignment_std_over_seeds",
        "together_loss_prompt_alignment",
        "together_error_prompt_alignment",
        "together_error_without_its_prompt",
    ):
        assert isinstance(result[key], float), key
    assert result["together_error_retrieval_prompt_alignment"] > 0.9
    assert run(["report", *paths, "--evaluation", str(tmp_path / "e"), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    section = page.partition('<section id="several">')[2].partition("</section>")[0]
    assert "may be prompted for loss, error" in section
    assert section.count("<figure>") == 3
    assert "error, together" in section


def test_impossible_prompts_are_refused(refused: Callable[..., str], both: Path, tmp_path: Path) -> None:
    prompt = ("prompt", "--generator", both, "--out", tmp_path / "p")
    for given, message in (
        (("--prompt", "accuracy=0.9"), "knows no metric 'accuracy'; expected loss or error"),
        (("--prompt", "error=nan"), "prompt is nan; expected a finite error, like"),
        (("--prompt",), "prompt names no metric; expected some, as in --prompt loss=0.3 error=0.05"),
        (("--prompt", "error"), "prompt is 'error'; expected metrics and numbers"),
        (("--prompt", "error=0.1", "--prompts", "0.3"), "give one of them: --prompts is of the main metric"),
    ):
        assert message in refused(*prompt, *given)
    assert not (tmp_path / "p").exists() or not list((tmp_path / "p").glob("*.safetensors"))


def test_a_generator_of_one_metric_knows_no_other(
    refused: Callable[..., str], trained: Path, tmp_path: Path
) -> None:
    line = refused("prompt", "--generator", trained, "--prompt", "error=0.1", "--out", tmp_path)
    assert "the generator knows no metric 'error'; expected loss" in line


def test_impossible_metrics_are_refused_before_anything_is_made(
    refused: Callable[..., str], both: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    train = ("train", "--zoo", digits_zoo.path, "--out", tmp_path / "g")
    assert "unknown metric 'auc'; the zoo has loss, error" in refused(*train, "--metrics", "loss", "auc")
    assert "the zoo's own among them: loss error" in refused(*train, "--metrics", "error")
    assert "metrics are loss, loss; expected each once" in refused(*train, "--metrics", "loss", "loss")
    line = refused(*train, "--metrics", "loss", "error", "--prompt-dropout", "0.1")
    assert "prompt_dropout is 0.1 with metrics loss, error, which are left out at random as it is" in line
    assert not (tmp_path / "g").exists()
    line = refused(
        "train", "--zoo", digits_zoo.path, "--out", both, "--held-out", "0.25", "--num-workers", "1"
    )
    assert "holds another training" in line


def test_tokens_of_the_published_model_know_one_metric() -> None:
    published = TrainConfig(model=DiTConfig(tokens="gpt"))
    for names in ((), ("loss",)):
        GeneratorConfig(metrics=names, training=published)
    with pytest.raises(ValueError, match=r"metrics are loss, error with tokens 'gpt', .* which knows one"):
        GeneratorConfig(metrics=("loss", "error"), training=published)
    with pytest.raises(ValueError, match="metrics are loss, error with tokens 'gpt'"):
        TuneConfig(metrics=("loss", "error"), token_kinds=("units", "gpt"))


def test_a_training_begun_before_there_were_several_metrics_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / REQUEST
    path.write_text(json.dumps({"rank": 128, "training": {"steps": 3}}))
    wanted = {"rank": 128, "metrics": [], "training": {"steps": 3}}
    assert check_held(path, dict(wanted), "another training")["rank"] == 128
    with pytest.raises(ValueError, match="another training, with metrics"):
        check_held(path, wanted | {"metrics": ["loss", "error"]}, "another training")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["loss=1,2", "error=0.1,0.2,0.3"],
            "prompt has 2 of loss; expected 3 of each metric, or one for all",
        ),
        (["loss=1", "loss=2"], "expected metrics and numbers, each metric once"),
        (["=1"], "expected metrics and numbers"),
        (["loss=1,"], "expected metrics and numbers"),
        (["loss=1,1.0"], "expected each only once, to six digits"),
    ],
)
def test_prompts_that_cannot_be_read(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt(given)


def test_several_values_make_several_prompts() -> None:
    assert read_prompt(["loss=0.3", "error=0.05,0.1"]) == {"loss": [0.3, 0.3], "error": [0.05, 0.1]}
    assert torch.tensor(list(read_prompt(["return=-5"]).values())).tolist() == [[-5.0]]
