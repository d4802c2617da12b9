"""Zoos of policies: made, resumed, verified to the last bit, their returns spread over the range."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, make, train_stack
from ckpt_factory.card import zoo_card
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import HEADER, Zoo
from rl_tasks.tasks import PolicyTask
from tests.conftest import write_zoo

PLAN = RunPlan(
    num_steps=64,
    batch_size=(128,),
    optimizer=("adamw",),
    lr=(0.1, 0.2),
    weight_decay=(0.0, 0.0),
    hyper={"clip": (0.1, 0.3), "value_lr": (0.01, 0.01)},
    num_checkpoints=6,
    spacing="metric",
)


@pytest.fixture(scope="module")
def task() -> PolicyTask:
    made = make("rl_tasks:cartpole-v0?max_steps=100&episodes=4")
    assert isinstance(made, PolicyTask)
    return made


@pytest.fixture(scope="module")
def zoo(task: PolicyTask, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("zoos") / "policies", task, PLAN, num_runs=6, stack_size=3)


def test_a_zoo_says_what_it_holds(task: PolicyTask, zoo: Zoo) -> None:
    header = Zoo.open(zoo.path).header
    assert header.prompted == "validation_return"
    assert header.objective == "max"
    assert {"validation_return", "test_deterministic_return_std", "test_episodes"} <= set(header.metrics)
    runs = zoo.read_runs()
    assert runs["clip"].to_pylist() == [PLAN.run(k).hyper["clip"] for k in range(6)]
    assert set(runs["status"].to_pylist()) == {"finished"}
    returns = zoo.read_unit(0).metrics["validation_return"]
    assert (returns[:, -1] > returns[:, 0]).all()


def test_what_is_about_labels_is_null_in_the_runs_table_of_policies(zoo: Zoo) -> None:
    """They have no cross-entropy, nor anything drawn or left out of their data."""
    runs = zoo.read_runs()
    for name in ("loss", "gamma", "label_noise", "data_fraction"):
        assert runs[name].null_count == len(runs) == 6, name
    assert pa.types.is_string(runs.schema.field("loss").type)
    assert not runs.schema.field("lr").nullable
    assert zoo.header.unused == ("label_noise", "data_fraction", "loss", "gamma")
    assert "loss, gamma null: the task has no use for them" in zoo_card(zoo)


def test_a_zoo_of_before_there_were_nulls_goes_on_as_it_began(
    task: PolicyTask, zoo: Zoo, tmp_path: Path
) -> None:
    """Its zoo.json, whose checksum its shards carry, stays; new shards are like the old ones."""
    before = Zoo.create(tmp_path, replace(zoo.header, unused=()))
    text = (tmp_path / HEADER).read_text()
    assert "unused" not in text
    before.write_unit(0, zoo.read_unit(0))
    resumed = Zoo.create(tmp_path, zoo.header)
    resumed.write_unit(1, zoo.read_unit(1))
    assert (tmp_path / HEADER).read_text() == text
    assert resumed.read_runs()["loss"].to_pylist() == ["cross-entropy"] * 6
    assert merge(resumed, [verify_unit(resumed, task, unit, sample=3) for unit in (0, 1)]).ok


def test_what_another_zoos_header_leaves_out_counts_too(zoo: Zoo) -> None:
    text = (zoo.path / HEADER).read_text()
    with pytest.raises(ValueError, match=r"holds another zoo, with unused \['label_noise', .*\(now \[\]\)"):
        Zoo.create(zoo.path, replace(zoo.header, unused=()))
    with pytest.raises(ValueError, match=r"holds another zoo, with hyper \{'clip': .*\(now \{\}\)"):
        Zoo.create(zoo.path, replace(zoo.header, plan=replace(PLAN, hyper={})))
    assert (zoo.path / HEADER).read_text() == text


def test_returns_measured_again_are_the_same_bits(task: PolicyTask, zoo: Zoo) -> None:
    for unit in (0, 1):
        found = verify_unit(zoo, task, unit, sample=9)
        assert found.ok
        assert found.remeasured == 9
        assert found.worst_difference == 0


def test_few_returns_may_be_another_processors_but_not_many(
    task: PolicyTask, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an action hangs on the last bit of a sum, the rest of the episode does."""
    measure = task.metrics_of

    def elsewhere(wrong: int) -> list[str]:
        def metrics_of(theta: Tensor) -> dict[str, Tensor]:
            found = measure(theta)
            found["test_return"][:wrong] += 30
            return found

        monkeypatch.setattr(task, "metrics_of", metrics_of)
        return verify_unit(zoo, task, 0, sample=18).problems

    assert elsewhere(1) == []
    assert "test_return measured again differs by" in elsewhere(2)[0]
    monkeypatch.setattr(task, "sensitive", 0.0)
    assert "test_return measured again differs by" in elsewhere(1)[0]


def test_checkpoints_cover_the_range_of_returns_more_evenly_than_log_spaced_ones(task: PolicyTask) -> None:
    plan = replace(PLAN, num_checkpoints=12)

    def gap(plan: RunPlan) -> Tensor:
        """The largest part of each run's range of returns that no checkpoint is in."""
        values = train_stack(task, plan, plan.runs(range(4))).metrics["validation_return"].sort(1).values
        return values.diff(dim=1).amax(1) / (values[:, -1] - values[:, 0])

    assert gap(plan).median() < gap(replace(plan, spacing="log")).median()


def test_the_pilot_chooses_and_the_full_measure_is_stored(
    task: PolicyTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("pilot_metric", "metrics_of"):
        original = getattr(task, name)

        def counted(theta: Tensor, name: str = name, original=original):
            seen.append((name, len(theta)))
            return original(theta)

        monkeypatch.setattr(task, name, counted)
    rows = train_stack(task, PLAN, PLAN.runs(range(2)))
    assert seen == [("pilot_metric", 2 * 24), ("metrics_of", 2 * 6)]
    again = task.metrics_of(rows.theta.flatten(0, 1))
    assert torch.equal(rows.metrics["validation_return"].flatten(), again["validation_return"])


def test_the_same_plan_makes_the_same_bytes(task: PolicyTask, zoo: Zoo, tmp_path: Path) -> None:
    again = write_zoo(tmp_path / "again", task, PLAN, num_runs=6, stack_size=3)
    for unit in (0, 1):
        assert again.checkpoints_path(unit).read_bytes() == zoo.checkpoints_path(unit).read_bytes()
