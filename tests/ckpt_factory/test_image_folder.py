"""A user's images: a Parquet folder becomes a task without code, or one clear line that names the file."""

import functools
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torchvision
from PIL import Image

from ckpt_factory import RunPlan, check_task, make, train_stack
from ckpt_factory.tasks.data import cifar10, image_folder, mnist

TASKS = ("images-mlp-v0", "images-cnn-v0")
COLOUR = (6, 5, 3)
"""Height, width, channels."""


def encoded(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    (image.convert(mode) if mode else image).save(content, kind)
    return content.getvalue()


def pixels(num: int, shape: tuple[int, ...] = COLOUR, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def write(
    path: Path, images: list[Any], labels: list[Any], names: list[str] | None = None, column: str = "image"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({column: [{"bytes": image, "path": None} for image in images], "label": labels})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def write_split(folder: Path, split: str, num: int, classes: int = 3, **more: Any) -> Path:
    """Random images with labels 0, 1, 2, 0, ..."""
    images = [encoded(each) for each in pixels(num, more.pop("shape", COLOUR), seed=len(split))]
    return write(folder / f"{split}.parquet", images, [i % classes for i in range(num)], **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_split(tmp_path, "train", 40)
    write_split(tmp_path, "test", 9)
    return tmp_path


@pytest.mark.parametrize("name", TASKS)
def test_the_contract_holds(name: str, folder: Path) -> None:
    check_task(make(name, data_root=folder), num_runs=2, batch_size=8)


def test_networks_are_sized_by_the_data(folder: Path) -> None:
    mlp, cnn = (make(name, data_root=folder) for name in TASKS)
    assert mlp.spec.shapes == ((32, 90), (32,), (3, 32), (3,))
    assert cnn.spec.shapes == ((16, 3, 3, 3), (32, 16, 3, 3), (3, 32), (3,))
    assert mlp.inputs.endswith("flattened channel by channel, row by row")


@pytest.mark.parametrize("name", TASKS)
def test_a_worker_builds_the_same_task_from_the_data_alone(name: str, folder: Path) -> None:
    task = make(name, data_root=folder)
    again = make(name, data=pickle.loads(pickle.dumps(task.data)))
    assert (again.spec, again.symmetry, again.inputs) == (task.spec, task.symmetry, task.inputs)
    plan = RunPlan(num_steps=3, batch_size=(8,), num_checkpoints=2)
    ours, theirs = (train_stack(each, plan, [plan.run(0)]) for each in (task, again))
    assert ours.theta.equal(theirs.theta)


def test_splits_pixels_and_moments(folder: Path) -> None:
    data = image_folder(folder, per_channel=True)
    train, test = pixels(40, seed=5).transpose(0, 3, 1, 2), pixels(9, seed=4).transpose(0, 3, 1, 2)
    assert np.array_equal(data.images["train"], train[:36])
    assert np.array_equal(data.images["validation"], train[36:])  # the last tenth
    assert np.array_equal(data.images["test"], test)
    assert data.labels["validation"].tolist() == [i % 3 for i in range(36, 40)]
    assert (data.num_classes, data.full_scale) == (3, 255)
    assert data.mean == pytest.approx(train[:36].mean((0, 2, 3)) / 255, abs=1e-4)
    assert data.std == pytest.approx(train[:36].std((0, 2, 3)) / 255, abs=1e-4)
    whole = image_folder(folder)
    assert whole.mean == pytest.approx(train[:36].mean() / 255, abs=1e-4)
    assert whole.std == pytest.approx(train[:36].std() / 255, abs=1e-4)


def test_grey_images_in_shards_under_data_with_a_validation_file(tmp_path: Path) -> None:
    """The layout of the Hub: fashion_mnist and its like."""
    grey = [encoded(each) for each in pixels(12, (4, 4, 1))]
    for shard in range(2):
        part = slice(6 * shard, 6 * shard + 6)
        write(
            tmp_path / "data" / f"train-0000{shard}-of-00002.parquet",
            grey[part],
            list(range(6)),
            column="img",
        )
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", grey[:2], [0, 5], column="img")
    write(tmp_path / "data" / "test-00000-of-00001.parquet", grey[:3], [5, 4, 3], column="img")
    data = image_folder(tmp_path)
    assert {split: images.shape for split, images in data.images.items()} == {
        "train": (12, 1, 4, 4), "validation": (2, 1, 4, 4), "test": (3, 1, 4, 4),
    }  # fmt: skip
    assert np.array_equal(data.images["train"][:, 0], pixels(12, (4, 4, 1))[..., 0])
    assert data.labels["train"].tolist() == [*range(6), *range(6)]
    assert make("images-mlp-v0", data=data).inputs.endswith(", flattened row by row")


def test_classes_that_metadata_name_need_not_all_be_there(folder: Path) -> None:
    write_split(folder, "train", 20, names=["a", "b", "c", "d", "e"])
    write_split(folder, "test", 20, classes=5)
    assert make("images-cnn-v0", data_root=folder).spec.shapes[-1] == (5,)


def test_palettes_become_colours_and_one_bit_becomes_grey(tmp_path: Path) -> None:
    for split, num in (("train", 9), ("test", 3)):
        write(
            tmp_path / f"{split}.parquet",
            [encoded(each, "P") for each in pixels(num)],
            [0, 1, 2] * (num // 3),
        )
    assert image_folder(tmp_path).images["train"].shape[1] == 3
    one_bit = [encoded(each * 255, "1") for each in pixels(9, (4, 4, 1)) % 2]
    write(tmp_path / "train.parquet", one_bit, [0, 1, 2] * 3)
    write(tmp_path / "test.parquet", one_bit, [0, 1, 2] * 3)
    assert set(np.unique(image_folder(tmp_path).images["test"])) == {0, 255}


def test_a_changed_file_is_read_again(folder: Path) -> None:
    assert len(image_folder(folder).labels["test"]) == 9
    path = write_split(folder, "test", 6)
    os.utime(path, ns=(1, 1))
    assert len(image_folder(folder).labels["test"]) == 6


def test_a_constant_channel_is_no_division_by_zero(tmp_path: Path) -> None:
    dark = pixels(9) * np.array([1, 1, 0], np.uint8)
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", [encoded(each) for each in dark], [0, 1, 2] * 3)
    task = make("images-cnn-v0", data_root=tmp_path)
    theta = task.init(RunPlan().init_rngs([RunPlan().run(0)]))
    assert task.evaluate(theta, "test")["loss"].isfinite()


def rows(folder: Path, split: str, images: list[Any] | None = None, labels: list[Any] | None = None) -> None:
    num = len(labels if labels is not None else images or [])
    write(
        folder / f"{split}.parquet",
        [encoded(each) for each in pixels(num)] if images is None else images,
        [i % 3 for i in range(num)] if labels is None else labels,
    )


def other_size(folder: Path, split: str, row: int) -> None:
    images = [encoded(each) for each in pixels(6)]
    images[row:] = [encoded(each) for each in pixels(6 - row, (5, 5, 3))]
    rows(folder, split, images)


def of_mode(mode: str) -> list[bytes]:
    return [encoded(each, mode) for each in pixels(6)]


UNREADABLE = "test.parquet: row 0 of column image is not a readable image"
NOT_INTEGERS = "test.parquet: expected integers from 0 in column label, found"
CLASSES = "train.parquet: labels of training images have"
BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda f: (f / "test.parquet").unlink(), "no test.parquet, nor test-*.parquet, there or under data/"),
    (lambda f: (f / "train.parquet").unlink(), "no train.parquet, nor"),
    (
        lambda f: other_size(f, "train", 4),
        "train.parquet: expected images of one size, found (channels, height, width) (3, 6, 5) in row 0 and "
        "(3, 5, 5) in row 4; image.resize(",
    ),
    (
        lambda f: other_size(f, "test", 0),
        "test.parquet: its images are 5x5 colour, those of train.parquet 5x6 colour; expected one size",
    ),
    (lambda f: rows(f, "test", of_mode("L")), "test.parquet: its images are 5x6 grey, those of train"),
    (
        lambda f: rows(f, "test", of_mode("RGBA")),
        "row 0 of column image is of mode RGBA; expected 8-bit grey",
    ),
    (lambda f: rows(f, "test", [b"no image"] * 3), UNREADABLE),
    (lambda f: rows(f, "test", [encoded(pixels(1)[0])[:-30]] * 3), UNREADABLE),
    (lambda f: rows(f, "test", [None, encoded(pixels(1)[0])]), f"{UNREADABLE} (it has no bytes; save the"),
    (lambda f: rows(f, "test", labels=[0, 1, 3]), "test.parquet: label 3 in row 2; expected 0 to 2, the 3 c"),
    (lambda f: rows(f, "test", labels=[0, -1, 1]), "test.parquet: label -1 in row 1; expected integers from"),
    (lambda f: rows(f, "test", labels=[0.0, 1.0, 2.0]), f"{NOT_INTEGERS} double"),
    (lambda f: rows(f, "test", labels=["cat", "dog"]), f"{NOT_INTEGERS} string; map the classes to 0, 1, 2"),
    (lambda f: rows(f, "test", labels=[0, None]), "test.parquet: row 1 has no label"),
    (
        lambda f: rows(f, "train", labels=[1, 2, 3] * 4),
        f"{CLASSES} 3 classes, the largest label 3; expected at least 2 classes, numbered from 0",
    ),
    *(
        (
            functools.partial(rows, split="train", labels=[0, 1, 2] * 4 + [label, 0, 1]),
            f"{CLASSES} 4 classes, the largest label {label}; expected at least 2 classes, numbered from 0",
        )
        for label in (10**8, 2**40, 2**63 - 1)  # a list of all classes up to it would not fit in memory
    ),
    (
        lambda f: (rows(f, "train", labels=[0] * 9), rows(f, "test", labels=[0])),
        f"{CLASSES} 1 classes, the largest label 0",
    ),
    (
        lambda f: rows(f, "train", labels=[0] * 9 + [1] * 9 + [2] * 9),
        "train.parquet: the rows are sorted by label",
    ),
    (lambda f: (rows(f, "train", labels=[0]), rows(f, "test", labels=[0])), "one training image is too few"),
    (
        lambda f: pq.write_table(pa.table({"image": [b""], "label": [0]}).slice(1), f / "test.parquet"),
        "test.parquet: it has no rows",
    ),
    (
        lambda f: pq.write_table(pa.table({"image": [[1, 2]], "label": [0]}), f / "test.parquet"),
        "test.parquet: expected column image to hold encoded images, found list",
    ),
    (
        lambda f: write(f / "train-00000-of-00002.parquet", [], []),
        "both train.parquet and train-00000-of-00002.parquet are there; remove one of them",
    ),
    (
        lambda f: (f / "test.parquet").rename(f / "test-00001-of-00003.parquet"),
        "1 of the 3 files of test are there (test-00001-of-00003.parquet, ...); get the others too",
    ),
    (lambda f: (f / "test.parquet").write_text("no Parquet"), "test.parquet: not a readable Parquet file"),
]


@pytest.mark.parametrize(("damage", "words"), BAD, ids=[words[:50] for _, words in BAD])
def test_bad_folders_are_refused_in_one_line_that_names_the_file(
    folder: Path, damage: Callable[[Path], Any], words: str
) -> None:
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        make("images-cnn-v0", data_root=folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_has_to_be_given(name: str) -> None:
    with pytest.raises(ValueError, match="needs --data-root"):
        make(name)


def test_a_folder_that_is_not_there_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere; --data-root names the one with train\.parquet"):
        make("images-mlp-v0", data_root=tmp_path / "nowhere")


def test_images_per_channel_are_not_for_flattened_networks(folder: Path) -> None:
    task = make("images-mlp-v0", data=image_folder(folder, per_channel=True))
    with pytest.raises(ValueError, match="expected one number each"):
        task.input_moments()


def test_mnist_and_cifar_are_found_in_the_hubs_layout(tmp_path: Path) -> None:
    """... and are then refused for their size: these are not they."""
    for place, split in ((a, b) for a in ("mnist", "cifar10/plain_text") for b in ("train", "test")):
        shape = (28, 28, 1) if place == "mnist" else (32, 32, 3)
        write(tmp_path / place / f"{split}-00000-of-00001.parquet", [encoded(pixels(1, shape)[0])], [0])
    with pytest.raises(
        ValueError, match="60,000 and 10,000 images of 28x28, found 1 of 28x28 and 1 of 28x28"
    ):
        mnist(tmp_path)
    with pytest.raises(
        ValueError, match="50,000 and 10,000 images of 3x32x32, found 1 of 3x32x32 and 1 of 3x32x32"
    ):
        cifar10(tmp_path)


@pytest.mark.parametrize(("load", "size"), [(mnist, (28, 28, 1)), (cifar10, (32, 32, 3))])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_mnist_and_cifar_are_0_to_9(
    load: Callable[[Path], Any], size: tuple[int, ...], split: str, tmp_path: Path
) -> None:
    images = [encoded(each) for each in pixels(3, size)]
    for each in ("train", "test"):
        write(tmp_path / f"{each}.parquet", images, [0, 9, 12] if each == split else [0, 9, 1])
    with pytest.raises(
        ValueError, match=rf"{split}\.parquet: label 12 in row 2; expected 0 to 9, the 10 clas"
    ):
        load(tmp_path)


def test_cifar_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    with pytest.raises(
        ValueError, match=r"no CIFAR-10 .*\(no route to host\).*datasets/uoft-cs/cifar10"
    ) as error:
        cifar10(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="CIFAR-10 needs --data-root"):
        make("cifar-cnn-v0")


def test_cifar_from_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own pickles, with made-up pixels; only their checksums are not looked at."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        data = np.zeros((10_000, 3072), np.uint8)
        data[:, 0], data[:, -1] = i, np.arange(10_000) % 251
        content = {"data": data, "labels": (np.arange(10_000) % 10).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    found = cifar10(tmp_path)
    assert found.images["train"].shape == (45_000, 3, 32, 32)
    assert found.images["validation"][0, 0, 0, 0] == 4
    assert found.images["validation"][-1, 2, 31, 31] == 9_999 % 251
    assert found.images["test"][7, 0, 0, 0] == 5
    assert found.labels["validation"][:3].tolist() == [0, 1, 2]
    cifar10.cache_clear()  # 180 MB
