"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Screen(Console):
    """Rich's own ends the process where nobody reads what is written any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = Console(stderr=True)
LINE_EVERY_S = 5.0


class ProgressBar:
    """`with ProgressBar("zoo", total, "runs") as bar: bar.update(done, "83 runs/s")`."""

    def __init__(self, title: str, total: float, unit: str):
        self.title, self.total, self.unit = title, total, unit
        self.started = self.last_line = time.monotonic()
        self.shown = 0.0
        self.bar = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )

    def __enter__(self) -> "ProgressBar":
        if self.bar:
            self.bar.start()
            self.row = self.bar.add_task(self.title, total=self.total, note="")
        else:
            self._line(0, "")
        return self

    def update(self, done: float, note: str = "") -> None:
        if self.bar:
            self.bar.update(self.row, completed=done, note=note)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S or done >= self.total > self.shown:
            self._line(done, note)

    def _line(self, done: float, note: str) -> None:
        self.last_line, self.shown = time.monotonic(), done
        elapsed = self.last_line - self.started
        sys.stderr.write(
            f"{self.title}: {done:.0f}/{self.total:.0f} {self.unit} in {elapsed:.0f} s  {note}\n"
        )
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()


def rate(done: float, seconds: float, unit: str) -> str:
    """How fast, in the unit that has figures to show: "83 runs/s", "0.42 runs/s", "12 s/run"; nothing before
    one is done."""
    if done < 1 or not seconds:
        return ""
    per_s = done / seconds
    if per_s < 0.1:
        return f"{1 / per_s:,.0f} s/{unit}"
    return f"{per_s:,.0f} {unit}s/s" if per_s >= 10 else f"{per_s:.2g} {unit}s/s"


def say(text: str, *, label: str = "", style: str = "yellow") -> None:
    """One line for the user, beside the progress bars; a label like "warning" stands before it in colour."""
    line = Text.assemble((f"{label}: ", style), text) if label else Text(text)
    console.print(line, soft_wrap=True)


@contextmanager
def followed(bar: ProgressBar, update: Callable[[ProgressBar], None], every_s: float) -> Iterator[None]:
    """Shows a bar while the block runs, and updates it from a thread every few seconds."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(every_s):
            update(bar)

    with bar:
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
