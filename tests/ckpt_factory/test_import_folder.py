"""Folders of state_dicts with a table of metrics become zoos; whatever is wrong is one clear line."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ckpt_factory import Task
from ckpt_factory.card import write_card
from ckpt_factory.interchange import begin_import, import_unit, open_folder
from ckpt_factory.tasks.base import seeded
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import Zoo


class Harmful:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("print('code of the file has run')",)  # print itself may be Ray's


def state(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(2, 3, generator=rng), "a.bias": torch.randn(2, generator=rng)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of two checkpoints each, in all three kinds of files, and their table."""
    folder = tmp_path / "networks"
    (folder / "b").mkdir(parents=True)
    safetensors.torch.save_file(state(0), folder / "a0.safetensors")
    torch.save(state(1), folder / "a1.pt")
    torch.save({name: value.double() for name, value in state(2).items()}, folder / "b" / "0.pth")
    torch.save({name: nn.Parameter(value) for name, value in state(3).items()}, folder / "b" / "1.pt")
    table = "file,run,step,loss,accuracy\na1.pt,first,7,0.5,0.9\na0.safetensors,first,0,2.5,0.1\n"
    (tmp_path / "metrics.csv").write_text(table + "b/0.pth,second,0,2,0.25\nb/1.pt,second,9,1,0.75\n")
    return folder


def imported(folder: Path, metrics: Path | None, task: Task | None = None, **options: object) -> Zoo:
    source = open_folder(folder, metrics, task=task)
    out = folder.parent / "zoo"
    zoo = begin_import(source, out, task=task, stack_size=1, **options)  # pyright: ignore[reportArgumentType]
    for unit in range(zoo.header.num_units):
        import_unit(zoo, source, task, unit)
    return zoo


def refused(folder: Path, table: str | None = None) -> str:
    """The one line that the folder, or another table of it, is refused with."""
    path = folder.parent / "metrics.csv"
    if table is not None:
        path.write_text(table)
    with pytest.raises(ValueError, match=str(folder.parent)) as stop:
        open_folder(folder, path)
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_networks_and_metrics_arrive_in_the_order_of_steps(folder: Path) -> None:
    zoo = imported(folder, folder.parent / "metrics.csv", prompted="accuracy", objective="max")
    assert zoo.header.spec.names == ("a.bias", "a.weight"), "as in the first file"
    assert (zoo.header.prompted, zoo.header.objective, zoo.header.task) == ("accuracy", "max", "imported")
    assert zoo.read_runs()["name"].to_pylist() == ["first", "second"]
    for unit, seeds in enumerate(((0, 1), (2, 3))):
        rows = zoo.read_unit(unit)
        assert rows.steps.tolist() == [[[0, 7]], [[0, 9]]][unit]
        for i, seed in enumerate(seeds):
            found = zoo.header.spec.unflatten(rows.theta[0, i])
            for name, value in state(seed).items():
                assert torch.equal(found[name], value)
    assert zoo.read_unit(0).metrics["loss"].tolist() == [[2.5, 0.5]]
    assert merge(zoo, [verify_unit(zoo, None, unit, sample=4) for unit in (0, 1)]).ok
    write_card(zoo)
    assert "imported from the folder networks" in (zoo.path / "README.md").read_text()


@pytest.mark.parametrize("by_file", [False, True])
def test_json_says_the_same_as_csv(by_file: bool, folder: Path) -> None:
    csv, table = folder.parent / "metrics.csv", folder.parent / "metrics.json"
    lines = [line.split(",") for line in csv.read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    rows = [row | {name: float(row[name]) for name in ("loss", "accuracy")} for row in rows]
    rows = [row | {"step": int(row["step"])} for row in rows]
    document = {row.pop("file"): row for row in rows} if by_file else rows
    table.write_text(json.dumps(document))
    from_csv, from_json = open_folder(folder, csv), open_folder(folder, table)
    assert from_json.digest == from_csv.digest
    assert torch.equal(from_json.read(1).metrics["loss"], from_csv.read(1).metrics["loss"])


def test_files_without_runs_are_runs_of_one_checkpoint(folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    table.write_text("file,loss\na1.pt,0.5\na0.safetensors,2\nb/0.pth,1\nb/1.pt,0\n")
    zoo = imported(folder, table)
    assert zoo.header.num_runs == 4
    assert zoo.header.plan.num_checkpoints == 1
    assert zoo.read_runs()["name"].to_pylist() == ["a1.pt", "a0.safetensors", "b/0.pth", "b/1.pt"]
    write_card(zoo)


def test_a_tasks_networks_are_measured_where_there_is_no_table(digits: Task, tmp_path: Path) -> None:
    folder = tmp_path / "networks"
    folder.mkdir()
    theta = digits.init([seeded(0), seeded(1)])
    for i, name in enumerate(("x.pt", "y.pt")):
        torch.save(
            {key: value.clone() for key, value in digits.spec.unflatten(theta[i]).items()}, folder / name
        )
    with pytest.raises(ValueError, match="has no metrics; give some, or --task and --evaluate"):
        imported(folder, None, digits)
    zoo = imported(folder, None, digits, evaluate=True)
    expected = digits.metrics_of(theta)
    for unit in (0, 1):
        for name, values in zoo.read_unit(unit).metrics.items():
            torch.testing.assert_close(values[0, 0], expected[name][unit])


def test_networks_of_another_shape_than_the_tasks(folder: Path, digits: Task) -> None:
    with pytest.raises(
        ValueError, match=r"missing parameters \['fc1.weight', .*unknown \['a.bias', 'a.weight'\]"
    ):
        open_folder(folder, folder.parent / "metrics.csv", task=digits)


def test_code_in_a_pickle_is_refused_and_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a.weight": Harmful()}, folder / "a1.pt")
    line = refused(folder)
    assert "first: a1.pt: it needs exec, and code in a file is never run here" in line
    assert "has run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (nn.Linear(3, 2), "it needs torch.nn.modules.linear.Linear"),
        (
            {"model": {"w": torch.zeros(2)}, "epoch": 3},
            "it holds a dict of model, epoch; expected a state_dict",
        ),
        (torch.zeros(3), "it holds Tensor; expected a state_dict"),
        (state(1) | {"count": torch.tensor(3)}, "parameter 'count' is torch.int64; expected floating point"),
        ({"a.weight": torch.zeros(2, 3)}, "missing parameters ['a.bias'], unknown []"),
        (state(1) | {"a.bias": torch.zeros(5)}, "parameter 'a.bias' has shape (5,), expected (2,)"),
        (None, "is missing"),
        (state(1) | {"a.bias": torch.ones(2).to_sparse()}, "parameter 'a.bias' is sparse, nested or without"),
        (
            state(1) | {"a.bias": torch.ones(2, device="meta")},
            "parameter 'a.bias' is sparse, nested or without",
        ),
        (state(1) | {"a.bias": torch.ones(0)}, "parameter 'a.bias' has shape (0,), no numbers"),
        (b"no zip", "it is no pickle of tensors"),
        (b"", "torch.load cannot read it"),
        (b"PK\x03\x04 and then nothing", "a1.pt: "),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
def test_files_that_are_no_fitting_state_dict(content: object, words: str, folder: Path) -> None:
    path = folder / "a1.pt"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    safetensors.torch.save_file(state(0), folder / "first.safetensors")
    table = (folder.parent / "metrics.csv").read_text()
    head, _, rest = table.partition("\n")
    line = refused(
        folder,
        f"{head}\nfirst.safetensors,zero,0,1,1\na0.safetensors,zero,3,1,1\n"
        + rest.replace("a0.safetensors,first,0,2.5,0.1\n", ""),
    )
    assert words in line
    assert "first: a1.pt" in line


def test_safetensors_that_are_none(folder: Path) -> None:
    (folder / "a0.safetensors").write_bytes(b"nothing of the kind")
    assert "a0.safetensors: it is not a readable safetensors file" in refused(folder)


ROWS = "a0.safetensors,A,0,1\na1.pt,A,5,1\nb/0.pth,B,0,1\nb/1.pt,B,5,1\n"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("name,loss\nx,1\n", "has no column file; its columns are ['name', 'loss']"),
        ("", "has no column file"),
        ("file,run,step,loss\n", "has no rows"),
        ("file,run,step,loss\n" + ROWS + "c.pt,B,9,1\n", "B: c.pt is missing"),
        (
            "file,run,step,loss\n" + ROWS.replace("b/1.pt,B,5,1\n", ""),
            "1 file not in the table; --skip-broken leaves them out: b/1.pt",
        ),
        (
            "file,run,step,loss\n" + ROWS + "a0.safetensors,C,0,1\n",
            "file a0.safetensors is in line 2 and in line 6",
        ),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,0"), "step 0 of run A is in line 2 and in line 3"),
        (
            "file,run,step,loss\n" + ROWS.replace("A,5,1", "A,5,1_0"),
            "line 3: loss is '1_0'; expected a number",
        ),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,1_0"), "line 3: step is '1_0'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,0.5"), "line 3: step is '0.5'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,nan"), "line 3: step is 'nan'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,inf"), "line 3: step is 'inf'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5,1", "A,5,"), "line 3: loss is ''; expected a number"),
        ("file,run,step,loss\n" + ROWS.replace("A,5,1", "A,5,good"), "line 3: loss is 'good'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,x"), "line 3: step is 'x'"),
        ("file,run,step,loss\n" + ROWS.replace("A,5", "A,-1"), "line 3: step is '-1'"),
        ("file,run,step,loss\n" + ROWS.replace("a1.pt,A,5,1", "a1.pt,A,5"), "line 3: expected 4 cells"),
        ("file,run,step,loss\n" + ROWS.replace("a1.pt", "../a1.pt"), "expected a path within the folder"),
        ("file,run,step,loss,loss\n", "has a column twice"),
        ("file,run,step,loss\n" + ROWS.replace("B,5,1\n", "C,5,1\n"), "A: it has 2 checkpoints, others 1"),
    ],
)
def test_tables_that_are_wrong(table: str, words: str, folder: Path) -> None:
    assert words in refused(folder, table)


@pytest.mark.parametrize(
    "document",
    [
        *("{", "3", "[" * 200_000, '[{"loss": 1}]', '[{"file": "a1.pt"}, {"file": "x", "loss": 1}]'),
        *(f'[{{"file": "a1.pt", "loss": 1{"0" * zeros}}}]' for zeros in (400, 5000)),
        *(
            f'[{{"file": "a1.pt", "loss": 1, {more}}}]'
            for more in ('"run": null', '"run": true', '"step": true')
        ),
    ],
)
def test_json_tables_that_are_wrong(document: str, folder: Path) -> None:
    path = folder.parent / "metrics.json"
    path.write_text(document)
    with pytest.raises(ValueError, match=r"metrics\.json") as stop:
        open_folder(folder, path)
    assert len(str(stop.value)) < 300


def test_broken_runs_are_left_out_where_that_is_wished(folder: Path) -> None:
    (folder / "a1.pt").unlink()
    (folder / "c.pt").write_bytes(b"not in the table")
    source = open_folder(folder, folder.parent / "metrics.csv", skip_broken=True)
    assert list(source.names) == ["second"]
    assert (set(source.skipped), source.strays) == ({"first"}, ["c.pt"])


def test_files_without_a_row_are_not_counted_as_runs(folder: Path) -> None:
    (folder / "a1.pt").unlink()
    for name in ("c.pt", "d.pt"):
        torch.save(state(4), folder / name)
    line = refused(folder)
    assert "1 of 2 runs cannot be imported; --skip-broken leaves them out: first: a1.pt is missing" in line
    assert line.endswith("2 files not in the table; --skip-broken leaves them out: c.pt, d.pt")


def test_a_file_that_is_a_run_of_its_own_is_named_once(folder: Path) -> None:
    (folder / "a0.safetensors").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"1 of 4 runs cannot be imported; .* out: a0") as stop:
        open_folder(folder, None)
    assert str(stop.value).count("a0.safetensors") == 1


def test_a_column_of_text_may_be_removed(folder: Path) -> None:
    line = refused(folder, "file,run,step,kind\n" + ROWS.replace(",1\n", ",relu\n"))
    assert "kind is 'relu'; expected a number" in line
    assert line.endswith("remove the column if it is none")


def test_one_checkpoint_is_no_plural(folder: Path) -> None:
    torch.save(state(4), folder / "c.pt")
    line = refused(folder, "file,run,step,loss\n" + ROWS + "c.pt,C,0,1\n")
    assert "C: it has 1 checkpoint, others 2" in line


def test_metrics_may_not_be_called_like_columns_of_a_zoo(folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    table.write_text("file,status\na0.safetensors,1\na1.pt,1\nb/0.pth,1\nb/1.pt,1\n")
    with pytest.raises(ValueError, match="a metric cannot be called 'status'"):
        imported(folder, table)


def test_prompted_column_has_to_be_there(folder: Path) -> None:
    with pytest.raises(ValueError, match="--prompted is 'los'; expected one of the columns loss, accuracy"):
        imported(folder, folder.parent / "metrics.csv", prompted="los")


def test_nested_tensors_are_refused(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
        torch.save(state(1) | {"a.bias": nested}, folder / "a1.pt")
        assert "parameter 'a.bias' is sparse, nested or without numbers" in refused(folder)


@pytest.mark.parametrize("number", ["nan", "inf", "1e39"])
def test_a_run_without_finite_metrics_has_diverged(number: str, folder: Path) -> None:
    """As in an LMDB set: kept and flagged."""
    table = folder.parent / "metrics.csv"
    table.write_text("file,run,step,loss\n" + ROWS.replace("A,5,1", f"A,5,{number}"))
    assert imported(folder, table).read_runs()["status"].to_pylist() == ["diverged", "finished"]


def test_steps_may_be_written_as_pandas_does(folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    whole = open_folder(folder, table)
    table.write_text(table.read_text().replace(",7,", ",7.0,").replace(",0,", ",0.0,"))
    assert open_folder(folder, table).read(0).steps.tolist() == [0, 7]
    assert open_folder(folder, table).digest == whole.digest


def other_metric(folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    table.write_text(table.read_text().replace("0.75", "0.5"))


def other_step(folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    table.write_text(table.read_text().replace(",9,", ",8,"))


def larger_file(folder: Path) -> None:
    torch.save({name: value.double() for name, value in state(3).items()}, folder / "b" / "1.pt")


@pytest.mark.parametrize("change", [other_metric, other_step, larger_file])
def test_a_folder_that_has_changed_is_not_mixed_in(change: Callable[[Path], None], folder: Path) -> None:
    table = folder.parent / "metrics.csv"
    zoo = begin_import(open_folder(folder, table), folder.parent / "zoo", task=None, stack_size=1)
    import_unit(zoo, open_folder(folder, table), None, 0)
    change(folder)
    with pytest.raises(ValueError, match="holds another zoo, with digest"):
        begin_import(open_folder(folder, table), folder.parent / "zoo", task=None, stack_size=1)
