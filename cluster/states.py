"""The states that Ray Train saves of a training, and which of them it goes on from."""

import json
import zipfile
from pathlib import Path
from typing import Any

import ray.train
import torch

from ckpt_factory.files import write_text

from .progress import say

RAY_FOLDER, RUN, STATE = "ray_train", "run", "state.pt"
NOTE = "checkpoint_manager_snapshot.json"
"""Where Ray Train notes which states there are, the newest last; it goes on from that one."""


def name_of_step(step: float) -> str:
    """The folder of the state after so many steps."""
    return f"step-{step:08.0f}"


def load_state(checkpoint: ray.train.Checkpoint) -> dict[str, Any]:
    with checkpoint.as_directory() as folder:
        return torch.load(Path(folder) / STATE, weights_only=True, map_location="cpu")


def last_sound_step(out: Path) -> int | None:
    """The step that the training in a folder goes on from; None: it begins.

    States that are damaged, as a full or broken disk leaves them, or gone are named and taken out of Ray
    Train's note, so that it goes on from the newest of the others; a note that a kill has torn is written
    anew.
    """
    folder = out / RAY_FOLDER / RUN
    note = folder / NOTE
    if not note.exists():
        return None
    noted, damaged = _noted(note), {}
    if noted is None:
        damaged[note] = "it is no JSON that lists states"
    names = sorted(path.name for path in folder.glob("step-*")) if noted is None else noted
    sound = [name for name in names if (folder / name).is_dir()]
    damaged |= {folder / name / STATE: "it is gone" for name in names if name not in sound}
    while sound and (why := _damage(folder / sound[-1])):
        damaged[folder / sound.pop() / STATE] = why
    where = f"step {_step(sound[-1]):,}" if sound else "the beginning"
    for path, why in damaged.items():
        say(f"{path} is damaged ({why}); going on from {where}", label="warning")
    if damaged:
        write_text(note, json.dumps(_note(sound)))
    return _step(sound[-1]) if sound else None


def is_state_saved(out: Path) -> bool:
    """Whether the training in a folder has noted a state that it may go on from."""
    note = out / RAY_FOLDER / RUN / NOTE
    return note.exists() and _noted(note) != []


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _noted(note: Path) -> list[str] | None:
    """The folders that Ray Train's note lists, oldest first; None if it is torn."""
    try:
        listed = json.loads(note.read_text(encoding="utf-8"))["checkpoint_results"]
        return [each["checkpoint_dir_name"] for each in listed]
    except (ValueError, KeyError, TypeError):
        return None


def _damage(folder: Path) -> str | None:
    """Why the state in a folder cannot be gone on from, if that is so."""
    try:
        with zipfile.ZipFile(folder / STATE) as archive:  # whose sums torch.load does not look at
            if (bad := archive.testzip()) is not None:
                return f"{bad} in it is not as it was written"
        load_state(ray.train.Checkpoint.from_directory(str(folder)))
    except Exception as error:  # there is no end to what damaged bytes make a reader raise
        return " ".join(f"{error}".split())[:160] or type(error).__name__
    return None


def _note(names: list[str]) -> dict[str, Any]:
    """What Ray Train notes, in its own words, of a training that has saved these states and nothing since."""
    results = [{"checkpoint_dir_name": name, "metrics": {"step": _step(name)}} for name in names]
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1] if results else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
