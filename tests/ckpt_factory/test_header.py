"""ZooHeader: what a zoo holds and by which recipe, of runs made here or imported; and such zoos."""

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import duckdb
import pytest
import torch

from ckpt_factory import Rows, RunPlan, Task, make, train_stack
from ckpt_factory.card import recipe_facts, zoo_card, zoo_summary
from ckpt_factory.header import Imported, ZooHeader
from ckpt_factory.interchange.dataset_card import dataset_card
from ckpt_factory.plan import InitName
from ckpt_factory.tasks.base import seeded
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import Zoo
from tests.conftest import write_zoo

DIVERSE = RunPlan(
    seed=2,
    num_steps=12,
    batch_size=(8, 16),
    lr=(0.05, 0.2),
    momentum=(0.5, 0.9),
    init=get_args(InitName),
    label_noise=(0.0, 0.3),
    data_fraction=(0.5, 1.0),
    loss=("cross-entropy", "tailr"),
    gamma=(0.1, 0.5),
    schedule_every=3,
    group_size=2,
    block_size=4,
    num_checkpoints=5,
    spacing="random",
    hyper={"clip": (0.1, 0.3), "discount": (0.9, 0.9)},
)
IMPORTED = Imported(source="hub of somebody", num_checkpoints=4, group_size=2)


def header_of(task: Task, plan: RunPlan | Imported) -> ZooHeader:
    made = ZooHeader.of_task(task, RunPlan(), num_runs=10, stack_size=4, dtype="float32")
    return replace(made, plan=plan)


@pytest.mark.parametrize("plan", [DIVERSE, RunPlan(), IMPORTED])
def test_a_header_round_trips_through_json(digits: Task, plan: RunPlan | Imported) -> None:
    header = header_of(digits, plan)
    again = ZooHeader.from_json(header.to_json())
    assert again == header
    assert type(again.plan) is type(plan)
    assert again.plan == plan
    assert again.to_json() == header.to_json()
    json.loads(header.to_json(), parse_constant=pytest.fail)  # no NaN or Infinity, which are no json


@pytest.mark.parametrize("plan", [DIVERSE, IMPORTED])
def test_units_are_the_runs_in_sequence(digits: Task, plan: RunPlan | Imported) -> None:
    header = header_of(digits, plan)
    assert header.num_units == 3
    assert [list(header.run_ids(unit)) for unit in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for unit in range(3):
        assert [run.run_id for run in header.unit_runs(unit)] == list(header.run_ids(unit))
        assert [run.order_id for run in header.unit_runs(unit)] == [i // 2 for i in header.run_ids(unit)]


def test_settings_of_a_units_runs_are_those_drawn_and_those_shared(digits: Task) -> None:
    settings = header_of(digits, DIVERSE).unit_settings(1)
    for run_id, found in zip(range(4, 8), settings, strict=True):
        run = DIVERSE.run(run_id)
        own = {name: value for name, value in vars(run).items() if name != "hyper"} | run.hyper
        assert {name: found[name] for name in own} == own
        shared = {name: value for name, value in found.items() if name not in own}
        assert shared == {
            "seed": 2,
            "num_steps": 12,
            "schedule": "cosine",
            "schedule_every": 3,
            "precision": "float32",
        }
    assert header_of(digits, IMPORTED).unit_settings(2, ["a", "b"]) == [
        {"run_id": 8, "order_id": 4, "source": "hub of somebody", "name": "a"},
        {"run_id": 9, "order_id": 4, "source": "hub of somebody", "name": "b"},
    ]


def test_headers_without_hyper_parameters_are_what_they_were_before_there_were_any(digits: Task) -> None:
    """Shards carry the checksum of zoo.json: a zoo made before goes on with the same bytes."""
    before = header_of(digits, RunPlan()).to_json()
    assert "hyper" not in before
    assert ZooHeader.from_json(before).plan == RunPlan()
    assert "hyper" not in header_of(digits, RunPlan()).unit_settings(0)[0]
    assert json.loads(header_of(digits, DIVERSE).to_json())["plan"]["hyper"]["clip"] == [0.1, 0.3]


def test_headers_of_tasks_that_use_all_settings_are_what_they_were(digits: Task) -> None:
    """As above; only tasks without labels say what they have no use for."""
    assert "unused" not in header_of(digits, RunPlan()).to_json()
    header = header_of(make("quadratic-v0"), RunPlan())
    assert header.unused == ("label_noise", "data_fraction", "loss", "gamma")
    assert ZooHeader.from_json(header.to_json()) == header
    with pytest.raises(ValueError, match=r"unused is \('lr',\); expected some of label_noise, data_fraction"):
        replace(header, unused=("lr",))


def test_imported_runs_cannot_be_made_anew(digits: Task) -> None:
    assert header_of(digits, DIVERSE).runs_plan is DIVERSE
    with pytest.raises(ValueError, match="imported from hub of somebody: its runs cannot be made anew"):
        _ = header_of(digits, IMPORTED).runs_plan


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_checkpoints": 0}, "num_checkpoints is 0; expected at least 1"),
        ({"group_size": 0}, "group_size is 0; expected at least 1"),
    ],
)
def test_an_impossible_import_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(IMPORTED, **fields)


def test_held_out_imported_runs_are_whole_groups(digits: Task) -> None:
    assert header_of(digits, IMPORTED).num_training_runs(0.1) == 8
    assert header_of(digits, IMPORTED).num_training_runs(0.4) == 6
    with pytest.raises(ValueError, match="num_runs is 9; expected a positive multiple of group_size 2"):
        replace(header_of(digits, IMPORTED), num_runs=9)


@pytest.fixture(scope="module")
def diverse_zoo(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return write_zoo(tmp_path_factory.mktemp("zoos") / "diverse", digits, DIVERSE, num_runs=10, stack_size=4)


def test_steps_that_differ_from_run_to_run_round_trip(digits: Task, diverse_zoo: Zoo) -> None:
    zoo = Zoo.open(diverse_zoo.path)
    for unit in range(3):
        ids = zoo.header.run_ids(unit)
        made, read = train_stack(digits, DIVERSE, DIVERSE.runs(ids)), zoo.read_unit(unit)
        assert read.run_ids.tolist() == list(ids)
        assert read.steps.tolist() == made.steps.tolist() == [DIVERSE.steps(run_id) for run_id in ids]
        assert torch.equal(read.theta, made.theta)
        for name, values in made.metrics.items():
            assert torch.equal(read.metrics[name], values)
        columns = zoo.read_metrics(unit)
        assert columns["step"].tolist() == made.steps.flatten().tolist()
    assert len({tuple(DIVERSE.steps(run_id)) for run_id in range(10)}) == 10
    query = f"select step from '{zoo.path}/checkpoints/**/*.parquet' where run_id = 9 order by step"
    assert [row[0] for row in duckdb.sql(query).fetchall()] == DIVERSE.steps(9)


def test_the_runs_table_has_a_column_for_all_that_varies(diverse_zoo: Zoo) -> None:
    table = diverse_zoo.read_runs()
    rows = table.to_pylist()
    assert len(rows) == 10
    for run_id, row in enumerate(rows):
        run = DIVERSE.run(run_id)
        own = {name: value for name, value in vars(run).items() if name != "hyper"} | run.hyper
        assert {name: row[name] for name in own} == own
        assert (row["seed"], row["schedule_every"], row["status"]) == (2, 3, "finished")
    for name in ("batch_size", "init", "loss", "label_noise", "data_fraction", "gamma", "clip"):
        assert len(set(table[name].to_pylist())) > 1, name
    column = "final_" + diverse_zoo.header.prompted
    query = f"select loss, min({column}) from '{diverse_zoo.path}/runs/*.parquet' group by loss order by loss"
    expected = [
        (loss, min(row[column] for row in rows if row["loss"] == loss)) for loss in ("cross-entropy", "tailr")
    ]
    assert duckdb.sql(query).fetchall() == expected


def imported_rows(task: Task, run_ids: range) -> Rows:
    """Networks of somebody else, each saved at steps of its own."""
    rng = seeded(run_ids[0])
    theta = 0.3 * torch.randn(len(run_ids), 4, task.spec.D, generator=rng)
    steps = torch.tensor([[0, 1 + k, 10 + k, 100 * k] for k in range(1, len(run_ids) + 1)])
    measured = task.metrics_of(theta.flatten(0, 1))
    return Rows(
        torch.tensor(run_ids), steps, theta, {name: values.view(-1, 4) for name, values in measured.items()}
    )


@pytest.fixture
def imported_zoo(digits: Task, tmp_path: Path) -> Zoo:
    zoo = Zoo.create(tmp_path / "imported", header_of(digits, IMPORTED))
    for unit in range(3):
        zoo.write_unit(unit, imported_rows(digits, zoo.header.run_ids(unit)))
    return zoo


def test_an_imported_zoo_is_read_like_any_other(digits: Task, imported_zoo: Zoo) -> None:
    zoo = Zoo.open(imported_zoo.path)
    read, given = zoo.read_unit(1), imported_rows(digits, range(4, 8))
    assert torch.equal(read.theta, given.theta)
    assert read.steps.tolist() == given.steps.tolist()
    runs = zoo.read_runs()
    assert runs["source"].to_pylist() == ["hub of somebody"] * 10
    assert runs["order_id"].to_pylist() == [i // 2 for i in range(10)]
    assert "lr" not in runs.column_names
    assert zoo_summary(zoo)["checkpoints"] == 40
    assert "imported from hub of somebody" in zoo_card(zoo)


def test_an_imported_zoo_is_verified_by_its_metrics(digits: Task, imported_zoo: Zoo) -> None:
    parts = [verify_unit(imported_zoo, digits, unit, sample=100) for unit in range(3)]
    found = merge(imported_zoo, parts)
    assert found.problems == []
    assert (found.remeasured, found.worst_difference) == (40, pytest.approx(0, abs=1e-6))
    wrong = imported_rows(digits, range(4, 8))
    wrong.metrics["test_error"][2, 1] += 0.1
    imported_zoo.write_unit(1, wrong)
    (problem,) = verify_unit(imported_zoo, digits, 1, sample=100).problems
    assert "test_error measured again differs by" in problem


def test_a_zoo_is_not_continued_by_another_kind_of_recipe(
    digits: Task, imported_zoo: Zoo, diverse_zoo: Zoo
) -> None:
    with pytest.raises(ValueError, match=r"holds another zoo, with .*num_steps None \(now 12\)"):
        Zoo.create(imported_zoo.path, header_of(digits, DIVERSE))
    with pytest.raises(ValueError, match=r"source None \(now hub of somebody\)"):
        Zoo.create(diverse_zoo.path, header_of(digits, IMPORTED))


def test_theta_of_another_dtype_than_the_zoos_is_refused(digits: Task, tmp_path: Path) -> None:
    """Its bytes would be taken for twice as many numbers."""
    header = replace(header_of(digits, IMPORTED), dtype="bfloat16")
    zoo, rows = Zoo.create(tmp_path, header), imported_rows(digits, range(4))
    with pytest.raises(ValueError, match=r"holds theta as bfloat16, got torch\.float32"):
        zoo.write_unit(0, rows)
    assert zoo.finished_units() == []
    zoo.write_unit(0, rows._replace(theta=rows.theta.bfloat16()))
    assert torch.equal(zoo.read_unit(0).theta, rows.theta.bfloat16())


def test_recipe_facts_say_what_varies() -> None:
    facts = recipe_facts(replace(DIVERSE, optimizer=("sgd", "lion"), precision="bfloat16"))
    assert facts["optimizer"] == "one of sgd, lion, momentum 0.5 to 0.9"
    assert facts["steps"].startswith("12 of batch one of 8, 16; each 2 runs in sequence share")
    assert facts["learning rate"] == "0.05 to 0.2 as of SGD, cosine, changed every 3 steps"
    assert facts["weight decay"] == "0.0005 as of SGD"
    assert facts["initialisation"] == "one of default, kaiming, xavier, orthogonal, scale 1, seed 2"
    assert facts["loss"] == "one of cross-entropy, tailr with gamma 0.1 to 0.5"
    assert facts["label noise"] == "0 to 0.3"
    assert facts["share of the data"] == "0.5 to 1"
    assert facts["saved"] == "5 checkpoints a run, at steps drawn for each run"
    assert facts["precision"] == "bfloat16"


def test_cards_count_what_was_drawn_and_not_what_could_have_been(digits: Task, tmp_path: Path) -> None:
    plan = RunPlan(num_steps=2, num_checkpoints=2, optimizer=("sgd", "adamw", "lion"), batch_size=(8, 16))
    zoo = write_zoo(tmp_path, digits, plan, num_runs=5, stack_size=5)  # one block
    run = plan.run(0)
    facts = recipe_facts(plan, zoo.read_runs())
    assert facts["optimizer"].count("(0 runs)") == 2
    assert f"{run.optimizer} (5 runs)" in facts["optimizer"]
    assert f"{run.batch_size} (5 runs)" in facts["steps"]
    for card in (zoo_card(zoo), dataset_card(zoo)):
        assert facts["optimizer"] in card
        assert "one of" not in card


def test_a_zoo_is_not_measured_on_other_data(digits: Task) -> None:
    header = replace(header_of(digits, RunPlan()), inputs=digits.inputs)
    header.check_inputs(digits)
    with pytest.raises(ValueError, match="this data is not what the zoo was made on: its inputs are pixels"):
        replace(header, inputs="pixels / 255").check_inputs(digits)


def test_recipe_facts_leave_out_what_is_ordinary() -> None:
    facts = recipe_facts(RunPlan())
    assert not {"loss", "label noise", "share of the data"} & set(facts)
    assert facts["optimizer"] == "sgd, momentum 0.9"
    assert facts["steps"] == "450 of batch 32; every run has a batch order of its own"
    assert facts["learning rate"] == "0.1 as of SGD, cosine"
    assert facts["saved"] == "35 checkpoints a run, at log-spaced steps"
    assert recipe_facts(IMPORTED) == {
        "source": "imported from hub of somebody; `name` is what it calls a run",
        "saved": "4 checkpoints a run",
        "metrics": "as the source gives them",
    }


@pytest.mark.parametrize("spacing", ["log", "uniform", "random", "metric"])
def test_every_spacing_has_words(spacing: str) -> None:
    words = {recipe_facts(RunPlan(spacing=s))["saved"] for s in ("log", "uniform", "random", "metric")}
    assert len(words) == 4
    assert recipe_facts(RunPlan(spacing=spacing))["saved"] in words


@pytest.mark.parametrize("plan", [DIVERSE, IMPORTED])
def test_no_fact_of_a_recipe_is_taken_for_a_number_of_the_summary(
    diverse_zoo: Zoo, plan: RunPlan | Imported
) -> None:
    """`theta info` shows both in one table."""
    assert not {name.replace(" ", "_") for name in recipe_facts(plan)} & set(zoo_summary(diverse_zoo))
