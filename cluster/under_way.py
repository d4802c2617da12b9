"""UnderWay: how far the stacks are that actors work on, in small files beside a zoo that is being made."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ckpt_factory.files import atomic_path

EVERY_S = 2.0
"""Seconds between two notes of an actor, and between two looks at them."""


@dataclass(frozen=True)
class UnderWay:
    """A folder, there while a zoo is made, with a file for each unit that has been begun.

    Nothing depends on it: what cannot be written or read is left out, and what a kill leaves behind is
    removed the next time.
    """

    folder: Path

    @classmethod
    def of_zoo(cls, path: Path) -> "UnderWay":
        return cls(path / "under-way")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The folder is there, empty at first, while the block runs."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def note(self, unit: int, share: float) -> None:
        """Note how much of a unit is done, from 0 to 1, if anybody wants to know."""
        with suppress(OSError):
            if self.folder.is_dir():
                with atomic_path(self.folder / str(unit)) as temporary:
                    temporary.write_text(f"{share:.4f}")

    def notes_of(self, unit: int, every_s: float = EVERY_S) -> Callable[[float], None]:
        """What notes the share of a unit, the first time at once and then every few seconds at most."""
        noted = -every_s

        def progress(share: float) -> None:
            nonlocal noted
            if (now := time.monotonic()) - noted >= every_s:
                noted = now
                self.note(unit, share)

        return progress

    def shares(self) -> dict[int, float]:
        """unit -> how much of it is done, as last noted."""
        found = {}
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError, ValueError):  # being replaced, or a temporary one
                    found[int(path.name)] = float(path.read_text())
        return found
