"""The command line: one clear line and exit status 2 for bad input, `result.json` beside every table."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.data
import safetensors.torch
import torch

from ckpt_factory import RunPlan
from ckpt_factory.zoo import HEADER, Zoo
from cluster.cli import _parse, run
from cluster.factory_config import FactoryConfig
from cluster.verbs import command_of
from generator.artefact import CONFIG, WeightGenerator
from generator.evaluation.starts import STARTS

from ..conftest import plain_mlp

pytestmark = pytest.mark.ray

Refused = Callable[..., str]
BOWL = "tests.ckpt_factory.option_tasks:bowl-v0"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `theta` and returns the one line that it refuses with."""

    def check(*args: object) -> str:
        status = run([str(arg) for arg in args])
        error = capsys.readouterr().err
        assert status == 2, error
        lines = [line for line in error.splitlines() if line.startswith("theta ")]
        assert len(lines) == 1, error
        assert "Traceback" not in error
        return lines[0]

    return check


@pytest.fixture
def generator_folder(trained: Path) -> Path:
    return trained


def test_unknown_command_and_task_get_a_suggestion(
    ray_cluster: int, refused: Refused, tmp_path: Path
) -> None:
    assert "did you mean 'make'?" in refused("mkae")
    line = refused("make", "--task", "digits-mpl-v0", "--out", tmp_path / "zoo")
    assert "Did you mean 'digits-mlp-v0'?" in line
    assert "cannot import module 'nowhere'" in refused(
        "make", "--task", "nowhere:x-v0", "--out", tmp_path / "zoo"
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--num-runs abc", "--num-runs"),
        ("--num-runs -5", "num_runs is -5; expected a positive multiple"),
        ("--lr 0 1", "lr is (0.0, 1.0); expected low <= high"),
        ("--num-checkpoints 1000", "450 steps allow 2 to 451"),
        (
            "--num-steps 20",
            "theta make: num_checkpoints is 35; 20 steps allow 2 to 21: give --num-checkpoints",
        ),
        (
            "--lr 0.02",
            "--lr: got 0.02; expected a range of two numbers, LOW HIGH; twice the same number fixes",
        ),
        ("--momentum 0.1 0.2 0.3", "--momentum: got 0.1 0.2 0.3; expected a range"),
        ("--gamma a 1", "--gamma: got a 1; expected a range"),
        ("--optimizer sgd adam", "invalid choice 'adam' for argument '--optimizer'"),
        ("--optimizer sgd adam", "did you mean 'adamw'?"),
        ("--dtype float8", "--dtype"),
        ("--num-rns 5", "--num-runs"),
        ("--preset digit", "unknown preset 'digit'; did you mean 'digits'? theta make has: digits, mnist"),
        ("--group-size 3", "positive multiple of group_size 3"),
        ("--batch-size 5000", "1077 training images"),
        ("--out /dev/null/zoo", "cannot write to /dev/null/zoo"),
        ("--task mnist-mlp-v0", "MNIST needs --data-root"),
        ("--task mnist-mlp-v0 --data-root /nonexistent", "no MNIST in /nonexistent"),
        ("--num-cpus 0", "num_cpus is 0"),
        ("--seed 18446744073709551616", "expected 0 to 2**63 - 1"),
    ],
)
def test_malformed_values_for_make(
    ray_cluster: int, refused: Refused, flags: str, words: str, tmp_path: Path
) -> None:
    out = [] if "--out" in flags else ["--out", tmp_path / "zoo"]
    assert words in refused("make", *out, *flags.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--env CartPole-v1", "task 'digits-mlp-v0' takes no options, got 'env'"),
        ("--options hidden 64", "task 'digits-mlp-v0' takes no options, got 'hidden'"),
        (
            f"--task {BOWL} --options dims 6",
            "has no option 'dims'. Did you mean 'dim'? Its options: dim, env",
        ),
        (f"--task {BOWL} --options dim six", "is 'six'; expected an integer"),
        (f"--task {BOWL} --options dim", "--options"),
        (f"--task {BOWL} --env a --options env b", "env is 'a' and 'b' in options; give it once"),
        (f"--task {BOWL}?dim=six", "is 'six'; expected an integer"),
    ],
)
def test_options_that_the_task_does_not_know_are_refused_before_anything_is_written(
    refused: Refused, flags: str, words: str, tmp_path: Path
) -> None:
    assert words in refused("make", "--out", tmp_path / "zoo", *flags.split())
    assert not (tmp_path / "zoo").exists()


def test_policies_are_suggested_in_full_and_an_environment_is_asked_for(
    refused: Refused, tmp_path: Path
) -> None:
    for given, meant in (("acrobot-v0", "acrobot-v0"), ("rl_tasks:cartpol-v0", "cartpole-v0")):
        line = refused("make", "--task", given, "--out", tmp_path / "zoo")
        assert f"unknown task {given!r}. Did you mean 'rl_tasks:{meant}'?" in line
        assert "rl_tasks:acrobot-v0, rl_tasks:cartpole-v0, rl_tasks:gym-v0, " in line
    line = refused("make", "--preset", "gym", "--out", tmp_path / "zoo")
    assert "needs option env: give --env CartPole-v1, or --env module:MyEnv-v0" in line
    task = "tests.ckpt_factory.option_tasks:loaded-v0"
    assert "needs option times: give --options times VALUE" in refused(
        "make", "--task", task, "--out", tmp_path / "zoo"
    )
    assert not (tmp_path / "zoo").exists()


def test_policies_on_a_gpu_are_refused_before_anything_is_written(refused: Refused, tmp_path: Path) -> None:
    line = refused("make", "--preset", "cartpole", "--use-gpu", "--out", tmp_path / "zoo")
    assert "trains on CPUs alone" in line
    assert "leave out --use-gpu" in line
    assert not (tmp_path / "zoo").exists()


def test_ranges_are_called_that_and_tasks_are_listed_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["make", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("lr", "weight-decay", "momentum", "init-scale", "label-noise", "data-fraction", "gamma"):
        assert f"--{flag} LOW HIGH" in text
    for name in ("digits-mlp-v0", "mnist-mlp-v0", "cifar-cnn-v0", "images-cnn-v0", "quadratic-v0"):
        assert name in text
    for name in ("cartpole", "acrobot", "mountaincar-continuous", "pendulum", "gym"):
        assert f"rl_tasks:{name}-v0" in text
    assert "theta make --preset gym --env MountainCar-v0 --out runs/zoo-car" in text


def test_a_task_with_options_goes_from_make_to_verify(ray_cluster: int, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    task = ["--task", f"{BOWL}?kind=round&dim=9", "--env", "a:B-v0", "--options", "dim", "6", "limit", "2"]
    size = ["--num-runs", "4", "--stack-size", "2", "--num-steps", "4", "--num-checkpoints", "2"]
    for _ in range(2):  # the second time it is there already
        assert run(["make", *task, *size, "--out", str(zoo)]) == 0
    made = Zoo.open(zoo)
    assert made.header.task == f"{BOWL}?dim=6&env=a:B-v0&kind=round&limit=2"
    assert made.header.spec.D == 6
    assert run(["verify", "--zoo", str(zoo), "--sample", "4", "--out", str(tmp_path / "v")]) == 0
    assert json.loads((tmp_path / "v" / "result.json").read_text())["remeasured"] == 4
    table = ray.data.read_parquet(str(zoo / "checkpoints")).take_batch(2)
    assert set(table["task"]) == {made.header.task}


def test_pairs_of_name_and_value_are_taken_on_top_of_a_presets() -> None:
    command = command_of("make")
    plan = RunPlan(hyper={"clip": (0.1, 0.2), "entropy": (0.0, 0.0)})
    preset = FactoryConfig(plan=plan, options={"hidden": "8"})
    command = replace(command, presets={"mine": lambda: preset})

    def parsed(*args: str) -> FactoryConfig:
        return _parse("make", command, ["--preset", "mine", *args])[0]

    assert parsed() == preset
    given = parsed("--hyper", "clip", "0.3", "0.4", "discount", "0.9", "1", "--options", "env", "X-v0")
    assert given.plan.hyper == {"clip": (0.3, 0.4), "entropy": (0.0, 0.0), "discount": (0.9, 1.0)}
    assert given.options == {"hidden": "8", "env": "X-v0"}
    plain, _ = _parse("make", command, ["--hyper", "clip", "0.1", "0.3"])
    assert plain.plan.hyper == {"clip": (0.1, 0.3)}
    assert plain.options == {}


def test_missing_foreign_or_damaged_zoo(
    refused: Refused, generator_folder: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    assert "make one with" in refused("train", "--zoo", tmp_path / "nothing", "--out", tmp_path / "g")
    swapped = ["--zoo", generator_folder, "--generator", digits_zoo.path, "--out", tmp_path / "e"]
    assert "give the zoo's own folder" in refused("evaluate", *swapped)
    assert "that is a zoo" in refused("prompt", "--generator", digits_zoo.path)
    zoo = tmp_path / "zoo"
    shutil.copytree(digits_zoo.path, zoo)
    header = json.loads((zoo / HEADER).read_text())

    (zoo / HEADER).write_text(json.dumps(header | {"schema_version": 99}))
    line = refused("info", "--zoo", zoo)
    assert "schema version 99, this thetaforge reads 2" in line

    (zoo / HEADER).write_text(json.dumps(header | {"task": "mnist-mlp-v0"}))
    line = refused("evaluate", "--zoo", zoo, "--generator", generator_folder, "--out", tmp_path / "e")
    assert "the generator is for task 'digits-mlp-v0'" in line

    (zoo / HEADER).write_text((digits_zoo.path / HEADER).read_text())
    shard = Zoo.open(zoo).checkpoints_path(0)
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert f"{shard} is damaged" in refused(
        "train", "--preset", "smoke", "--zoo", zoo, "--out", tmp_path / "g"
    )
    assert f"{shard} is damaged" in refused("info", "--zoo", zoo, "--out", tmp_path / "i")
    assert run(["verify", "--zoo", str(zoo), "--out", str(tmp_path / "v")]) == 2
    result = json.loads((tmp_path / "v" / "result.json").read_text())
    assert result["damaged_shards"] == [0]
    assert result["ok"] is False
    for file in zoo.rglob("part-00000*"):
        file.unlink()
    assert run(["verify", "--zoo", str(zoo), "--out", str(tmp_path / "v")]) == 1, "unfinished, nothing worse"


def test_what_is_refused_leaves_the_folder_free(
    ray_cluster: int, refused: Refused, digits_zoo: Zoo, tmp_path: Path
) -> None:
    flags = ["--preset", "smoke", "--zoo", digits_zoo.path, "--out", tmp_path / "g"]
    assert "ask for fewer --num-workers" in refused("train", *flags, "--num-workers", 40)
    assert "reservoir_gib inf positive and finite" in refused("train", *flags, "--reservoir-gib", "inf")
    assert "clip_norm is -1.0" in refused("train", *flags, "--clip-norm", -1)
    assert not (tmp_path / "g").exists()
    assert "num_networks is 0" in refused("demo", "--num-networks", 0, "--out", tmp_path / "d")
    assert "batch_size is 5000" in refused("make", "--batch-size", 5000, "--out", tmp_path / "z")
    assert not (tmp_path / "z").exists()
    begun = tmp_path / "begun"
    begun.mkdir()
    assert "batch_size is 5000" in refused("make", "--batch-size", 5000, "--out", begun)
    assert begun.is_dir(), "the user's own"


def test_a_zoo_is_not_verified_on_other_data(refused: Refused, digits_zoo: Zoo, tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(digits_zoo.path, zoo)
    header = json.loads((zoo / HEADER).read_text())
    (zoo / HEADER).write_text(json.dumps(header | {"inputs": "pixels / 255"}))
    line = refused("verify", "--zoo", zoo, "--out", tmp_path / "v")
    assert "this data is not what the zoo was made on: its inputs are pixels / 255, here they are (" in line


def test_results_are_not_written_among_what_they_are_made_from(refused: Refused, digits_zoo: Zoo) -> None:
    for command in ("train", "info", "verify"):
        line = refused(command, "--zoo", digits_zoo.path, "--out", digits_zoo.path)
        assert "which is --zoo too; give another" in line
    package = Path(__file__).parents[2] / "generator"
    assert "is a Python package" in refused("train", "--zoo", digits_zoo.path, "--out", package)


def test_verify_and_info_of_a_sound_zoo(ray_cluster: int, digits_zoo: Zoo, tmp_path: Path) -> None:
    assert run(["verify", "--zoo", str(digits_zoo.path), "--sample", "24", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["ok"], result["runs"], result["remeasured"]) == (True, 24, 24)
    assert run(["info", "--zoo", str(digits_zoo.path), "--out", str(tmp_path / "info")]) == 0
    found = json.loads((tmp_path / "info" / "result.json").read_text())
    tenths = [int(each) for each in found["coverage_of_tenths"].removesuffix(" %").split(", ")]
    assert (found["checkpoints"], len(tenths), round(sum(tenths), -1)) == (24 * 8, 10, 100), "rounded"
    assert found["final_test_loss"].startswith(f"{found['final']['test_loss']['median']:.4g} (median)")


def test_prompt_writes_networks_that_do_in_plain_torch_what_the_table_says(
    generator_folder: Path, tmp_path: Path, digits: Any
) -> None:
    flags = ["--prompts", "0.5", "1.5", "--num-networks", "2", "--updates", "2"]
    assert run(["prompt", "--generator", str(generator_folder), *flags, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert len(result["networks"]) == 4
    assert len(result["mean_validation_loss_after_each_update"]) == 2
    for row in result["networks"]:
        state = safetensors.torch.load_file(tmp_path / row["file"])
        net = plain_mlp((64, 16, 10), state)
        data = digits.data
        x = torch.from_numpy(data.images["test"]).float()
        x = (x / data.full_scale - data.mean) / data.std
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(net(x), torch.from_numpy(data.labels["test"]))
        assert row["test_loss"] == pytest.approx(float(loss), rel=1e-4)  # float32 sums in another order
    flags = ["--prompts", "1.0", "--num-networks", "1"]
    assert run(["prompt", "--generator", str(generator_folder), *flags, "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "result.json").read_text())["networks"]
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [row["file"]]


def test_prompt_refuses_networks_that_do_not_fit(
    refused: Refused, generator_folder: Path, tmp_path: Path
) -> None:
    spec = WeightGenerator.load(generator_folder).coordinates.spec
    state = {name: torch.zeros(shape) for name, shape in zip(spec.names, spec.shapes, strict=True)}
    file = tmp_path / "mine.safetensors"

    def prompt(changed: dict[str, torch.Tensor]) -> str:
        safetensors.torch.save_file(changed, file)
        return refused("prompt", "--generator", generator_folder, "--start", file, "--out", tmp_path / "p")

    assert "missing ['fc1.bias'], unknown ['bias']" in prompt(
        {"bias" if name == "fc1.bias" else name: value for name, value in state.items()}
    )
    assert "'fc2.weight' has shape (10, 8), expected (10, 16)" in prompt(
        state | {"fc2.weight": torch.zeros(10, 8)}
    )
    assert "fc1.weight holds NaN" in prompt(state | {"fc1.weight": torch.full((16, 64), torch.nan)})
    file.write_bytes(b"no weights")
    line = refused("prompt", "--generator", generator_folder, "--start", file, "--out", tmp_path / "p")
    assert "is not a safetensors file" in line
    assert "no generator in" in refused("prompt", "--generator", tmp_path / "none")
    assert not (tmp_path / "p").exists() or not list((tmp_path / "p").glob("*.safetensors"))


def test_prompt_outside_of_what_the_zoo_has_seen_is_a_warning_with_the_range(
    generator_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low, high = json.loads((generator_folder / CONFIG).read_text())["metric_range"]
    flags = ["--prompts", "0.0001", "--num-networks", "1"]
    assert run(["prompt", "--generator", str(generator_folder), *flags, "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "warning: prompted loss 0.0001 lies outside of what the zoo has seen" in error
    assert f"{low:.4g} to {high:.4g}" in error


def test_evaluate_and_report(generator_folder: Path, digits_zoo: Zoo, tmp_path: Path) -> None:
    paths = ["--zoo", str(digits_zoo.path), "--generator", str(generator_folder)]
    flags = ["--num-networks", "4", "--num-prompts", "5", "--num-seeds", "2", "--distance-networks", "2"]
    flags += ["--ood", "2", "--steps", "2", "--beyond", "2", "--walk", "4", "--fine-tune", "0", "1"]
    assert run(["evaluate", *paths, *flags, "--out", str(tmp_path / "e")]) == 0
    result = json.loads((tmp_path / "e" / "result.json").read_text())
    assert {"prompt_alignment", "one_update_test_error", "sgd_equivalent_steps", "wall_s"} <= set(result)
    assert result["retrieval_prompt_alignment"] > 0.9, "looking the prompt up is the control to beat"
    assert result["distance_held_out"] > 0
    assert run(["report", *paths, "--evaluation", str(tmp_path / "e"), "--out", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text()
    assert "digits-mlp-v0" in page
    for name in ("recursion", "beyond", "walk", "finetune"):
        assert f'<section id="{name}">' in page
    assert len(result["finetune_generated_test_error"]) == 2
    assert {name: len(values) for name, values in result.items() if name.startswith("ood_")} == dict.fromkeys(
        (f"ood_{kind}{what}" for kind in STARTS for what in ("", "_quartiles")), 3
    )


def test_costs_that_nobody_recorded_are_refused(
    refused: Refused, generator_folder: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    paths = ["--zoo", digits_zoo.path, "--generator", generator_folder, "--out", tmp_path / "e"]
    assert "no record of what its runs have cost" in refused("evaluate", *paths, "--amortise")
    line = refused("evaluate", *paths, "--fine-tune", "5", "1")
    assert "fine_tune is (5, 1); expected numbers of epochs, ascending" in line


def test_episodes_are_refused_for_tasks_that_have_none(
    refused: Refused, generator_folder: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    paths = ["--zoo", digits_zoo.path, "--generator", generator_folder, "--out", tmp_path / "e"]
    line = refused("evaluate", *paths, "--episodes", "64")
    assert "episodes is 64, but task 'digits-mlp-v0' takes no options" in line
    assert "leave --episodes out" in line


def test_report_without_evaluation_says_what_to_run(
    refused: Refused, generator_folder: Path, digits_zoo: Zoo, tmp_path: Path
) -> None:
    line = refused(
        "report", "--zoo", digits_zoo.path, "--generator", generator_folder, "--evaluation", tmp_path / "none"
    )
    assert "run `theta evaluate --out" in line
