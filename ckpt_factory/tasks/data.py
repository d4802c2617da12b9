"""Labelled images for tasks: scikit-learn's digits, or MNIST from torchvision or from Parquet files."""

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images and labels in three splits: {split: (N, *image) uint8}, {split: (N,) int64}.

    Pixels are normalised as (x / full_scale - mean) / std when they are used, so that all workers of a
    machine share one small copy.
    """

    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    full_scale: float
    mean: float
    std: float


def digits(data_root: Path | None = None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits of 8x8: 1,077 train, 360 validation, 360 test."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  a second of start-up in every worker otherwise

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(images))
    parts = np.split(order, [1077, 1437])
    splits = dict(zip(("train", "validation", "test"), parts, strict=True))
    return ImageData(
        images={split: images[part].astype(np.uint8) for split, part in splits.items()},
        labels={split: labels[part].astype(np.int64) for split, part in splits.items()},
        full_scale=16.0,
        mean=0.3049,  # of the training images, as is std
        std=0.3757,
    )


@functools.lru_cache(maxsize=1)  # decoding takes seconds
def mnist(data_root: Path | None) -> ImageData:
    """MNIST as 50,000 train, the last 10,000 of the training file validation, 10,000 test.

    `data_root` holds train.parquet and test.parquet in the Hugging Face layout (directly or under mnist/), or
    is a torchvision root, into which MNIST is downloaded where it is missing.

    Raises:
        ValueError: no such data there, and none could be downloaded; the message says how to get it.
    """
    train, test = _load_mnist(data_root)
    return ImageData(
        images={"train": train[0][:50_000], "validation": train[0][50_000:], "test": test[0]},
        labels={"train": train[1][:50_000], "validation": train[1][50_000:], "test": test[1]},
        full_scale=255.0,
        mean=0.1307,
        std=0.3081,
    )


def with_label_noise(
    labels: Int[Tensor, " N"], share: float, num_classes: int, *, rng: torch.Generator
) -> Int[Tensor, " N"]:
    """Labels of which that share, drawn independently, is replaced by another class, uniformly."""
    if share == 0:
        return labels
    flipped = torch.rand(len(labels), generator=rng) < share
    other = (labels + torch.randint(1, num_classes, labels.shape, generator=rng)) % num_classes
    return torch.where(flipped, other, labels)


Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _load_mnist(data_root: Path | None) -> tuple[Split, Split]:
    if data_root is None:
        raise ValueError(
            "MNIST needs --data-root (data_root= in Python): a folder with train.parquet and test.parquet in "
            "the Hugging Face layout, or a folder that torchvision may download MNIST into"
        )
    for folder in (data_root, data_root / "mnist"):
        if (folder / "train.parquet").is_file() and (folder / "test.parquet").is_file():
            train, test = (read_parquet_images(folder / f"{name}.parquet") for name in ("train", "test"))
            return _whole_mnist(folder, train, test)
    try:
        train, test = (_torchvision_mnist(data_root, train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no MNIST in {data_root} and it could not be downloaded ({_one_line(error)}). Put "
            "train.parquet and "
            "test.parquet of https://huggingface.co/datasets/ylecun/mnist there, or run where torchvision "
            "can download"
        ) from None
    return _whole_mnist(data_root, train, test)


def _whole_mnist(folder: Path, train: Split, test: Split) -> tuple[Split, Split]:
    sizes = (train[0].shape, test[0].shape)
    if sizes != ((60_000, 784), (10_000, 784)):
        raise ValueError(f"{folder}: MNIST has 60,000 and 10,000 images of 28x28, found {sizes}")
    return train, test


def _torchvision_mnist(root: Path, train: bool) -> Split:
    import torchvision  # noqa: PLC0415  as above

    try:
        found = torchvision.datasets.MNIST(root, train=train)
    except RuntimeError:
        if not root.is_dir():
            raise RuntimeError("no such folder; create it to let torchvision download into it") from None
        found = torchvision.datasets.MNIST(root, train=train, download=True)
    return found.data.flatten(1).numpy(), found.targets.numpy()


def read_parquet_images(path: Path) -> Split:
    """Images (N, pixels) and labels (N,) of a Parquet file in the Hugging Face layout.

    The image column is `image` or `img`, a struct with encoded `bytes`; the label column is `label`.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({_one_line(error)})") from None
    column = next((name for name in ("image", "img") if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise ValueError(
            f"{path}: expected columns image (or img) and label, found {', '.join(table.column_names)}"
        )
    try:
        encoded = pc.struct_field(table[column], "bytes")  # pyright: ignore[reportAttributeAccessIssue]
        images = np.stack([np.asarray(Image.open(io.BytesIO(png.as_py()))).reshape(-1) for png in encoded])
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected column {column} to hold encoded images of one size ({_one_line(error)})"
        ) from None
    return images, table["label"].to_numpy().astype(np.int64)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
