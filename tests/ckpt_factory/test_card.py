"""The zoo's card: it says what is there, and its code runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.card import zoo_card, zoo_summary
from ckpt_factory.zoo import Zoo, ZooHeader
from tests.conftest import write_zoo


def test_summary_counts_what_is_there(digits_zoo: Zoo) -> None:
    summary = zoo_summary(digits_zoo)
    shards = [path.stat().st_size for path in digits_zoo.path.glob("checkpoints/*/*.parquet")]
    assert (summary["runs"], summary["checkpoints"], summary["shards"]) == (24, 24 * 8, 3)
    assert (summary["parameters"], summary["bytes"]) == (64 * 16 + 16 + 160 + 10, sum(shards))
    last = np.concatenate([digits_zoo.read_unit(u).metrics["test_error"][:, -1] for u in range(3)])
    assert summary["final"]["test_error"]["median"] == pytest.approx(np.median(last))
    assert summary["final"]["test_error"]["min"] == pytest.approx(last.min())


def test_card_mentions_the_facts(digits_zoo: Zoo) -> None:
    card = zoo_card(digits_zoo)
    summary = zoo_summary(digits_zoo)
    plan = digits_zoo.header.plan
    facts = ["digits-mlp-v0", "24 runs", "192 checkpoints", "1,210 parameters", "0 diverged", "3 of 3 shards"]
    facts += [
        f"momentum {plan.momentum[0]}",
        f"steps: {plan.num_steps} of batch 32",
        f"seed {plan.seed}",
        "learning rate: 0.1",
    ]
    facts += [
        f"{plan.num_checkpoints} checkpoints a run, at log-spaced steps",
        "| fc2.weight | [10, 16] | 1040 | 1200 |",
        "float32",
    ]
    facts += [f"{summary['final']['validation_loss']['median']:.4f}", "sha256sum -c sums/*.sha256"]
    for fact in facts:
        assert fact in card, fact


def test_the_cards_code_runs(digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", zoo_card(digits_zoo), re.DOTALL)
    monkeypatch.chdir(digits_zoo.path)
    names: dict = {}
    exec(code, names)
    assert set(names["state_dict"]) == set(digits_zoo.header.spec.names)


def test_diverged_runs_are_counted_and_left_out_of_the_metrics(tmp_path: Path) -> None:
    plan = RunPlan(num_steps=200, num_checkpoints=5, lr=(0.1, 60.0))
    zoo = write_zoo(tmp_path, make("quadratic-v0"), plan, num_runs=6, stack_size=3)
    summary = zoo_summary(zoo)
    assert 0 < summary["diverged_runs"] < 6
    assert np.isfinite(summary["final"]["test_loss"]["max"])
    assert f"{summary['diverged_runs']} diverged runs" in zoo_card(zoo)


def test_a_zoo_without_shards_has_a_card_too(digits: Task, small_plan: RunPlan, tmp_path: Path) -> None:
    header = ZooHeader.of_task(digits, small_plan, num_runs=4, stack_size=2, dtype="float32")
    assert "No shard is finished yet" in zoo_card(Zoo.create(tmp_path, header))
