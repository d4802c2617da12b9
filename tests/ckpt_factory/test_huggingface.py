"""An exported zoo loads with `datasets` from disk, and holds what the zoo holds."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.files import DiskFullError
from ckpt_factory.header import Imported
from ckpt_factory.interchange import export_dataset
from ckpt_factory.zoo import Zoo, ZooHeader
from tests.conftest import write_zoo
from tests.disks import file_size_limit


def exported(zoo: Zoo, out: Path, **options: Any) -> Path:
    assert list(export_dataset(zoo, out, **options))[-1] == zoo.header.num_units
    return out


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], Any]:
    """`load_dataset` without a network, its cache in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # noqa: PLC0415  after its environment

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return lambda folder, config: datasets.load_dataset(str(folder), config, split="train")


def test_both_configs_load_from_disk_and_are_the_zoo(digits_zoo: Zoo, load: Any, tmp_path: Path) -> None:
    folder = exported(digits_zoo, tmp_path / "dataset", max_shard_mb=0.001)
    index, weights = load(folder, "index"), load(folder, "weights").with_format("numpy")
    rows = [digits_zoo.read_unit(unit) for unit in range(3)]
    theta = torch.cat([each.theta.flatten(0, 1) for each in rows]).numpy()
    assert len(index) == len(weights) == 24 * 8
    assert weights["theta"][:].dtype == np.float32
    np.testing.assert_array_equal(weights["theta"][:], theta)
    for name in ("run_id", "step"):
        assert index[name][:] == weights[name][:].tolist()
    assert index["run_id"][:] == [run for run in range(24) for _ in range(8)]
    for name in digits_zoo.header.metrics:
        stored = torch.cat([each.metrics[name].flatten() for each in rows]).tolist()
        assert index[name][:] == stored
    runs = digits_zoo.read_runs()
    for name in runs.column_names:
        of_run = runs[name].to_pylist()
        assert index[name][:] == [of_run[run] for run in index["run_id"][:]], name
    assert "theta" not in index.column_names
    first = digits_zoo.header.spec.unflatten(torch.tensor(weights["theta"][0]))
    assert first["fc1.weight"].shape == (16, 64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_is_made_wider_without_loss(dtype: str, load: Any, tmp_path: Path) -> None:
    plan = RunPlan(num_steps=4, num_checkpoints=3)
    zoo = write_zoo(tmp_path / "zoo", make("quadratic-v0"), plan, num_runs=4, stack_size=2, dtype=dtype)
    weights = load(exported(zoo, tmp_path / "dataset"), "weights").with_format("torch")
    expected = torch.cat([zoo.read_unit(unit).theta.flatten(0, 1) for unit in (0, 1)])
    assert expected.dtype == getattr(torch, dtype)
    assert torch.equal(weights["theta"][:], expected.float())


def test_card_says_what_the_hub_and_a_reader_need(digits_zoo: Zoo, tmp_path: Path) -> None:
    folder = exported(digits_zoo, tmp_path / "dataset", name="Digits: a zoo", license="cc-by-4.0")
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(metadata)
    assert (fields["pretty_name"], fields["license"]) == ("Digits: a zoo", "cc-by-4.0")
    assert fields["size_categories"] == ["n<1K"]
    assert [config["config_name"] for config in fields["configs"]] == ["index", "weights"]
    assert [config.get("default", False) for config in fields["configs"]] == [True, False]
    for fact in (
        "192 checkpoints",
        "| fc2.weight | [10, 16] | 1040 | 1200 |",
        "validation_loss",
        "learning rate",
    ):
        assert fact in text
    assert (folder / "coverage.png").read_bytes().startswith(b"\x89PNG")
    without = exported(digits_zoo, tmp_path / "other")
    assert "license" not in (without / "README.md").read_text().split("---\n")[1]


@pytest.mark.usefixtures("load")
def test_the_cards_code_runs(digits_zoo: Zoo, tmp_path: Path) -> None:
    folder = exported(digits_zoo, tmp_path / "dataset")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    assert torch.equal(names["theta"], digits_zoo.read_unit(0).theta[0, 0])


def test_row_groups_stay_below_the_limit(digits_zoo: Zoo, tmp_path: Path) -> None:
    row = 4 * digits_zoo.header.spec.D
    folder = exported(digits_zoo, tmp_path / "dataset", max_row_group_mb=5 * row / 1e6)
    (path,) = (folder / "weights").glob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(sizes) == 5
    assert sum(sizes) == 192
    assert metadata.row_group(0).column(2).has_offset_index, "the viewer reads single pages"
    with pytest.raises(ValueError, match="max_row_group_mb is 301; expected at most 300"):
        exported(digits_zoo, tmp_path / "dataset", max_row_group_mb=301.0)


def test_shards_are_whole_units_of_about_the_size_asked_for(digits_zoo: Zoo, tmp_path: Path) -> None:
    unit_mb = 8 * 8 * 1210 * 4 / 1e6
    folder = exported(digits_zoo, tmp_path / "dataset", max_shard_mb=2.5 * unit_mb)
    names = ["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"]
    for config in ("index", "weights"):
        assert sorted(path.name for path in (folder / config).iterdir()) == names
        assert [pq.read_metadata(folder / config / name).num_rows for name in names] == [128, 64]


def test_interrupted_export_goes_on_and_keeps_what_is_there(digits_zoo: Zoo, tmp_path: Path) -> None:
    whole = exported(digits_zoo, tmp_path / "whole", max_shard_mb=0.001)
    parts = tmp_path / "parts"
    steps = export_dataset(digits_zoo, parts, max_shard_mb=0.001)
    assert next(steps) == 1
    steps.close()
    half = parts / "weights" / (".tmp-part-00001-of-00003.parquet-" + "0" * 32)
    half.write_bytes(b"half")
    kept = (parts / "weights" / "part-00000-of-00003.parquet").stat().st_mtime_ns
    exported(digits_zoo, parts, max_shard_mb=0.001)
    assert (parts / "weights" / "part-00000-of-00003.parquet").stat().st_mtime_ns == kept
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert sorted(path.relative_to(parts) for path in parts.rglob("*") if path.is_file()) == sorted(files)
    for file in files:
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


def test_another_export_is_refused_and_left_as_it_is(digits_zoo: Zoo, tmp_path: Path) -> None:
    folder = exported(digits_zoo, tmp_path / "dataset", max_shard_mb=0.001)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for options in ({"max_shard_mb": 500.0}, {"max_shard_mb": 0.001, "max_row_group_mb": 1.0}):
        with pytest.raises(ValueError, match="is not of this zoo or of other settings; give another --out"):
            exported(digits_zoo, folder, **options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_unfinished_zoo_is_refused(digits: Task, small_plan: RunPlan, tmp_path: Path) -> None:
    header = ZooHeader.of_task(digits, small_plan, num_runs=4, stack_size=2, dtype="float32")
    with pytest.raises(
        ValueError, match="lacks 2 of 2 shards; `theta make` with the same settings makes them"
    ):
        exported(Zoo.create(tmp_path / "zoo", header), tmp_path / "dataset")
    imported = dataclasses.replace(header, plan=Imported(source="x", num_checkpoints=8))
    with pytest.raises(ValueError, match="`theta import` with"):
        exported(Zoo.create(tmp_path / "other", imported), tmp_path / "dataset")


def test_full_disk_is_one_line_and_the_export_goes_on(digits_zoo: Zoo, load: Any, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    with (
        file_size_limit(100_000),
        pytest.raises(DiskFullError, match=r"weights/part-00000-of-00003\.parquet could"),
    ):
        exported(digits_zoo, folder, max_shard_mb=0.001)
    assert [path.name for path in (folder / "index").iterdir()] == ["part-00000-of-00003.parquet"]
    assert not list((folder / "weights").iterdir()), "nothing half-written is left"
    exported(digits_zoo, folder, max_shard_mb=0.001)
    assert len(load(folder, "weights")) == 192
