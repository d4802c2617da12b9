"""`theta audit` as a gate: 0 for networks that are new, 1 for copies, 2 for what cannot be audited."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ckpt_factory import RunPlan, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from cluster.audit import AuditConfig
from cluster.cli import run
from generator.audit.audit import AuditSettings, Subject, audit_networks
from generator.evaluation.evaluate import finished_runs
from generator.prompt import save_networks
from generator.sampling.samplers import SamplingChange
from tests.conftest import write_zoo

pytestmark = pytest.mark.ray

FEW = ["--baseline-networks", "4", "--pool-runs", "8", "--num-networks", "8"]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def zoo(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """32 runs of 150 steps in two shards; half of them are held out."""
    plan = RunPlan(num_steps=150, batch_size=(32,), num_checkpoints=12)
    return write_zoo(tmp_path_factory.mktemp("audit") / "zoo", digits, plan, num_runs=32, stack_size=16)


def folder_of(path: Path, task: Task, theta: Tensor) -> Path:
    save_networks(path, task.spec, theta, [f"network-{k}" for k in range(len(theta))])
    return path


def audit(out: Path, *args: object) -> tuple[int, dict]:
    status = run(["audit", *map(str, args), *FEW, "--out", str(out)])
    return status, json.loads((out / "result.json").read_text())


def test_fresh_networks_pass_and_copies_fail(
    ray_cluster: int, digits: Task, zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = folder_of(tmp_path / "fresh", digits, zoo.read_unit(1).theta[8:, -1])
    flags = ["--zoo", zoo.path, "--held-out", 0.5, "--generated"]
    status, result = audit(tmp_path / "a", *flags, fresh)
    assert (status, result["outcome"]) == (0, "generates"), result["verdict"]
    with Image.open(tmp_path / "a" / "frontier.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10**6)
    assert colours is not None
    assert len(colours) > 50, "a plot, not a blank page"

    theta = zoo.read_unit(0).theta[:8, -1]
    moved = digits.symmetry.apply(theta, digits.symmetry.random(8, rng=seeded(0)))
    capsys.readouterr()
    status, result = audit(tmp_path / "b", *flags, folder_of(tmp_path / "copies", digits, moved))
    assert (status, result["outcome"], result["copy_rate"]) == (1, "copies", 1)
    assert "fails: Copies: 100%" in capsys.readouterr().err

    every_second = torch.stack([zoo.read_unit(1).theta[8:, -1], moved], 1).flatten(0, 1)
    _, result = audit(tmp_path / "c", *flags, folder_of(tmp_path / "half", digits, every_second))
    assert (result["outcome"], result["networks_asked"]) == ("copies", 8)
    assert result["verdict"].endswith("Audited 8 of 16 networks.")


def test_parts_elsewhere_find_what_one_process_finds(
    ray_cluster: int, digits: Task, zoo: Zoo, tmp_path: Path
) -> None:
    theta = zoo.read_unit(1).theta[8:, -1]
    fresh = folder_of(tmp_path / "fresh", digits, theta)
    _, remote = audit(tmp_path / "a", "--zoo", zoo.path, "--held-out", 0.5, "--generated", fresh)
    subject = Subject(theta, digits.evaluate(theta, "validation")["loss"], 16, len(theta))
    settings = AuditSettings(baseline_networks=4, pool_runs=8)
    here, _ = audit_networks(subject, finished_runs(zoo, 16, 8), zoo, digits, settings)
    for name in ("copy_rate", "distance_ratio", "overlap_most", "off_span", "quality_generated", "margin"):
        assert remote[name] == pytest.approx(here[name], rel=1e-5)  # other workers, the same sums
    assert remote["margins"].keys() == here["margins"].keys()


def test_a_generator_is_audited_and_its_evaluation_reports_it(
    trained: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    paths = ["--zoo", str(digits_zoo.path), "--generator", str(trained)]
    status, result = audit(tmp_path / "a", *paths, "--num-prompts", 3, "--search-runs", 8)
    assert status == (0 if result["passes"] else 1)
    assert result["verdict"].endswith(f"Searched 8 of {result['training_runs']} training runs.")
    assert result["networks"] > 8, "other prompts, too"
    # a generator of 240 steps hardly knows prompts: that they are shuffled is tested where they are followed
    assert result["shuffled_prompt_alignment"] != result["prompt_alignment"]
    flags = ["--num-networks", "4", "--num-prompts", "3", "--num-seeds", "1", "--distance-networks", "4"]
    assert run(["evaluate", *paths, *flags, "--out", str(tmp_path / "e")]) == 0
    evaluated = json.loads((tmp_path / "e" / "result.json").read_text())
    assert evaluated["audit_verdict"]
    assert "training runs." not in evaluated["audit_verdict"], "all were searched"
    assert run(["evaluate", *paths, *flags, "--no-audit", "--out", str(tmp_path / "n")]) == 0
    plain = json.loads((tmp_path / "n" / "result.json").read_text())
    assert not any(name.startswith("audit") for name in plain)
    for name in ("distance_generated", "distance_held_out", "distance_ratio"):
        assert plain[name] == pytest.approx(evaluated[name], rel=1e-5)
    assert run(["report", *paths, "--evaluation", str(tmp_path / "e"), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert '<section id="audit">' in page
    assert "The audit " in page


@pytest.mark.slow
def test_an_evaluations_audit_searches_as_many_runs_as_it_is_told(
    trained: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    paths = ["--zoo", str(digits_zoo.path), "--generator", str(trained), "--search-runs", "8"]
    flags = ["--num-networks", "4", "--num-prompts", "3", "--num-seeds", "1", "--distance-networks", "4"]
    assert run(["evaluate", *paths, *flags, "--out", str(tmp_path)]) == 0
    fewer = json.loads((tmp_path / "result.json").read_text())
    assert fewer["audit_verdict"].endswith(f"Searched 8 of {fewer['audit_training_runs']} training runs.")


def test_what_cannot_be_audited_is_refused(
    ray_cluster: int,
    digits: Task,
    zoo: Zoo,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*args: object) -> str:
        assert run(["audit", *map(str, args), "--zoo", str(zoo.path), "--out", str(tmp_path / "a")]) == 2
        return capsys.readouterr().err

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "--generated names the one with the networks' files" in refused("--generated", tmp_path / "no")
    assert "holds no networks" in refused("--generated", empty)
    assert "was trained on another zoo" in refused("--generator", trained)
    assert "steps is for networks of a generator" in refused("--generated", empty, "--steps", 3)
    assert "num_networks is 0" in refused("--generated", empty, "--num-networks", 0)
    assert "baseline_networks is 1; expected at least 2" in refused("--baseline-networks", 1)
    broken = folder_of(tmp_path / "broken", digits, torch.full((2, digits.spec.D), torch.nan))
    assert (
        run(["audit", "--generated", str(broken), "--zoo", str(zoo.path), "--out", str(tmp_path / "a")]) == 1
    )
    assert "100% of the networks have no finite" in capsys.readouterr().err
    (broken / "junk.safetensors").write_bytes(b"hello")
    line = refused("--generated", broken)
    words = "1 of 3 networks cannot be audited; remove their files: junk.safetensors: it is not a readable"
    assert words in line
    assert line.count("junk.safetensors") == 1
    assert "--skip-broken" not in line
    other = tmp_path / "other"
    shutil.copytree(folder_of(tmp_path / "one", digits, zoo.read_unit(0).theta[:1, 0]), other)
    assert "which is --generated too" in run_error(capsys, other, zoo)


def run_error(capsys: pytest.CaptureFixture[str], folder: Path, zoo: Zoo) -> str:
    assert run(["audit", "--generated", str(folder), "--zoo", str(zoo.path), "--out", str(folder)]) == 2
    return capsys.readouterr().err


def test_options_that_belong_to_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="held_out is for --generated without --generator"):
        AuditConfig(held_out=0.2)
    for given in ({"sampler": "ddim"}, {"trajectory": "optimal"}, {"guidance": 2.0}):
        with pytest.raises(ValueError, match=f"{next(iter(given))} is for networks of a generator"):
            AuditConfig(generated=Path("x"), sampling=SamplingChange(**given))
    with pytest.raises(ValueError, match="held_out is 1"):
        AuditConfig(held_out=1.5, generated=Path("x"))
