"""verify on recipes that vary: what the plan saves is accepted, other steps and settings are found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import HEADER, Zoo
from tests.conftest import write_zoo

from .test_verify import edit_rows, verify, write_sums

PLAN = RunPlan(seed=1, num_steps=40, num_checkpoints=6, lr=(0.05, 0.2))


def made(path: Path, task: Task, **fields) -> Zoo:
    return write_zoo(path / "zoo", task, replace(PLAN, **fields), num_runs=6, stack_size=3)


@pytest.mark.parametrize(
    "fields",
    [
        {"spacing": "random"},
        {"spacing": "metric"},
        {"spacing": "uniform"},
        {"precision": "bfloat16"},
        {"batch_size": (8, 16), "block_size": 1, "loss": ("cross-entropy", "tailr")},
        {"init": ("kaiming", "orthogonal"), "data_fraction": (0.2, 0.9), "label_noise": (0.1, 0.5)},
    ],
)
def test_a_zoo_by_its_recipe_is_ok(digits: Task, tmp_path: Path, fields: dict) -> None:
    zoo = made(tmp_path, digits, **fields)
    found = verify(zoo.path, digits)
    assert found.problems == []
    assert found.ok
    assert found.remeasured == 36
    # products of another shape: float32 rounding, or one image of 360
    assert found.worst_difference < 4e-3


def test_metrics_are_measured_again_in_the_plans_precision(
    digits: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, with_products = [], type(digits).with_products

    def watching(self: Task, precision: str, **rest) -> Task:
        asked.append(precision)
        return with_products(self, precision, **rest)

    zoo = made(tmp_path, digits, precision="bfloat16")
    monkeypatch.setattr(type(digits), "with_products", watching)
    verify(zoo.path, digits)
    assert asked == ["bfloat16"] * 2


def problems_with(zoo: Zoo, task: Task, run: int, steps: list[int]) -> list[str]:
    """What is found when a run of the first unit is said to be of these steps."""

    def claim(columns: dict[str, np.ndarray]) -> None:
        columns["step"][6 * run : 6 * run + 6] = steps

    edit_rows(zoo, 0, claim)
    return verify(zoo.path, task, sample=0).problems


def test_random_steps_of_another_run_are_found(digits: Task, tmp_path: Path) -> None:
    zoo = made(tmp_path, digits, spacing="random")
    plan = zoo.header.runs_plan
    assert plan.steps(1) != plan.steps(2)
    (problem,) = problems_with(zoo, digits, 1, plan.steps(2))
    assert "its steps are not those of the plan" in problem


def test_one_wrong_random_step_is_found(digits: Task, tmp_path: Path) -> None:
    zoo = made(tmp_path, digits, spacing="random")
    steps = zoo.header.runs_plan.steps(2)
    assert problems_with(zoo, digits, 2, steps) == []
    for position in range(6):
        assert problems_with(zoo, digits, 2, [step + (i == position) for i, step in enumerate(steps)])


def test_steps_that_metric_spacing_cannot_have_chosen_are_found(digits: Task, tmp_path: Path) -> None:
    zoo = made(tmp_path, digits, spacing="metric", num_steps=60)
    candidates = zoo.header.runs_plan.steps()
    steps = zoo.read_unit(0).steps[1].tolist()
    assert problems_with(zoo, digits, 1, steps) == []
    others = sorted(set(range(61)) - set(candidates))
    assert others, "of 61 steps 24 are candidates"
    no_candidate = sorted({0, *others[:4], 60})
    assert problems_with(zoo, digits, 1, no_candidate)
    without_first = [*candidates[1:6], 60]
    assert problems_with(zoo, digits, 1, without_first)
    without_last = [0, *candidates[-6:-1]]
    assert problems_with(zoo, digits, 1, without_last)


def test_a_header_of_another_recipe_is_found_even_if_covered_up(digits: Task, tmp_path: Path) -> None:
    """Runs that were made with one distribution of label noise, and a zoo.json that tells of another."""
    zoo = made(tmp_path, digits, label_noise=(0.1, 0.2))
    header = json.loads((zoo.path / HEADER).read_text())
    header["plan"]["label_noise"] = [0.0, 0.0]
    (zoo.path / HEADER).write_text(json.dumps(header, indent=2) + "\n")
    for unit in range(2):
        write_sums(zoo, unit)
    problems = verify(zoo.path, digits).problems
    assert any("label_noise in the runs table is not that of plan and checkpoints" in p for p in problems)
