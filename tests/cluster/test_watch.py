"""`theta watch` films what a generator makes of an initialisation, and says in a line what it cannot film."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ckpt_factory import RunPlan, make
from ckpt_factory.zoo import Zoo
from cluster.cli import run
from cluster.report import ReportConfig, read_film
from cluster.train import prepare
from cluster.train_config import GeneratorConfig
from generator.artefact import WeightGenerator
from generator.report import sections
from tests.conftest import write_zoo

PLAN = RunPlan(
    num_steps=24,
    batch_size=(64,),
    optimizer=("adamw",),
    lr=(0.1, 0.1),
    weight_decay=(0.0, 0.0),
    num_checkpoints=4,
)
TASK = "rl_tasks:cartpole-v0?copies=4&episodes=4&rollout=32"


def generator_of(zoo: Zoo, folder: Path) -> Path:
    """A generator as it is before training: it gives every start network back as it is."""
    made = prepare(GeneratorConfig(zoo=zoo.path, held_out=0.25), zoo)
    made.save(folder, training={}, card="")
    return folder


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watch")
    return generator_of(
        write_zoo(folder / "zoo", make(TASK), PLAN, num_runs=16, stack_size=8), folder / "generator"
    )


def test_a_film_shows_every_prompt(policies: Path, tmp_path: Path) -> None:
    seen = WeightGenerator.load(policies).scaling.metric_range
    prompts = f"{seen[0]:.2f},{seen[1]:.2f}"
    flags = [
        "--task",
        "rl_tasks:cartpole-v0?copies=4&hidden=32,32",
        "--prompt",
        prompts,
        "--episodes",
        "8",
        "--out",
        str(tmp_path),
    ]
    assert run(["watch", "--generator", str(policies), *flags]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    first, second = result["policies"]
    assert result[f"prompt {first['prompt']:g}"].startswith(f"{first['achieved']:.4g} ± ")
    assert f"{first['prompt']:.2f},{second['prompt']:.2f}" == prompts
    assert first["achieved"] == second["achieved"] == result["start_test_return"], "both are the start itself"
    assert first["shown_episode"] >= 1
    film = read_film(ReportConfig(generator=policies, watch=tmp_path))
    assert f"data:image/gif;base64,{base64.b64encode(film).decode()}" in sections.film(film)
    with Image.open(tmp_path / "policies.gif") as film:
        assert film.n_frames > 1
        assert film.size == (600, 254)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "50;200"], "prompt is '50;200'; expected returns with commas"),
        (["--task", "rl_tasks:pendulum-v0"], "is for 'rl_tasks:cartpole-v0?"),
        (["--task", f"{TASK}&activation=tanh"], "is for 'rl_tasks:cartpole-v0?"),
        (["--task", "rl_tasks:cartpole-v0?copies=5"], "is for 'rl_tasks:cartpole-v0?"),
        (["--every", "0"], "every is 0; expected at least 1"),
        (["--steps", "0"], "sampling steps: got 0, expected at least 1"),
        (["--sampler", "extended-ddpm"], "'extended-ddpm' needs to know how uncertain"),
        (["--episodes", "3"], "episodes is 3; expected an even number"),
        (["--format", "avi"], "format"),
    ],
)
def test_what_cannot_be_filmed_is_one_line(
    policies: Path, flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", "--generator", str(policies), "--out", str(tmp_path / "x"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_policies_of_an_environment_that_has_changed_are_not_filmed(
    policies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = WeightGenerator.load(policies)
    origin = replace(made.origin, inputs="observations of CartPole-v0")
    replace(made, origin=origin).save(tmp_path / "generator", training={}, card="")
    assert run(["watch", "--generator", str(tmp_path / "generator"), "--out", str(tmp_path / "x")]) == 2
    line = capsys.readouterr().err
    assert "its inputs are observations of CartPole-v0, here they are observations of CartPole-v1" in line
    assert "train a generator on a zoo of the environment as it is now" in line


def test_a_film_of_another_generator_is_no_part_of_a_report(policies: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no film in .*run `theta watch"):
        read_film(ReportConfig(generator=policies, watch=tmp_path))
    (tmp_path / "result.json").write_text('{"evaluated": {"model": "0"}}')
    (tmp_path / "policies.gif").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is a film of another generator"):
        read_film(ReportConfig(generator=policies, watch=tmp_path))


def test_classifiers_are_nothing_to_watch(
    digits_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generator_of(digits_zoo, tmp_path / "generator")
    assert run(["watch", "--generator", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert "'digits-mlp-v0' has no policies to watch" in capsys.readouterr().err
