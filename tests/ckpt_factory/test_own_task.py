"""The own task of the README of zoos, as it stands there."""

import importlib
import re
from pathlib import Path

import pytest

from ckpt_factory import RunPlan, check_task, make, registry, train_stack

README = Path(__file__).parents[2] / "ckpt_factory" / "README.md"


def own_task_example() -> str:
    section = README.read_text().partition("## Your own task")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


def test_it_is_short() -> None:
    assert len(own_task_example().splitlines()) < 30


def test_it_is_a_task_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(own_task_example())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    importlib.invalidate_caches()
    task = make("my_tasks:wine-v0")
    assert task.symmetry.sizes == {"P0": 16}
    assert task.notes == ()
    check_task(task)
    plan = RunPlan(num_steps=60, batch_size=(32,), num_checkpoints=2)
    error = train_stack(task, plan, plan.runs(range(4))).metrics["test_error"]
    assert error[:, 0].min() > 0.2
    # three well-separated kinds of wine, 36 of them in the test split
    assert error[:, -1].max() < 0.15
    registry.pop("wine-v0")
