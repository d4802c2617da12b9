"""Labelled images for tasks: scikit-learn's digits, MNIST and CIFAR-10, or a folder of Parquet files."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parquet import SPLITS, Shard, Split, named_classes, one_line, read_shards, split_files

NUM_CLASSES = 10
"""Of digits, MNIST and CIFAR-10."""
FOLDER_VALIDATION = 10
"""One in so many training images of a folder is held back for validation, where it has no such file."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images and labels in three splits: {split: (N, *image) uint8}, {split: (N,) int64}.

    Pixels are normalised as (x / full_scale - mean) / std when they are used, so that all workers of a
    machine share one small copy. Mean and std are one number for all pixels, or one for each channel of
    images (C, H, W).
    """

    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    full_scale: float
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]
    num_classes: int = NUM_CLASSES

    def moments(self) -> tuple[float, float]:
        """Mean and std of all pixels.

        Raises:
            ValueError: they are per channel, for networks that have channels.
        """
        if isinstance(self.mean, tuple) or isinstance(self.std, tuple):
            raise ValueError(
                f"mean is {self.mean} and std {self.std}; expected one number each, for images that are "
                "flattened"
            )
        return self.mean, self.std

    @property
    def formula(self) -> str:
        """How pixels become inputs, as an expression."""
        mean, std = (
            f"({', '.join(f'{each:g}' for each in value)})" if isinstance(value, tuple) else f"{value:g}"
            for value in (self.mean, self.std)
        )
        pixels = "pixels" if self.full_scale == 1 else f"pixels / {self.full_scale:g}"
        return f"({pixels} - {mean}) / {std}"


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
    train, test = _load("MNIST", "ylecun/mnist", data_root, "mnist", _torchvision_mnist)
    _check_published("MNIST", data_root, "mnist", (train[0], test[0]), (60_000, 10_000), (28, 28))
    train, test = ((images.reshape(len(images), -1), labels) for images, labels in (train, test))
    return ImageData(
        images={"train": train[0][:50_000], "validation": train[0][50_000:], "test": test[0]},
        labels={"train": train[1][:50_000], "validation": train[1][50_000:], "test": test[1]},
        full_scale=255.0,
        mean=0.1307,
        std=0.3081,
    )


@functools.lru_cache(maxsize=1)  # decoding takes seconds
def cifar10(data_root: Path | None) -> ImageData:
    """CIFAR-10 as 45,000 train, the last 5,000 of the training file validation, 10,000 test.

    `data_root` is as for `mnist`, with the Parquet files directly in it or under cifar10/. Images are
    (3, 32, 32) and normalised by the published constants.

    Raises:
        ValueError: no such data there, and none could be downloaded; the message says how to get it.
    """
    train, test = _load("CIFAR-10", "uoft-cs/cifar10", data_root, "cifar10", _torchvision_cifar10)
    _check_published("CIFAR-10", data_root, "cifar10", (train[0], test[0]), (50_000, 10_000), (3, 32, 32))
    return ImageData(
        images={"train": train[0][:45_000], "validation": train[0][45_000:], "test": test[0]},
        labels={"train": train[1][:45_000], "validation": train[1][45_000:], "test": test[1]},
        full_scale=1.0,
        mean=(125.3, 123.0, 113.9),
        std=(63.0, 62.1, 66.7),
    )


def image_folder(data_root: Path | None, *, per_channel: bool = False) -> ImageData:
    """A user's images: a folder with train.parquet and test.parquet, or with shards as Hugging Face has them.

    Columns are `image` (or `img`) and `label`; images are of one size, all grey or all colour, and become
    (C, H, W). Labels are 0 to C - 1, where C is what the file's metadata name or what training holds. The
    validation split is validation.parquet, or else the last tenth of the training rows. Mean and standard
    deviation are measured on the training images, of all pixels or per channel.

    Raises:
        ValueError: no such folder or files, or not such images or labels; the message names the file.
    """
    if data_root is None:
        raise ValueError(
            "a task of your images needs --data-root (data_root= in Python): a folder with train.parquet and "
            "test.parquet, columns image and label"
        )
    if not data_root.is_dir():
        raise ValueError(
            f"no folder {data_root}; --data-root names the one with train.parquet and test.parquet"
        )
    files = split_files(data_root)
    for split in ("train", "test"):
        if split not in files:
            raise ValueError(
                f"{data_root}: no {split}.parquet, nor {split}-*.parquet, there or under data/; expected "
                "train.parquet and test.parquet with columns image and label"
            )
    shards = {split: read_shards(paths) for split, paths in files.items()}
    named = named_classes(files["train"][0])
    num_classes = named or 1 + max(int(shard.labels.max()) for shard in shards["train"])
    everything = [shard for split in SPLITS for shard in shards.get(split, [])]
    _check_sizes(everything)
    _check_labels(everything, num_classes, of="the training images")
    images, labels = {}, {}
    for split, parts in shards.items():
        images[split], labels[split] = _whole(parts)
    if "validation" not in files:
        images, labels = _hold_back(images, labels, files["train"][-1])
    present = len(np.unique(labels["train"]))  # no set of all numbers: one label may be absurdly large
    if num_classes < 2 or (present < num_classes and not named):
        found = f"{present} classes, the largest label {num_classes - 1}"
        raise ValueError(
            f"{files['train'][0]}: labels of training images have {found}; expected at least 2 classes, "
            "numbered from 0 without a gap"
        )
    mean, std = _moments(images["train"], per_channel)
    return ImageData(
        images=images, labels=labels, full_scale=255.0, mean=mean, std=std, num_classes=num_classes
    )


def _check_sizes(shards: Sequence[Shard]) -> None:
    first = shards[0]
    for shard in shards:
        size, expected = _size(shard.images.shape), _size(first.images.shape)
        if size != expected:
            raise ValueError(
                f"{shard.path}: its images are {size}, those of {first.path.name} {expected}; expected one "
                "size and kind; resize or convert them before saving"
            )


def _check_labels(shards: Sequence[Shard], num_classes: int, *, of: str) -> None:
    for shard in shards:
        row = int(shard.labels.argmax())
        if shard.labels[row] >= num_classes:
            raise ValueError(
                f"{shard.path}: label {shard.labels[row]} in row {row}; expected 0 to {num_classes - 1}, the "
                f"{num_classes} classes of {of}"
            )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[3]}x{shape[2]} {'grey' if shape[1] == 1 else 'colour'}"


Splits = dict[str, NDArray[Any]]


def _hold_back(images: Splits, labels: Splits, path: Path) -> tuple[Splits, Splits]:
    """The end of the training rows becomes the validation split."""
    y = labels["train"]
    held_back = max(1, len(y) // FOLDER_VALIDATION)
    if held_back == len(y):
        raise ValueError(f"{path}: one training image is too few to hold any back for validation")
    if len(y) > 2 and (np.diff(y) >= 0).all() and y[0] != y[-1]:
        raise ValueError(
            f"{path}: the rows are sorted by label, so that its end, held back for validation, would be of "
            "one class; shuffle them, or put a validation.parquet beside it"
        )
    parts = {"train": slice(None, -held_back), "validation": slice(-held_back, None)}
    return (
        images | {split: images["train"][part] for split, part in parts.items()},
        labels | {split: y[part] for split, part in parts.items()},
    )


def _moments(images: NDArray[np.uint8], per_channel: bool) -> tuple[Any, Any]:
    """Mean and std of pixels / 255, to four digits as the card states them; a constant channel has std 1."""
    values = np.arange(256) / 255
    counts = np.stack([np.bincount(images[:, c].ravel(), minlength=256) for c in range(images.shape[1])])
    counts = counts if per_channel else counts.sum(0, keepdims=True)
    mean = counts @ values / counts.sum(1)
    std = np.sqrt((counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    means = tuple(round(float(each), 4) for each in mean)
    stds = tuple(round(float(each), 4) or 1.0 for each in std)
    return (means, stds) if per_channel else (means[0], stds[0])


def _load(
    name: str, source: str, data_root: Path | None, folder: str, torchvision: Any
) -> tuple[Split, Split]:
    """Training and test split from Parquet files, or else through torchvision."""
    if data_root is None:
        raise ValueError(
            f"{name} needs --data-root (data_root= in Python): a folder with train.parquet and test.parquet "
            f"in the Hugging Face layout, or a folder that torchvision may download {name} into"
        )
    for place in (data_root, data_root / folder):
        files = split_files(place)
        if {"train", "test"} <= files.keys():
            train, test = (read_shards(files[split]) for split in ("train", "test"))
            _check_sizes([*train, *test])
            _check_labels([*train, *test], NUM_CLASSES, of=name)
            return _whole(train), _whole(test)
    try:
        return torchvision(data_root, True), torchvision(data_root, False)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"no {name} in {data_root} and it could not be downloaded ({one_line(error)}). Put train.parquet "
            f"and test.parquet of https://huggingface.co/datasets/{source} there, or run where torchvision "
            "can download"
        ) from None


def _check_published(
    name: str,
    data_root: Path | None,
    folder: str,
    found: tuple[NDArray[Any], NDArray[Any]],
    counts: tuple[int, int],
    shape: tuple[int, ...],
) -> None:
    """Refuse images, for training and tests, that are not as many or as large as a published data set has."""
    shapes = [each.shape[2 if each.shape[1] == 1 else 1 :] for each in found]  # grey ones may name a channel
    if shapes == [shape, shape] and tuple(map(len, found)) == counts:
        return
    size, *sizes = ("x".join(map(str, each)) for each in (shape, *shapes))
    given = " and ".join(f"{len(each):,} of {of}" for each, of in zip(found, sizes, strict=True))
    raise ValueError(
        f"{data_root}: {name} has {counts[0]:,} and {counts[1]:,} images of {size}, found {given}; give "
        f"--data-root (in Python data_root=) a folder with {folder}/train.parquet and {folder}/test.parquet, "
        "or with the two themselves"
    )


def _whole(shards: Sequence[Shard]) -> Split:
    return _joined([shard.images for shard in shards]), _joined([shard.labels for shard in shards])


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _torchvision(dataset: Any, root: Path, train: bool) -> Any:
    try:
        return dataset(root, train=train)
    except RuntimeError:
        if not root.is_dir():
            raise RuntimeError("no such folder; create it to let torchvision download into it") from None
        return dataset(root, train=train, download=True)


def _torchvision_mnist(root: Path, train: bool) -> Split:
    import torchvision  # noqa: PLC0415  as above

    found = _torchvision(torchvision.datasets.MNIST, root, train)
    return found.data.numpy()[:, None], found.targets.numpy()


def _torchvision_cifar10(root: Path, train: bool) -> Split:
    import torchvision  # noqa: PLC0415  as above

    found = _torchvision(torchvision.datasets.CIFAR10, root, train)
    return np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.array(found.targets, np.int64)
