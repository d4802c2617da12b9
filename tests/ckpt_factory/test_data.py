"""Images: splits that never overlap, normalisation, and clear words about missing or malformed data."""

import io
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from ckpt_factory import Task, make
from ckpt_factory.tasks.data import ImageData, digits, mnist
from ckpt_factory.tasks.parquet import read_parquet_images


def rows_of(data: ImageData) -> np.ndarray:
    parts = [np.c_[data.images[s].reshape(len(data.images[s]), -1), data.labels[s]] for s in data.images]
    return np.concatenate(parts).astype(np.int64)


def test_digits_splits_are_disjoint_and_whole() -> None:
    data = digits()
    assert {s: len(y) for s, y in data.labels.items()} == {"train": 1077, "validation": 360, "test": 360}
    everything = np.c_[load_digits().data, load_digits().target].astype(np.int64)
    ours, theirs = (sorted(map(tuple, rows.tolist())) for rows in (rows_of(data), everything))
    assert ours == theirs  # every image stands in exactly one split


def test_digits_are_the_same_in_every_process() -> None:
    assert np.array_equal(rows_of(digits()), rows_of(digits()))


def test_digits_are_normalised_by_their_training_images(digits: Task) -> None:
    params = digits.spec.unflatten(torch.zeros(1, digits.spec.D))
    x = digits.sampler([torch.Generator().manual_seed(0)], 1077)(params).x
    # the constants are those of all 1,797 images rather: a thousandth off
    assert abs(float(x.mean())) < 2e-3
    assert abs(float(x.std()) - 1) < 2e-3


def test_mnist_from_parquet_is_split_50_10_10_thousand(data_root: Path) -> None:
    data = mnist(data_root)
    sizes = {split: images.shape for split, images in data.images.items()}
    assert sizes == {"train": (50_000, 784), "validation": (10_000, 784), "test": (10_000, 784)}
    assert {split: len(y) for split, y in data.labels.items()} == {s: shape[0] for s, shape in sizes.items()}
    table = pq.read_table(data_root / "mnist" / "train.parquet")
    for split, row, at in (("train", 49_999, -1), ("validation", 50_000, 0), ("validation", 59_999, -1)):
        png = table["image"][row].as_py()["bytes"]
        assert np.array_equal(data.images[split][at], np.asarray(Image.open(io.BytesIO(png))).reshape(-1))
        assert data.labels[split][at] == table["label"][row].as_py()
    pixels = data.images["train"] / 255
    # the published constants are of all 60,000 images, written with four digits
    assert abs(pixels.mean() - data.mean) < 1e-3
    assert abs(pixels.std() - data.std) < 1e-3


def write_idx(path: Path, array: np.ndarray) -> None:
    """MNIST's own format: two zero bytes, 8 for unsigned bytes, the number of axes, their sizes and bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_torchvision(root: Path, num_train: int = 60_000) -> None:
    raw = root / "MNIST" / "raw"
    for kind, num in (("train", num_train), ("t10k", 10_000)):
        images = np.zeros((num, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(num) % 251
        write_idx(raw / f"{kind}-images-idx3-ubyte", images)
        write_idx(raw / f"{kind}-labels-idx1-ubyte", np.arange(num) % 10)


def test_mnist_from_torchvisions_layout(tmp_path: Path) -> None:
    write_torchvision(tmp_path)
    data = mnist(tmp_path)
    sizes = {split: images.shape for split, images in data.images.items()}
    assert sizes == {"train": (50_000, 784), "validation": (10_000, 784), "test": (10_000, 784)}
    assert data.images["validation"][:3, 0].tolist() == [i % 251 for i in range(50_000, 50_003)]
    assert data.labels["test"][:3].tolist() == [0, 1, 2]
    assert data.images["train"].dtype == np.uint8
    assert data.labels["train"].dtype == np.int64


def test_damaged_idx_files_are_a_value_error(tmp_path: Path) -> None:
    write_torchvision(tmp_path)
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=str(tmp_path)):
        mnist(tmp_path)


def test_idx_files_of_another_size_are_not_mnist(tmp_path: Path) -> None:
    write_torchvision(tmp_path, num_train=1000)
    with pytest.raises(ValueError, match=r"60,000 and 10,000 images.*found 1,000"):
        mnist(tmp_path)


def test_mnist_without_a_data_root_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="MNIST needs --data-root"):
        make("mnist-mlp-v0")


def test_mnist_that_is_not_there_and_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(ValueError, match=r"could not be downloaded \(no route to host\).*train.parquet") as e:
        mnist(tmp_path)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="no such folder"):
        mnist(tmp_path / "nowhere")


def png(pixels: int = 784) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(pixels, dtype=np.uint8).reshape(1, -1)).save(content, "PNG")
    return content.getvalue()


def write_images(path: Path, encoded: list[bytes], labels: list[int], column: str = "image") -> Path:
    images = pa.array([{"bytes": content, "path": None} for content in encoded])
    pq.write_table(pa.table({column: images, "label": labels}), path)
    return path


@pytest.mark.parametrize("column", ["image", "img"])
def test_parquet_images_are_decoded_in_order(tmp_path: Path, column: str) -> None:
    path = write_images(tmp_path / "train.parquet", [png(), png()], [3, 7], column)
    images, labels = read_parquet_images(path)
    assert images.shape == (2, 1, 1, 784)
    assert images[1, 0, 0].tolist() == [i % 256 for i in range(784)]
    assert labels.tolist() == [3, 7]


def test_a_few_images_are_not_mnist(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_images(tmp_path / f"{name}.parquet", [png()], [3])
    with pytest.raises(
        ValueError,
        match=r"10,000 images of 28x28, found 1 of 1x784 and 1 of 1x784; give --data-root .*mnist/train",
    ):
        mnist(tmp_path)


def write_other_columns(path: Path) -> None:
    pq.write_table(pa.table({"pixels": [1], "label": [2]}), path)


def write_column_without_bytes(path: Path) -> None:
    pq.write_table(pa.table({"image": [b"123"], "label": [2]}), path)


def write_no_image(path: Path) -> None:
    write_images(path, [b"not a png"], [2])


def write_images_of_two_sizes(path: Path) -> None:
    write_images(path, [png(784), png(100)], [2, 3])


def write_text_file(path: Path) -> None:
    path.write_text("this is not a Parquet file, however long it may be")


@pytest.mark.parametrize(
    "damage",
    [
        write_other_columns,
        write_column_without_bytes,
        write_no_image,
        write_images_of_two_sizes,
        write_text_file,
    ],
)
def test_malformed_parquet_is_a_value_error_that_names_the_file(tmp_path: Path, damage) -> None:
    damage(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train\.parquet: ") as error:
        read_parquet_images(tmp_path / "train.parquet")
    assert "\n" not in str(error.value)
