"""`theta bench`: what is measured ends in result.json, what cannot be is named."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.bench import RECIPES
from ckpt_factory.train import check_plan
from ckpt_factory.zoo import Zoo
from cluster.bench import BENCHMARKS, curves, samplers, scaling, storage, training
from cluster.bench.scaling import measure_memory, measure_scaling, run_theta, span_s, throughput
from cluster.cli import run
from generator.model.dit import DiTConfig
from generator.sampling.samplers import SAMPLERS
from rl_tasks.tasks import PolicyTask

from ..generator.conftest import fitted, randomise


def test_factory_leaves_out_what_is_not_there_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "digits-mlp-v0", replace(RECIPES["digits-mlp-v0"], stack_size=4))
    flags = (
        f"--full --tasks digits-mlp-v0 mnist-mlp-v0 nothing-v0 --variants float32 bfloat16 --out {tmp_path}"
    )
    assert run(["bench", "factory", *flags.split(), "--seconds", "1e-4", "--repeats", "1"]) == 0
    shown = capsys.readouterr()
    assert "mnist-mlp-v0 left out: MNIST needs --data-root" in shown.err
    assert "nothing-v0 left out: unknown task" in shown.err
    assert "x plain" in shown.out
    assert "whole stacks" in shown.out
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["left_out"]) == {"mnist-mlp-v0", "nothing-v0"}
    contenders = result["tasks"]["digits-mlp-v0"]["contenders"]
    assert set(contenders) == {"plain_loop", "vmap", "float32", "bfloat16"}
    for each in contenders.values():
        assert all(math.isfinite(value) and value > 0 for value in each.values())
    assert result["digits-mlp-v0 float32 cpu_s_per_run"] == contenders["float32"]["cpu_s_per_run"]
    assert set(result["tasks"]["digits-mlp-v0"]["whole_stacks"]) == {"float32", "bfloat16"}
    paired = result["tasks"]["digits-mlp-v0"]["final_test_error_against_float32"]
    assert paired["bfloat16"]["runs"] == 8
    # the last digits of products move errors by far less in the mean
    assert abs(paired["bfloat16"]["mean_difference"]) < 0.02
    assert "final test error by precision" in shown.out
    assert result["threads"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_storage_prints_a_table_and_writes_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = storage.measure_storage
    monkeypatch.setattr(
        storage, "measure_storage", lambda **given: small(num_runs=2, num_checkpoints=3, **given)
    )
    assert run(["bench", "storage", "--repeats", "1", "--out", str(tmp_path)]) == 0
    assert "parquet_bfloat16" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["checkpoints"] == 6
    assert result["parquet_float32 write_mb_per_cpu_s"] > 0


def test_curves_are_measured_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunPlan(num_steps=8, batch_size=(8,), optimizer=("adamw",), num_checkpoints=2)
    short = "rl_tasks:cartpole-v0?max_steps=20"
    recipes = {"PPO": (f"{short}&copies=2&rollout=8", plan), "ES": (f"{short}&algorithm=es", plan)}
    monkeypatch.setattr(curves, "panels", lambda: {"CartPole-v1": curves.Panel(2.0, recipes)})
    assert run(["bench", "curves", "--runs", "3", "--out", str(tmp_path)]) == 0
    assert "CartPole-v1, ES" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["CartPole-v1, PPO: env_steps to 2"] == 0  # any policy stands so long
    found = result["environments"]["CartPole-v1"]["algorithms"]
    assert found["PPO"]["runs_that_reached_it"] == found["ES"]["runs"] == 3
    assert len(found["ES"]["of_each_run"]["return"]) == 3
    assert len(found["ES"]["curve"]["mean"]) == len(found["ES"]["curve"]["env_steps"])
    assert (tmp_path / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("env_id", "target"), [("CartPole-v1", 475.0), ("Pendulum-v1", -200.0)])
def test_curves_are_of_ppo_and_evolution_as_they_can_be_followed(env_id: str, target: float) -> None:
    panel = curves.panels()[env_id]
    assert panel.target == target
    for task_id, plan in panel.recipes.values():
        task = make(task_id)
        check_plan(task, plan)
        assert isinstance(task, PolicyTask)
        assert task.setting.env_id == env_id


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("rl --runs 3", "theta bench rl: Unrecognized options: --runs, 3"),
        ("curves --runs 0", "runs is 0; expected more than 0"),
        ("storage --full", "theta bench storage: Unrecognized options: --full"),
        ("tailr --repeats 3", "theta bench tailr: Unrecognized options: --repeats, 3"),
        ("tailr --sizes 1M", "theta bench tailr: Unrecognized options: --sizes, 1M"),
        ("tailr --noises", "noises is empty; expected at least one"),
        ("training --sizes 2M", "invalid choice '2M'"),
        ("training --train-s -1", "train_s is -1.0; expected a number of seconds"),
        ("training --zoo nowhere", "no zoo at"),
        ("factory --runs-per-actor 5", "theta bench factory: Unrecognized options: --runs-per-actor, 5"),
        ("factory --tasks nothing-v0", "no task is left to measure"),
        ("factory --repeats 0", "repeats is 0"),
        ("factory --zoo runs/zoo", "theta bench factory: Unrecognized options: --zoo, runs/zoo"),
        ("curves --runs 3 4", "theta bench curves: Unrecognized options: 4"),
        ("memorisation", "theta bench memorisation: needs --zoo, whose runs are trained on"),
        ("memorisation --zoo nowhere", "no zoo at"),
        ("memorisation --zoo a --runs 1 4", "runs are (1, 4); expected numbers of 2 or more, each once"),
        ("memorisation --zoo a --runs 4 4", "runs are (4, 4); expected numbers of 2 or more, each once"),
        ("memorisation --zoo a --sizes 1M 3M", "sizes are ('1M', '3M'); expected one"),
        ("memorisation --zoo a --steps 0", "steps is 0; expected more than 0"),
        ("samplers --zoo runs/zoo", "theta bench samplers: needs --generator and --zoo"),
        ("samplers --generator a --zoo b --evaluations 0", "evaluations is (0,)"),
        ("samplers --generator a --zoo b --num-prompts 1", "num_prompts 1; expected at least 1 and 2"),
        ("generator", "theta bench generator: needs --zoo, the zoo to train both on"),
        ("generator --zoo nowhere", "no zoo at"),
        ("generator --zoo b --cpu-seconds 0", "cpu_seconds is 0.0; expected more than 0"),
        ("samplers --generator a --zoo b --num-seeds 2", "Unrecognized options: --num-seeds, 2"),
        ("everything", "unknown benchmark 'everything'; expected one of factory, storage, scaling, "),
        ("memorization", "unknown benchmark 'memorization'; did you mean 'memorisation'? expected one of"),
        ("--repeats 3", "theta bench: name a benchmark before its options, as in `theta bench factory "),
    ],
)
def test_bad_input_is_refused_in_one_line(
    flags: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", *flags.split(), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.split())
    assert len([line for line in error.splitlines() if line.startswith("theta ")]) == 1


@pytest.mark.parametrize("args", ["bench", "bench --help", "bench -h"])
def test_the_overview_has_a_line_for_every_benchmark(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (measures, takes) in BENCHMARKS.items():
        assert [line.split() for line in lines if line.startswith(f" {name} ")] == [
            [name, *measures.split(), *takes.split()]
        ]


def test_the_overview_and_help_cost_no_import_of_what_they_need_not() -> None:
    """Neither torch for the overview nor Ray for a benchmark that has no use of it."""
    for args, unused in ((["bench"], {"torch", "ray"}), (["bench", "factory", "--help"], {"ray"})):
        code = f"import atexit, sys; atexit.register(lambda: print({unused} & set(sys.modules)))\n"
        code += f"from cluster.cli import run; run({args})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("set()\n")


def test_theta_runs_in_a_process_of_its_own() -> None:
    assert run_theta("info", "--help") > 10  # MB
    with pytest.raises(ValueError, match="`theta inof` failed: theta inof: unknown command 'inof'"):
        run_theta("inof")


def test_samplers_are_measured_printed_and_drawn(
    digits: Task,
    digits_zoo: Zoo,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samplers, "MOMENT_PAIRS", 16)
    generator = fitted(digits, digits_zoo, DiTConfig(width=16, depth=1, heads=2))
    randomise(generator.model)
    generator.save(tmp_path / "generator", training={}, card="")
    flags = f"--generator {tmp_path / 'generator'} --zoo {digits_zoo.path} --out {tmp_path / 'bench'}"
    small = "--evaluations 1 3 --num-networks 2 --num-prompts 2"
    assert run(["bench", "samplers", *flags.split(), *small.split()]) == 0
    shown = capsys.readouterr()
    assert "measuring how uncertain predictions are" in shown.err
    assert "extended-ddpm, optimal, 3" in shown.out
    result = json.loads((tmp_path / "bench" / "result.json").read_text())
    found = {(row["sampler"], row["trajectory"], row["evaluations"]) for row in result["samplers"]}
    expected = {(name, "even", n) for name in SAMPLERS for n in (1, 3)}
    assert found == expected | {(name, "optimal", 3) for name in ("ddim", "extended-ddpm")}
    for row in result["samplers"]:
        assert set(row["tensors"]) == set(digits.spec.names)
        assert row["wasserstein"] > 0
    once = {row["prompt_alignment"] for row in result["samplers"] if row["evaluations"] == 1}
    assert len(once) == 1, "with one evaluation all give the mean"
    assert (tmp_path / "bench" / "samplers.png").read_bytes()[:4] == b"\x89PNG"


def test_training_steps_are_measured_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--sizes 0.1M --train-s 0 --repeats 2 --seconds 1e-3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "ZOO_RUNS", 8)
        assert run(["bench", "training", *flags.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert f"0.1M {result['0.1M auto']}, auto" in shown
    assert result["models"]["0.1M"]["parameters"] == 88_608
    assert set(result["steps"]) == {"0.1M float32", "0.1M bfloat16"}
    assert [len(result["samples"][f"0.1M {p} step_s"]) for p in ("float32", "bfloat16")] == [2, 2]
    for each in result["steps"].values():
        assert 0 < each["products_share_of_step"] < 1.5  # both are noisy where steps are so short
        assert 0 < each["drawing_share_of_step"] < 1
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"], "the zoo is gone"


@pytest.mark.slow
def test_the_wait_for_data_is_that_of_a_real_training(digits_zoo: Zoo, tmp_path: Path) -> None:
    found = training.real_training("0.1M", digits_zoo, None, 2.0, tmp_path / "generator")
    assert found["steps"] > 0
    assert 0 <= found["data_wait_share"] < 1
    assert found["train_s"] >= 2
    assert found["precision"] in ("float32", "bfloat16")


def test_throughput_adds_up_what_each_actor_makes_in_its_own_time() -> None:
    def report(pid: int, started: float, wall_s: float) -> dict:
        return {"host": "a", "pid": pid, "started": started, "wall_s": wall_s, "runs": 10}

    log = [report(1, 0.0, 4.0), report(1, 5.0, 5.0), report(2, 3.0, 5.0)]  # 20 in 10 s, 10 in 5 s
    assert throughput(log) == 4.0
    assert span_s(log) == 15.0  # of which the units took 14


@pytest.mark.slow
def test_scaling_is_measured_with_rays_of_their_own(tmp_path: Path) -> None:
    found = measure_scaling(128, 1, tmp_path) | measure_memory((64, 256), tmp_path)
    assert found["speedup"] == found["runs_per_s_2"] / found["runs_per_s_1"]
    assert set(found["driver_peak_rss_mb"]) == {"64", "256"}
    assert all(value > 10 for value in found["driver_peak_rss_mb"].values())
    assert list(tmp_path.iterdir()) == []


def test_scaling_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_zoo(out: Path, *flags: object) -> float:
        out.mkdir()
        actors = int(str(flags[-1])) if "--num-cpus" in flags else 1
        for pid in range(actors):
            report = {"host": "a", "pid": pid, "started": 1.0, "wall_s": 4.0, "cpu_s": 3.0, "runs": 12}
            with (out / scaling.LOG).open("a") as log:
                log.write(json.dumps(report) + "\n")
        return 100.0 + int(str(flags[1])) / 1000

    monkeypatch.setattr(scaling, "make_zoo", make_zoo)
    assert run(["bench", "scaling", "--num-runs", "10000", "1000", "--out", str(tmp_path)]) == 0
    assert "10,000 runs" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["runs_per_s_1"], result["runs_per_s_2"], result["speedup"]) == (3, 6, 2)
    assert (result["cpu_s_per_run_2"], result["cpu_share_2"]) == (0.25, 0.75)
    assert (result["idle_share_2"], result["speedup_by_cpu_time"]) == (0, 2)
    assert result["driver_peak_rss_mb"] == {"1000": 101, "10000": 110}
    assert result["driver_growth_mb_per_1000_runs"] == 1
