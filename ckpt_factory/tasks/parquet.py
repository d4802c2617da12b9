"""Images and labels from Parquet files in the Hugging Face layout; each error is one line with the file."""

import functools
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

SPLITS = ("train", "validation", "test")
PLACES = (".", "data", "plain_text")
"""Where Hugging Face's own data sets keep their files."""
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}
"""Kinds of images that are taken, and what they become: grey, or colour."""
DAMAGED = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises on bytes that are no image."""

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


class UnusableImage(Exception):
    """An image that can be read, but not taken as it is; the message says what it is, and the cure."""


class Shard(NamedTuple):
    """What one file holds: images (N, C, H, W), labels (N,)."""

    path: Path
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split in a folder: train.parquet, or train-00000-of-00002.parquet and its like.

    Raises:
        ValueError: a split has files of both kinds, or not all of its shards.
    """
    for place in PLACES:
        found = {split: _files(folder / place, split) for split in SPLITS}
        if any(found.values()):
            return {split: files for split, files in found.items() if files}
    return {}


def _files(folder: Path, split: str) -> list[Path]:
    shards, whole = sorted(folder.glob(f"{split}-*.parquet")), folder / f"{split}.parquet"
    if not whole.is_file():
        for shard in shards:
            numbers = re.fullmatch(r".*-(\d+)-of-(\d+)", shard.stem)
            if numbers and int(numbers[2]) != len(shards):
                raise ValueError(
                    f"{shard.parent}: {len(shards)} of the {int(numbers[2])} files of {split} are there "
                    f"({shard.name}, ...); get the others too"
                )
        return shards
    if shards:
        raise ValueError(f"{folder}: both {whole.name} and {shards[0].name} are there; remove one of them")
    return [whole]


def read_shards(paths: Sequence[Path]) -> list[Shard]:
    """Decoded files, kept for the next call as long as they are not changed."""
    stats = [(path, path.stat()) for path in paths]
    return _read_shards(tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats))


@functools.lru_cache(maxsize=3)  # decoding takes seconds; the three splits of one folder
def _read_shards(files: tuple[tuple[Path, int, int], ...]) -> list[Shard]:
    return [Shard(path, *read_parquet_images(path)) for path, _, _ in files]


def read_parquet_images(path: Path) -> Split:
    """Images (N, C, H, W) and labels (N,) of a Parquet file in the Hugging Face layout.

    The image column is `image` or `img`, encoded bytes or a struct that has them as `bytes`; the label column
    is `label`, integers from 0.

    Raises:
        ValueError: the file is not such; the message names it and what is wrong.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({one_line(error)})") from None
    column = next((name for name in ("image", "img") if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise ValueError(
            f"{path}: expected columns image (or img) and label, found {', '.join(table.column_names)}"
        )
    if not len(table):
        raise ValueError(f"{path}: it has no rows")
    labels = _labels(path, table["label"])
    encoded = table[column]
    if pa.types.is_struct(encoded.type) and encoded.type.get_field_index("bytes") >= 0:
        encoded = pc.struct_field(encoded, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    if not (pa.types.is_binary(encoded.type) or pa.types.is_large_binary(encoded.type)):
        raise ValueError(f"{path}: expected column {column} to hold encoded images, found {encoded.type}")
    return _images(path, column, encoded), labels


def _images(path: Path, column: str, encoded: Any) -> NDArray[np.uint8]:
    images = np.empty(0, np.uint8)
    for row, content in enumerate(encoded):
        try:
            image = _decode(content.as_py())
        except UnusableImage as error:
            raise ValueError(f"{path}: row {row} of column {column} {error}") from None
        except DAMAGED as error:
            raise ValueError(
                f"{path}: row {row} of column {column} is not a readable image ({one_line(error)})"
            ) from None
        if not row:
            images = np.empty((len(encoded), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"{path}: expected images of one size, found (channels, height, width) {images.shape[1:]} in "
                f"row 0 and {image.shape} in row {row}; image.resize((width, height)), or .convert('RGB') "
                "where channels differ, before saving makes them so"
            )
        images[row] = image
    return images


def _decode(content: bytes | None) -> NDArray[np.uint8]:
    """One image as (C, H, W)."""
    if content is None:
        raise ValueError("it has no bytes; save the data set with its images embedded")
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in MODES:
            raise UnusableImage(
                f"is of mode {image.mode}; expected 8-bit grey (L) or colour (RGB): image.convert('RGB') or "
                "image.convert('L') before saving makes it so"
            )
        pixels = np.asarray(image if image.mode == MODES[image.mode] else image.convert(MODES[image.mode]))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _labels(path: Path, column: pa.ChunkedArray) -> NDArray[np.int64]:
    if not pa.types.is_integer(column.type):
        raise ValueError(
            f"{path}: expected integers from 0 in column label, found {column.type}; map the classes to 0, "
            "1, 2, ... before saving, sorted(set(labels)).index(label)"
        )
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(f"{path}: row {row} has no label")
    labels = column.to_numpy().astype(np.int64)
    row = int(labels.argmin())
    if labels[row] < 0:
        raise ValueError(f"{path}: label {labels[row]} in row {row}; expected integers from 0")
    return labels


def named_classes(path: Path) -> int | None:
    """How many classes a file's own metadata name, if they do."""
    metadata = pq.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return len(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
