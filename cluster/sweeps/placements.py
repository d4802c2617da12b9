"""Giving back what trials held that were stopped: the CPUs and GPUs of their Ray Train runs.

A trial that Ray Tune stops takes its Ray Train run with it, but not that run's placement group. What Ray 2.60
has for that, `PlacementGroupCleaner`, asks the dashboard, which a Ray started here does not run, and which it
does not find where a machine runs several: the next trials would wait for those CPUs for ever.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray._private import state
from ray.tune.experiment import Trial
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from ckpt_factory.files import write_text

PLACEMENT = "placement.json"


class Placement(NamedTuple):
    """Of a trial's Ray Train run: its placement group, and the first of its workers, both by their ids."""

    group: str
    worker: str


def note_placement(out: Path) -> None:
    """Note in a trial's folder what holds its CPUs; called by its first worker."""
    group = get_current_placement_group()
    if group is not None:
        placement = Placement(group.id.hex(), ray.get_runtime_context().get_actor_id() or "")
        write_text(out / PLACEMENT, json.dumps(placement._asdict()) + "\n")


class GiveBack(tune.Callback):
    """Removes the placement groups of trials that were stopped or failed, when their workers are dead."""

    def __init__(self, folder_of: Callable[[dict[str, Any]], Path]) -> None:
        """Args: folder_of: the folder of a trial, by what Ray Tune drew for it."""
        self.folder_of = folder_of
        self.left: set[Placement] = set()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        path = self.folder_of(trial.config) / PLACEMENT
        if path.exists():
            self.left.add(Placement(**json.loads(path.read_text(encoding="utf-8"))))
            path.unlink()

    on_trial_error = on_trial_recover = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for placement in [each for each in self.left if _is_dead(each.worker)]:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(placement.group))))
            self.left.remove(placement)


def _is_dead(actor_id: str) -> bool:
    """By Ray's own table: what is public asks the dashboard."""
    return state.actors(actor_id).get("State", "DEAD") == "DEAD"
