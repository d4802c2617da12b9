"""`theta bench memorisation`: trainings on more and more runs, each audited against its own; resumed."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo
from cluster.bench.memorisation import (
    AUDIT,
    PICTURE,
    TABLE,
    MemorisationBenchConfig,
    check,
    trainings_of,
)
from cluster.cli import run
from generator.artefact import MODEL

from ..conftest import write_zoo


def comparison(zoo: Path) -> MemorisationBenchConfig:
    return MemorisationBenchConfig(
        zoo=zoo,
        runs=(6, 12),
        sizes=("0.1M",),
        steps=20,
        num_seeds=1,
        num_networks=4,
        num_prompts=3,
        out=Path("out"),
    )


def test_a_zoo_that_is_too_small_says_how_to_make_one(digits_zoo: Zoo) -> None:
    asked = comparison(digits_zoo.path)
    assert check(asked).path == digits_zoo.path
    with pytest.raises(ValueError, match=r"has 24 runs; .* need 25: make them with `theta make .*-runs 25 "):
        check(replace(asked, runs=(6, 21)))
    assert check(replace(asked, runs=(6, 20)))


def test_unfinished_zoos_and_cut_groups_are_refused(digits: Task, tmp_path: Path) -> None:
    plan = RunPlan(num_steps=4, batch_size=(8,), num_checkpoints=2, group_size=4)
    zoo = write_zoo(tmp_path / "zoo", digits, plan, num_runs=16, stack_size=8)
    with pytest.raises(ValueError, match=r"expected multiples of that in place of \[6\]"):
        check(comparison(zoo.path))
    zoo.sums_path(1).unlink()  # what says that a shard is finished
    with pytest.raises(ValueError, match="lacks 1 of its 2 shards; finish it with"):
        check(comparison(zoo.path))


def test_every_training_sees_its_first_runs_and_all_the_same_held_out_ones(digits_zoo: Zoo) -> None:
    trainings = trainings_of(comparison(digits_zoo.path), digits_zoo)
    header = digits_zoo.header
    assert header.num_training_runs(trainings.held_out) == 12
    assert trainings.shares == (0.5, 1.0)
    assert trainings.total == 2
    for number, share in zip((6, 12), trainings.shares, strict=True):
        assert header.num_training_runs(1 - share * (1 - trainings.held_out)) == number


@pytest.mark.ray
@pytest.mark.slow
def test_memorisation_is_measured_and_goes_on_where_it_stopped(
    ray_cluster: int, digits_zoo: Zoo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--zoo {digits_zoo.path} --out {tmp_path} --runs 12 6 --sizes 0.1M --steps 20"
    command = ["bench", "memorisation", *flags.split(), "--num-networks", "4", "--num-prompts", "3"]
    assert run([*command, "--num-seeds", "1"]) == 0
    assert "12 runs" in capsys.readouterr().out
    result = json.loads((tmp_path / "result.json").read_text())
    rows = result["trainings"]
    assert [(each["training_runs"], each["searched_runs"], each["steps"]) for each in rows] == [
        (6, 6, 20),
        (12, 12, 20),
    ]
    for each in rows:
        assert each["distance_ratio_low"] <= each["distance_ratio_high"]
        assert 0 <= each["copy_rate"] <= 1
        assert result[f"{each['training_runs']} runs distance_ratio"] == each["distance_ratio"]
    with (tmp_path / TABLE).open() as file:
        written = [float(each["distance_ratio"]) for each in csv.DictReader(file)]
    assert written == [each["distance_ratio"] for each in rows]
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")

    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"sweep/trials/*/{MODEL}")}
    audits = sorted(tmp_path.glob(f"sweep/trials/*/{AUDIT}"))
    assert len(models) == len(audits) == 2
    audits[0].unlink()  # as if killed before it was written
    kept = audits[1].stat().st_mtime_ns
    assert run([*command, "--num-seeds", "1"]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["trainings"] == rows
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert audits[1].stat().st_mtime_ns == kept
    assert run([*command, "--num-seeds", "2"]) == 2
    assert "holds another sweep" in capsys.readouterr().err
