"""Zoo: shards that appear whole or not at all, whose bytes follow from the header, and that all can read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from ckpt_factory import ParamSpec, Rows, RunPlan, Task, make, train_stack
from ckpt_factory.verify import verify_unit
from ckpt_factory.zoo import Zoo, ZooHeader
from tests.conftest import write_zoo

PLAN = RunPlan(num_steps=20, num_checkpoints=5, lr=(0.05, 0.2))


def header_of(task: Task, *, plan: RunPlan = PLAN, dtype: str = "float32") -> ZooHeader:
    return ZooHeader.of_task(task, plan, num_runs=6, stack_size=4, dtype=dtype)


def stack_of(zoo: Zoo, task: Task, unit: int) -> Rows:
    plan = zoo.header.runs_plan
    dtype = getattr(torch, zoo.header.dtype)
    return train_stack(task, plan, plan.runs(zoo.header.run_ids(unit)), dtype=dtype)


@pytest.fixture
def task() -> Task:
    return make("quadratic-v0")


@pytest.fixture
def quadratic_zoo(task: Task, tmp_path: Path) -> Zoo:
    return write_zoo(tmp_path / "zoo", task, PLAN, num_runs=6, stack_size=4)


def files_of(zoo: Zoo) -> dict[str, bytes]:
    paths = sorted(path for path in zoo.path.rglob("*") if path.is_file())
    return {path.relative_to(zoo.path).as_posix(): path.read_bytes() for path in paths}


def test_columns_of_the_runs_table_are_worked_out_once(
    quadratic_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, settings = [], ZooHeader.unit_settings
    monkeypatch.setattr(
        ZooHeader, "unit_settings", lambda header, unit: asked.append(unit) or settings(header, unit)
    )
    zoo = Zoo.open(quadratic_zoo.path)
    assert len(zoo.read_runs()) == len(zoo.read_runs()) == 6
    assert asked == [0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(task: Task, tmp_path: Path, dtype: str) -> None:
    zoo = Zoo.create(tmp_path, header_of(task, dtype=dtype))
    rows = stack_of(zoo, task, 0)
    counts = zoo.write_unit(0, rows)
    assert (counts["runs"], counts["checkpoints"], counts["diverged"]) == (4, 20, 0)
    read = Zoo.open(tmp_path).read_unit(0)
    assert read.run_ids.tolist() == [0, 1, 2, 3]
    assert read.steps.tolist() == rows.steps.tolist() == [PLAN.steps()] * 4
    assert read.theta.dtype == getattr(torch, dtype)
    assert torch.equal(read.theta, rows.theta)
    for name, values in rows.metrics.items():
        assert torch.equal(read.metrics[name], values)


def test_the_last_unit_may_be_smaller(quadratic_zoo: Zoo) -> None:
    assert quadratic_zoo.header.num_units == 2
    assert quadratic_zoo.read_unit(1).run_ids.tolist() == [4, 5]


def test_header_round_trip(digits: Task) -> None:
    header = ZooHeader.of_task(digits, PLAN, num_runs=6, stack_size=3, dtype="bfloat16")
    again = ZooHeader.from_json(header.to_json())
    assert again == header
    assert again.plan == PLAN
    assert isinstance(again.spec, ParamSpec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float64"}, "dtype is 'float64'; expected one of float32"),
        ({"num_runs": 0}, "num_runs is 0"),
        ({"num_runs": 7, "plan": replace(PLAN, group_size=2)}, "multiple of group_size 2"),
        ({"stack_size": 3, "plan": replace(PLAN, group_size=2)}, "stack_size is 3.*group_size 2"),
    ],
)
def test_impossible_headers_are_refused(task: Task, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(header_of(task), **fields)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writing_a_unit_twice_gives_the_same_bytes(task: Task, tmp_path: Path, dtype: str) -> None:
    zoo = Zoo.create(tmp_path, header_of(task, dtype=dtype))
    zoo.write_unit(0, stack_of(zoo, task, 0))
    before = files_of(zoo)
    zoo.write_unit(0, stack_of(zoo, task, 0))
    assert files_of(zoo) == before
    assert len(before) == 4


def test_a_resumed_zoo_equals_an_uninterrupted_one(quadratic_zoo: Zoo, task: Task, tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path / "second", quadratic_zoo.header)
    zoo.write_unit(1, stack_of(zoo, task, 1))  # in another order, too
    assert zoo.finished_units() == [1]
    again = Zoo.create(tmp_path / "second", quadratic_zoo.header)
    for unit in set(range(again.header.num_units)) - set(again.finished_units()):
        again.write_unit(unit, stack_of(again, task, unit))
    assert again.finished_units() == [0, 1]
    assert files_of(again) == files_of(quadratic_zoo)


def test_an_exception_while_training_leaves_nothing(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = Zoo.create(tmp_path, header_of(task))
    loss, calls = type(task).loss, []

    def interrupted(self: Task, theta: Tensor, batch: object) -> Tensor:
        calls.append(theta)
        if len(calls) == 10:  # after the first of its checkpoints
            raise KeyboardInterrupt
        return loss(self, theta, batch)

    monkeypatch.setattr(type(task), "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        zoo.write_unit(0, stack_of(zoo, task, 0))
    assert set(files_of(zoo)) == {"zoo.json"}


@pytest.mark.parametrize("at", [1, 2])
def test_an_exception_while_writing_leaves_no_partial_file(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    zoo = Zoo.create(tmp_path, header_of(task))
    rows, write_table, calls = stack_of(zoo, task, 0), pq.write_table, []

    def failing(table, where, **options):
        calls.append(where)
        write_table(table, where, **options)
        if len(calls) == at:
            raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", failing)
    with pytest.raises(OSError, match="no space left"):
        zoo.write_unit(0, rows)
    assert len(calls) == at
    assert zoo.finished_units() == []
    whole = {"zoo.json"} | ({zoo.checkpoints_path(0).relative_to(tmp_path).as_posix()} if at == 2 else set())
    assert set(files_of(zoo)) == whole


def test_files_of_a_killed_writer_are_neither_read_nor_kept(quadratic_zoo: Zoo) -> None:
    shard = quadratic_zoo.checkpoints_path(0)
    leftover = shard.with_name(f".tmp-{shard.name}-{'0123abcd' * 4}")
    foreign = quadratic_zoo.path / ".tmp-of-the-user"
    foreign.touch()
    leftover.write_bytes(shard.read_bytes()[:100])
    assert len(ds.dataset(quadratic_zoo.path / "checkpoints", partitioning="hive").to_table()) == 30
    Zoo.create(quadratic_zoo.path, quadratic_zoo.header)
    assert not leftover.exists()
    assert foreign.exists(), "only what a zoo's writer leaves is swept"


def test_a_stack_that_is_not_the_units_is_refused(task: Task, tmp_path: Path) -> None:
    """A shard of half a stack would pass for a finished one."""
    zoo = Zoo.create(tmp_path, header_of(task))
    rows = stack_of(zoo, task, 0)
    fewer_steps = rows._replace(
        steps=rows.steps[:, :-1],
        theta=rows.theta[:, :-1],
        metrics={name: values[:, :-1] for name, values in rows.metrics.items()},
    )
    fewer_runs = Rows(
        rows.run_ids[:3], rows.steps[:3], rows.theta[:3], {k: v[:3] for k, v in rows.metrics.items()}
    )
    wanted = "unit 0 is 5 checkpoints each of the runs 0 to 3, got theta"
    with pytest.raises(ValueError, match=rf"{wanted} \(4, 4, 8\)"):
        zoo.write_unit(0, fewer_steps)
    with pytest.raises(ValueError, match=rf"{wanted} \(3, 5, 8\) of the runs \[0, 1, 2\]"):
        zoo.write_unit(0, fewer_runs)
    with pytest.raises(ValueError, match=wanted):
        zoo.write_unit(0, rows._replace(run_ids=rows.run_ids.flip(0)))
    with pytest.raises(
        ValueError, match=r"unit 1 is 5 checkpoints each of the runs 4 to 5, .*\[0, 1, 2, 3\]"
    ):
        zoo.write_unit(1, rows)
    assert zoo.finished_units() == []


def test_another_config_in_the_same_folder_is_refused_with_what_differs(quadratic_zoo: Zoo) -> None:
    other = replace(quadratic_zoo.header, plan=replace(PLAN, lr=(0.1, 0.2), seed=5), num_runs=8)
    with pytest.raises(ValueError, match="holds another zoo") as error:
        Zoo.create(quadratic_zoo.path, other)
    for words in ("lr [0.05, 0.2] (now [0.1, 0.2])", "seed 0 (now 5)", "num_runs 6 (now 8)"):
        assert words in str(error.value)
    assert "momentum" not in str(error.value)
    assert "--out" in str(error.value)


def test_another_schema_version_is_refused(quadratic_zoo: Zoo) -> None:
    path = quadratic_zoo.path / "zoo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this thetaforge reads 2"):
        Zoo.open(quadratic_zoo.path)


@pytest.mark.parametrize("text", ["", "{", "[]", "17", "null", '{"schema_version": 1}', "\xff\xfe"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "zoo.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"zoo\.json|schema version"):
        Zoo.open(tmp_path)


def test_a_header_with_an_impossible_plan_says_which_file(quadratic_zoo: Zoo) -> None:
    path = quadratic_zoo.path / "zoo.json"
    path.write_text(path.read_text().replace('"num_steps": 20', '"num_steps": 0'))
    with pytest.raises(ValueError, match="num_steps is 0"):
        Zoo.open(quadratic_zoo.path)


def test_no_zoo_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="theta make --out"):
        Zoo.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match="theta make --out"):
        Zoo.create(tmp_path, header_of(make("quadratic-v0"))).read_runs()


def test_row_groups_hold_whole_runs(digits: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_bytes = 4 * digits.spec.D * len(PLAN.steps())
    monkeypatch.setattr("ckpt_factory.zoo.ROW_GROUP_BYTES", int(2.5 * run_bytes))
    zoo = write_zoo(tmp_path, digits, PLAN, num_runs=5, stack_size=5)
    assert zoo.row_groups(0) == [2, 2, 1]
    whole = zoo.read_unit(0)
    for group, ids in enumerate([[0, 1], [2, 3], [4]]):
        part = zoo.read_unit(0, [group])
        assert part.run_ids.tolist() == ids
        assert torch.equal(part.theta, whole.theta[ids])
        assert torch.equal(part.metrics["test_error"], whole.metrics["test_error"][ids])


def test_runs_of_more_than_a_row_group_have_one_each(
    digits: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt_factory.zoo.ROW_GROUP_BYTES", 1)
    assert write_zoo(tmp_path, digits, PLAN, num_runs=3, stack_size=3).row_groups(0) == [1, 1, 1]


def test_the_runs_table_says_what_every_run_was(task: Task, tmp_path: Path) -> None:
    wild = replace(PLAN, lr=(0.1, 60.0), momentum=(0.0, 0.0), num_steps=200)
    zoo = write_zoo(tmp_path, task, wild, num_runs=6, stack_size=4)
    table = zoo.read_runs().to_pylist()
    assert [row["run_id"] for row in table] == list(range(6))
    for i, row in enumerate(table):
        run = wild.run(i)
        assert (row["lr"], row["weight_decay"], row["order_id"]) == (run.lr, run.weight_decay, run.order_id)
        assert (row["num_steps"], row["optimizer"]) == (200, "sgd")
        rows = zoo.read_unit(i // 4)
        theta, losses = rows.theta[i % 4], rows.metrics["test_loss"][i % 4]
        ended_well = bool(theta.isfinite().all() and losses.isfinite().all())
        assert row["status"] == ("finished" if ended_well else "diverged")
        np.testing.assert_equal(row["final_test_loss"], float(losses[-1]))
    assert {row["status"] for row in table} == {"finished", "diverged"}


def test_a_run_that_lost_only_its_metrics_is_diverged(task: Task, tmp_path: Path) -> None:
    """1e30 is finite, its square is not."""
    zoo = Zoo.create(tmp_path, header_of(task))
    rows = stack_of(zoo, task, 0)
    rows.theta[2, -1] = 1e30
    rows.metrics["test_loss"][2, -1] = torch.inf
    assert zoo.write_unit(0, rows)["diverged"] == 1
    status = [row["status"] for row in zoo.read_runs().to_pylist()]
    assert status == ["finished", "finished", "diverged", "finished"]


def test_plain_pyarrow_and_duckdb_read_it(digits_zoo: Zoo) -> None:
    ours = digits_zoo.read_unit(1)
    column = digits_zoo.header.prompted
    folder = digits_zoo.path / "checkpoints"
    table = ds.dataset(folder, partitioning="hive").to_table(filter=ds.field("run_id") == 9)
    assert set(table["task"].to_pylist()) == {"digits-mlp-v0"}
    theta = np.stack([np.asarray(row) for row in table["theta"].combine_chunks().to_numpy_ndarray()])
    assert np.array_equal(theta, ours.theta[1].numpy())
    query = f"select step, {column}, theta from '{folder}/**/*.parquet' where run_id = 9 order by step"
    rows = duckdb.sql(query).fetchall()
    assert [row[0] for row in rows] == digits_zoo.header.plan.steps()
    assert [row[1] for row in rows] == ours.metrics[column][1].tolist()
    assert list(rows[-1][2]) == ours.theta[1, -1].tolist()


def test_16_bit_theta_is_the_documented_bytes(task: Task, tmp_path: Path) -> None:
    zoo = write_zoo(tmp_path, task, PLAN, num_runs=4, stack_size=4, dtype="bfloat16")
    table = pq.read_table(zoo.checkpoints_path(0), partitioning=None)
    content = table["theta"][7].as_py()
    upper = np.frombuffer(content, "<u2").astype(np.uint32) << 16  # bfloat16: the upper half of a float32
    assert np.array_equal(upper.view(np.float32), zoo.read_unit(0).theta[1, 2].float().numpy())


def test_metrics_are_read_without_parameters(digits_zoo: Zoo) -> None:
    whole, metrics = digits_zoo.read_unit(2), digits_zoo.read_metrics(2)
    assert set(metrics) == {"run_id", "step", *digits_zoo.header.metrics}
    for name, values in whole.metrics.items():
        assert torch.equal(metrics[name], values.flatten())
    assert metrics["run_id"].tolist() == [i for i in range(16, 24) for _ in range(8)]
    assert metrics["step"].tolist() == whole.steps.flatten().tolist()


def test_a_shard_of_another_task_is_refused(digits_zoo: Zoo, quadratic_zoo: Zoo) -> None:
    shutil.copy(digits_zoo.checkpoints_path(0), quadratic_zoo.checkpoints_path(0))
    with pytest.raises(ValueError, match="is of task 'digits-mlp-v0'"):
        quadratic_zoo.read_unit(0)


def test_task_ids_with_a_module_make_plain_folders(task: Task, tmp_path: Path) -> None:
    zoo = Zoo.create(tmp_path, replace(header_of(task), task="rl_tasks:cartpole-v0"))
    assert zoo.checkpoints_path(17).relative_to(tmp_path).as_posix() == (
        "checkpoints/task=rl_tasks.cartpole-v0/part-00017.parquet"
    )


def test_task_ids_with_options_are_read_back_from_the_folders_name(tmp_path: Path) -> None:
    id = "tests.ckpt_factory.option_tasks:bowl-v0?dim=3&env=a:B/C-v0%20"
    plan = RunPlan(num_steps=4, batch_size=(1,), num_checkpoints=3)
    zoo = write_zoo(tmp_path, make(id), plan, num_runs=2, stack_size=2)
    assert zoo.header.task == Zoo.open(tmp_path).header.task == id
    assert verify_unit(zoo, make(id), 0, sample=6).problems == []
    folder = tmp_path / "checkpoints"
    (child,) = folder.iterdir()
    assert child.name == f"task={quote(id, safe='')}"
    table = ds.dataset(folder, partitioning="hive").to_table()
    assert table["task"].to_pylist() == [id] * 6
    query = f"select distinct task from read_parquet('{folder}/**/*.parquet', hive_partitioning=true)"
    assert duckdb.sql(query).fetchall() == [(id,)]


@pytest.mark.parametrize(("group_size", "held_out", "training"), [(1, 0.1, 9), (1, 0.001, 9), (5, 0.1, 5)])
def test_held_out_runs_are_whole_groups_and_at_least_one(
    task: Task, group_size: int, held_out: float, training: int
) -> None:
    plan = replace(PLAN, group_size=group_size)
    header = ZooHeader.of_task(task, plan, num_runs=10, stack_size=10, dtype="float32")
    assert header.num_training_runs(held_out) == training
