"""Files that appear whole or not at all."""

import errno
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

TEMPORARY = ".tmp-"
"""Prefix of files being written; readers of Parquet folders skip names that begin with a dot."""

FULL = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up", errno.EFBIG: "file size limit reached"}


class DiskFullError(OSError):
    """Nothing more can be written there; to try again at once is in vain. The message says what to do."""


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn an error of the block that means a full disk into one line about `path`.

    Raises:
        DiskFullError: the disk is full, a quota or a limit on the size of files is reached.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or error.errno not in FULL:
            raise
        raise DiskFullError(
            f"{FULL[error.errno]}: {path} could not be written; what was finished before is safe: free space "
            "and give the same command again, which goes on from there"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, renamed to it when the block succeeds, removed when it does not.

    Its mode is what the umask gives, even where a writer puts a private file of its own in its place, as that
    of safetensors does.

    Raises:
        DiskFullError: there is no space for it.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            if stat.S_IMODE(temporary.stat().st_mode) != mode:
                temporary.chmod(mode)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all, as UTF-8 whatever the locale says."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all.

    Each tensor is written from memory of its own: slices of a single network share theirs, which safetensors
    refuses.
    """
    owned = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(owned, temporary, metadata)


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, one a line; none if there is no file. Lines that a kill has torn are left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def check_writable(folder: Path) -> None:
    """Try to make `folder` and a file in it, or say in one line why that cannot be; nothing of it stays.

    What refuses its input after this check so leaves no empty folder behind.

    Raises:
        ValueError: the folder cannot be made or written into, or holds a Python package.
        DiskFullError: there is no space left for as much as its name.
    """
    if (folder / "__init__.py").exists():
        raise ValueError(f"{folder} is a Python package, nothing to write results into; give another --out")
    made = [each for each in (folder, *folder.parents) if not os.path.exists(each)]  # or not to be seen
    try:
        with full_disk_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
    except DiskFullError:
        raise
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); give another --out") from None
    finally:
        with suppress(OSError):  # another process has begun to write there
            for each in made:
                each.rmdir()


def check_same(what: str, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with other settings, and say which they are.

    Raises:
        ValueError: a setting in `wanted` is not as it is in `held`.
    """
    differs = [f"{key} {held.get(key)} (now {wanted[key]})" for key in wanted if held.get(key) != wanted[key]]
    if differs:
        raise ValueError(
            f"{what}, with {'; '.join(differs)}; give another --out, or the same settings to resume"
        )
