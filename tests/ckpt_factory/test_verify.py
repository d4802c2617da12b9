"""verify: a clean zoo passes, and whatever is done to a zoo is found."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.verify import Verification, merge, verify_unit
from ckpt_factory.zoo import Zoo
from tests.conftest import write_zoo

ALL = 10**6


@pytest.fixture(scope="module")
def task() -> Task:
    return make("quadratic-v0")


@pytest.fixture(scope="module")
def clean(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    plan = RunPlan(num_steps=10, num_checkpoints=3)
    return write_zoo(tmp_path_factory.mktemp("verify") / "zoo", task, plan, num_runs=6, stack_size=3)


@pytest.fixture
def zoo(clean: Zoo, tmp_path: Path) -> Zoo:
    """A copy to damage."""
    shutil.copytree(clean.path, tmp_path / "zoo")
    return Zoo.open(tmp_path / "zoo")


def verify(path: Path, task: Task, sample: int = ALL) -> Verification:
    zoo = Zoo.open(path)
    return merge(zoo, [verify_unit(zoo, task, unit, sample=sample) for unit in zoo.finished_units()])


def problems_of(path: Path, task: Task) -> list[str]:
    """What `theta verify` says; a zoo whose header is damaged cannot even be opened, and says so."""
    try:
        found = verify(path, task, sample=0)
    except ValueError as error:
        return [str(error)]
    return found.problems + [f"unit {unit} is missing" for unit in found.missing_units]


def write_sums(zoo: Zoo, unit: int) -> None:
    """What someone does who damages a zoo and covers it up."""
    files = [zoo.path / "zoo.json", zoo.checkpoints_path(unit), zoo.runs_path(unit)]
    lines = [
        f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(zoo.path).as_posix()}\n" for f in files
    ]
    zoo.sums_path(unit).write_text("".join(lines))


def edit_rows(zoo: Zoo, unit: int, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrite a shard with other values, and its checksums with it."""
    path = zoo.checkpoints_path(unit)
    table = pq.read_table(path, partitioning=None)
    columns = {name: table[name].to_numpy().copy() for name in table.column_names if name != "theta"}
    columns["theta"] = table["theta"].combine_chunks().to_numpy_ndarray().copy()
    edit(columns)
    theta = pa.FixedShapeTensorArray.from_numpy_ndarray(columns.pop("theta"))
    arrays = [
        theta if f.name == "theta" else pa.array(columns[f.name], f.type, from_pandas=False)
        for f in table.schema
    ]
    pq.write_table(pa.Table.from_arrays(arrays, schema=table.schema), path, write_page_checksum=True)
    write_sums(zoo, unit)


def test_a_clean_zoo_is_ok(clean: Zoo, task: Task) -> None:
    found = verify(clean.path, task)
    assert found.ok
    assert (found.runs, found.checkpoints, found.remeasured, found.diverged) == (6, 18, 18, 0)
    assert found.worst_difference == 0.0  # the same processor
    assert found.units == [0, 1]


def test_a_clean_zoo_of_16_bit_with_diverged_runs_is_ok(task: Task, tmp_path: Path) -> None:
    plan = RunPlan(num_steps=300, num_checkpoints=5, lr=(0.1, 60.0))
    write_zoo(tmp_path, task, plan, num_runs=6, stack_size=3, dtype="bfloat16")
    found = verify(tmp_path, task)
    assert found.ok
    assert 0 < found.diverged < 6
    assert found.remeasured == 5 * (6 - found.diverged)


def test_a_sample_is_remeasured(clean: Zoo, task: Task) -> None:
    assert verify(clean.path, task, sample=4).remeasured == 8
    assert verify(clean.path, task, sample=0).remeasured == 0


@pytest.mark.parametrize("pattern", ["zoo.json", "checkpoints/*/*-00001*", "runs/*-00001*", "sums/*-00001*"])
def test_one_flipped_bit_anywhere_is_found(zoo: Zoo, task: Task, pattern: str) -> None:
    (path,) = zoo.path.glob(pattern)
    content = path.read_bytes()
    positions = {*range(5), *np.linspace(0, len(content) - 1, 24).astype(int), *range(-9, 0)}
    for position in sorted(positions):
        for bit in (0, 5):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            problems = problems_of(zoo.path, task)
            assert problems, f"bit {bit} of byte {position} of {path.name}"
            assert not any("\n" in problem for problem in problems), problems
    path.write_bytes(content)
    assert verify(zoo.path, task).ok


def test_a_flipped_bit_names_the_file_and_the_unit(zoo: Zoo, task: Task) -> None:
    path = zoo.checkpoints_path(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    found = verify(zoo.path, task)
    assert found.damaged_units == [1]
    assert len(found.problems) == 1
    assert path.relative_to(zoo.path).as_posix() in found.problems[0]


def test_a_damaged_header_is_no_reason_to_make_shards_anew(zoo: Zoo, task: Task) -> None:
    text = (zoo.path / "zoo.json").read_text()
    (zoo.path / "zoo.json").write_text(text + " ")
    found = verify(zoo.path, task)
    assert found.damaged_units == []
    assert len(found.problems) == 1
    assert "restore it" in found.problems[0]
    Zoo.create(zoo.path, zoo.header)  # what `theta make` with the same settings does
    assert (zoo.path / "zoo.json").read_text() == text


@pytest.mark.parametrize("covered_up", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_shard_is_found(zoo: Zoo, task: Task, share: float, covered_up: bool) -> None:
    path = zoo.checkpoints_path(0)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    if covered_up:
        write_sums(zoo, 0)
    assert verify(zoo.path, task).damaged_units == [0]


@pytest.mark.parametrize("which", ["checkpoints_path", "runs_path"])
def test_a_missing_file_is_found(zoo: Zoo, task: Task, which: str) -> None:
    path = getattr(zoo, which)(1)
    path.unlink()
    found = verify(zoo.path, task)
    assert found.damaged_units == [1]
    assert found.problems == [f"{path.relative_to(zoo.path).as_posix()}: missing"]


def test_a_missing_unit_is_found(zoo: Zoo, task: Task) -> None:
    for path in (zoo.checkpoints_path(1), zoo.runs_path(1), zoo.sums_path(1)):
        path.unlink()
    found = verify(zoo.path, task)
    assert not found.ok
    assert found.missing_units == [1]


def test_a_stray_shard_is_found(zoo: Zoo, task: Task) -> None:
    stray = zoo.checkpoints_path(0).with_name("copy.parquet")
    shutil.copy(zoo.checkpoints_path(0), stray)
    assert any("copy.parquet" in problem for problem in verify(zoo.path, task).problems)


def test_a_run_that_is_there_twice_is_found(zoo: Zoo, task: Task) -> None:
    """With its own run_id, and checksums that fit."""

    def duplicate(columns: dict[str, np.ndarray]) -> None:
        for name in ("theta", "validation_loss", "test_loss"):
            columns[name][3:6] = columns[name][:3]

    edit_rows(zoo, 1, duplicate)
    found = verify(zoo.path, task)
    assert not found.ok
    assert any("ends in the same network" in problem and "4" in problem for problem in found.problems)


def test_a_run_that_another_shard_has_too_is_found(zoo: Zoo, task: Task) -> None:
    first = zoo.read_unit(0)

    def copy(columns: dict[str, np.ndarray]) -> None:
        columns["theta"][:3] = first.theta[1]
        for name in ("validation_loss", "test_loss"):
            columns[name][:3] = first.metrics[name][1]

    edit_rows(zoo, 1, copy)
    found = verify(zoo.path, task)
    assert "run 3 ends in the same network as run 1" in found.problems


def test_metrics_that_are_not_those_of_the_networks_are_found(zoo: Zoo, task: Task) -> None:
    def flatter(columns: dict[str, np.ndarray]) -> None:
        columns["validation_loss"][4] *= 0.9

    edit_rows(zoo, 0, flatter)
    found = verify(zoo.path, task)
    assert found.damaged_units == [0]
    assert "validation_loss measured again differs by" in found.problems[0]
    assert found.worst_difference > 1e-3


def test_networks_that_do_not_give_their_metrics_are_found_even_if_they_give_none(
    zoo: Zoo, task: Task
) -> None:
    def overflow(columns: dict[str, np.ndarray]) -> None:
        columns["theta"][4, :2] = 3e38  # finite, but its square is not

    edit_rows(zoo, 0, overflow)
    assert verify(zoo.path, task).damaged_units == [0]


def test_a_metric_that_measures_nan_again_is_found(zoo: Zoo, task: Task, monkeypatch) -> None:
    measure = type(task).metrics_of
    monkeypatch.setattr(
        type(task), "metrics_of", lambda self, theta: {k: v * np.nan for k, v in measure(self, theta).items()}
    )
    (problem, _) = verify_unit(zoo, task, 0, sample=ALL).problems
    assert "validation_loss measured again differs by nan" in problem


def test_other_data_is_not_called_damage_of_intact_shards(zoo: Zoo, task: Task, monkeypatch) -> None:
    monkeypatch.setattr(type(task), "curvature", 1.5 * type(task).curvature)
    found = verify(zoo.path, task)
    (problem,) = found.problems
    assert "the shards are intact" in problem
    assert "the task's data or code is not what the zoo was made with" in problem
    assert (found.ok, found.damaged_units) == (False, [])
    path = zoo.checkpoints_path(1)
    path.write_bytes(path.read_bytes()[:-1])  # ... while real damage still is
    found = verify(zoo.path, task)
    assert found.damaged_units == [1]
    assert len(found.problems) == 2


def permute_ids(columns: dict[str, np.ndarray]) -> None:
    columns["run_id"][:] = np.repeat([1, 0, 2], 3)


def wrong_ids(columns: dict[str, np.ndarray]) -> None:
    columns["run_id"][:] = 1


def wrong_steps(columns: dict[str, np.ndarray]) -> None:
    columns["step"] += 1


def mixed_runs(columns: dict[str, np.ndarray]) -> None:
    columns["run_id"][[1, 4]] = columns["run_id"][[4, 1]]


def mixed_steps(columns: dict[str, np.ndarray]) -> None:
    columns["step"][[4, 5]] = columns["step"][[5, 4]]


@pytest.mark.parametrize("edit", [permute_ids, wrong_ids, wrong_steps, mixed_runs, mixed_steps])
def test_rows_that_are_not_the_plans_are_found(zoo: Zoo, task: Task, edit) -> None:
    edit_rows(zoo, 0, edit)
    assert verify(zoo.path, task).damaged_units == [0]


def test_a_diverged_run_that_is_called_finished_is_found(zoo: Zoo, task: Task) -> None:
    def diverge(columns: dict[str, np.ndarray]) -> None:
        columns["theta"][1, 0] = np.inf

    edit_rows(zoo, 0, diverge)
    assert any("status" in problem for problem in verify(zoo.path, task).problems)


def prepend(text: str) -> str:
    return f"x{text}"


def append(text: str) -> str:
    return f"{text}x"


def repeat_line(text: str) -> str:
    return text + text.splitlines()[0] + "\n"


@pytest.mark.parametrize("change", [prepend, append, repeat_line])
def test_sums_that_sha256sum_would_not_accept_are_found(zoo: Zoo, task: Task, change) -> None:
    zoo.sums_path(0).write_text(change(zoo.sums_path(0).read_text()))
    assert verify(zoo.path, task).damaged_units == [0]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed here")
def test_sha256sum_accepts_the_sums_and_finds_damage(zoo: Zoo) -> None:
    def sha256sum() -> int:
        sums = [str(path.relative_to(zoo.path)) for path in sorted((zoo.path / "sums").iterdir())]
        command = ["sha256sum", "--check", "--strict", "--quiet", *sums]
        return subprocess.run(command, cwd=zoo.path, capture_output=True).returncode

    assert sha256sum() == 0
    with zoo.runs_path(0).open("ab") as file:
        file.write(b"\0")
    assert sha256sum() != 0
