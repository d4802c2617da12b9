"""The training log: what workers report, as lines that the progress bar, the report and a resume read."""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from ray.train import UserCallback

from ckpt_factory.files import json_lines, write_text

from .progress import ProgressBar, followed, say

LOG = "training.jsonl"
TAIL_BYTES = 2**14
"""Of a log, more than its last line has."""


class TrainingLog(UserCallback):
    """Appends rank 0's metrics to a file: the learning curve, and what the progress bar follows."""

    def __init__(self, path: Path):
        self.path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics[0]) + "\n")


def read_log(path: Path) -> list[dict[str, float | int]]:
    """The learning curve, one entry per reported step; of a step done twice, after a resume, the last."""
    return [entry for _, entry in sorted({entry["step"]: entry for entry in json_lines(path)}.items())]


def last_entry(path: Path) -> dict[str, float | int] | None:
    """What was reported last, read from the end of the log, however long it has become."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with suppress(json.JSONDecodeError):  # a line that is still being written, or that a kill has torn
            return json.loads(line)
    return None


def resume_log(folder: Path, saved: int | None) -> None:
    """Say where the training in a folder goes on, after step `saved`, and forget what will be done again."""
    entries = read_log(folder / LOG)
    if saved is not None:
        say(f"resuming the training in {folder} from step {saved:,}")
    elif entries:
        say(f"nothing of the interrupted training in {folder} can be gone on from: beginning again")
    kept = [entry for entry in entries if saved is not None and entry["step"] <= saved]
    write_text(folder / LOG, "".join(json.dumps(entry) + "\n" for entry in kept))


def warn_if_warming_up(steps: int, warmup_steps: int) -> None:
    """Say of a training that it ended before its learning rate was up."""
    if steps <= warmup_steps:
        say(
            f"only {steps} steps were made, and the learning rate rises during the first {warmup_steps}: the "
            "generator has hardly learned anything; give it more time",
            label="warning",
        )


def percent_done(log: Path) -> tuple[float, str]:
    """How far a training is, 0 to 100, and what there is to say of it: before its first report, too."""
    if last := last_entry(log):
        note = f"loss {last['loss']:.3f}, {last['pairs_per_s']:.0f} pairs/s per worker"
        return 100 * last["progress"], note
    return 0.0, "workers start, read runs and make their first steps; nothing is reported yet"


def following(log: Path) -> AbstractContextManager[None]:
    """A bar that follows the training log while the block runs."""

    def update(bar: ProgressBar) -> None:
        bar.update(*percent_done(log))

    return followed(ProgressBar("train", 100, "%"), update, every_s=1.0)


def following_all(
    title: str, folders: Callable[[], Iterable[Path]], result: str, total: int, unit: str
) -> AbstractContextManager[None]:
    """A bar that follows the trainings in folders, each finished when it holds its result."""

    def update(bar: ProgressBar) -> None:
        finished, under_way = 0, 0.0
        for each in folders():
            if (each / result).exists():
                finished += 1
            elif last := last_entry(each / LOG):
                under_way += float(last["progress"])
        bar.update(100 * (finished + under_way) / total, f"{finished} of {total} {unit} finished")

    return followed(ProgressBar(title, 100, "%"), update, every_s=2.0)
