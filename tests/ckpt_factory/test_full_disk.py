"""A disk that is full in the middle: one clear line, the zoo stays valid, and goes on when there is space."""

import errno
import pickle
from pathlib import Path

import pytest
import torch

from ckpt_factory import RunPlan, Task, make, train_stack
from ckpt_factory.files import DiskFullError, atomic_path, full_disk_named, write_text
from ckpt_factory.interchange import Source, begin_import, import_unit, open_lmdb_set
from ckpt_factory.verify import merge, verify_unit
from ckpt_factory.zoo import Zoo, ZooHeader
from tests.cluster.processes import zoo_bytes
from tests.conftest import write_zoo
from tests.disks import file_size_limit, grow, small_disk
from tests.published import supervised_run, write_run

PLAN = RunPlan(num_steps=20, num_checkpoints=4)
LINE = r"^{}: .*part-0000{}\.parquet could not be written; .*free space and give the same command again"


def units_missing(zoo: Zoo, task: Task | None) -> list[int]:
    """Which units a zoo lacks, where there is nothing else wrong with it."""
    found = merge(zoo, [verify_unit(zoo, task, unit, sample=4) for unit in zoo.finished_units()])
    assert found.problems == []
    return found.missing_units


def make_units(zoo: Zoo, task: Task) -> None:
    """What the factory's actors do."""
    for unit in range(zoo.header.num_units):
        if unit not in zoo.finished_units():
            runs = zoo.header.runs_plan.runs(zoo.header.run_ids(unit))
            zoo.write_unit(unit, train_stack(task, zoo.header.runs_plan, runs))


def import_units(zoo: Zoo, source: Source) -> None:
    for unit in range(zoo.header.num_units):
        if unit not in zoo.finished_units():
            import_unit(zoo, source, None, unit)


def test_a_zoo_on_a_full_disk_stays_valid_and_resumes(digits: Task, tmp_path: Path) -> None:
    whole = write_zoo(tmp_path / "whole", digits, PLAN, num_runs=24, stack_size=4)
    size = sum(map(len, zoo_bytes(whole.path).values()))
    header = ZooHeader.of_task(digits, PLAN, num_runs=24, stack_size=4, dtype="float32")
    with small_disk(tmp_path / "disk", f"{size * 2 // 3 // 1024}k") as disk:
        zoo = Zoo.create(disk / "zoo", header)
        with pytest.raises(DiskFullError, match=LINE.format("disk full", "[2-5]")):
            make_units(zoo, digits)
        missing = units_missing(Zoo.open(zoo.path), digits)
        assert 0 < len(missing) < 6
        assert not list(zoo.path.rglob(".tmp-*")), "nothing half-written is left"
        grow(disk, f"{size * 2 // 1024}k")
        zoo = Zoo.create(disk / "zoo", header)
        make_units(zoo, digits)
        assert zoo_bytes(zoo.path) == zoo_bytes(whole.path)


def test_any_limit_on_files_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    task = make("quadratic-v0")
    plan = RunPlan(num_steps=300, num_checkpoints=200)
    header = ZooHeader.of_task(task, plan, num_runs=8, stack_size=4, dtype="float32")
    zoo = Zoo.create(tmp_path, header)
    zoo.write_unit(0, train_stack(task, plan, plan.runs(header.run_ids(0))))
    rows = train_stack(task, plan, plan.runs(header.run_ids(1)))
    with (
        file_size_limit(20_000),
        pytest.raises(DiskFullError, match=LINE.format("file size limit reached", 1)),
    ):
        zoo.write_unit(1, rows)
    assert units_missing(zoo, task) == [1]
    assert not list(tmp_path.rglob(".tmp-*"))
    zoo.write_unit(1, rows)
    assert units_missing(zoo, task) == []


def test_an_import_onto_a_full_disk_resumes(tmp_path: Path) -> None:
    for seed in range(6):
        write_run(tmp_path / "set", {f"{seed:06d}": supervised_run(seed, size=5000)}, (4990, 10))
    source = open_lmdb_set(tmp_path / "set")
    with small_disk(tmp_path / "disk", "400k") as disk:
        zoo = begin_import(source, disk / "zoo", task=None, stack_size=1)
        with pytest.raises(DiskFullError, match=LINE.format("disk full", "[1-5]")):
            import_units(zoo, source)
        done = zoo.finished_units()
        assert units_missing(zoo, None) == [unit for unit in range(6) if unit not in done] != []
        grow(disk, "2m")
        zoo = begin_import(source, disk / "zoo", task=None, stack_size=1)
        import_units(zoo, source)
        assert units_missing(zoo, None) == []
        assert torch.equal(zoo.read_unit(5).theta[0], source.read(5).theta)


def test_the_error_survives_the_way_from_a_worker(tmp_path: Path) -> None:
    with file_size_limit(10), pytest.raises(DiskFullError) as caught:
        write_text(tmp_path / "x", "longer than ten bytes")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(ValueError, match="mine"), atomic_path(tmp_path / "x"):
        raise ValueError("mine")
