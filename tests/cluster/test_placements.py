"""What stopped trials held is given back, when their workers are dead and not before."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.sweeps.placements import PLACEMENT, GiveBack, note_placement

from .processes import wait_for


@ray.remote(num_cpus=1)
class Worker:
    def note(self, out: Path) -> None:
        note_placement(out)


def is_removed(group: PlacementGroup) -> bool:
    return placement_group_table(group)["state"] == "REMOVED"


@pytest.mark.ray
def test_what_a_stopped_trial_held_is_removed_when_its_worker_is_dead(
    ray_cluster: int, tmp_path: Path
) -> None:
    group = placement_group([{"CPU": 1}])
    worker = Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    ray.get(worker.note.remote(tmp_path))
    callback = GiveBack(lambda drawn: tmp_path / drawn["name"])
    trial = SimpleNamespace(config={"name": "."})
    callback.on_trial_complete(0, [], SimpleNamespace(config={"name": "another"}))
    callback.on_trial_complete(0, [], trial)
    callback.on_trial_complete(0, [], trial)
    assert not (tmp_path / PLACEMENT).exists()
    callback.on_step_end(0, [])
    assert not is_removed(group), "its worker is alive"
    ray.kill(worker)

    def removed() -> bool:
        callback.on_step_end(0, [])
        return is_removed(group)

    wait_for(removed, 60.0, "it is still held")
    assert not callback.left


@pytest.mark.ray
@pytest.mark.parametrize("hook", ["on_trial_error", "on_trial_recover"])
def test_what_a_failed_trial_of_a_worker_that_ray_has_forgotten_held_is_removed(
    hook: str, ray_cluster: int, tmp_path: Path
) -> None:
    group = placement_group([{"CPU": 1}])
    placement = {"group": group.id.hex(), "worker": "f" * 32}
    (tmp_path / PLACEMENT).write_text(json.dumps(placement))
    callback = GiveBack(lambda drawn: tmp_path)
    getattr(callback, hook)(0, [], SimpleNamespace(config={}))
    callback.on_step_end(0, [])
    assert not callback.left
    wait_for(lambda: is_removed(group), 60.0, "it is still held")
    assert is_removed(group)


@pytest.mark.ray
def test_workers_without_a_placement_group_note_nothing(ray_cluster: int, tmp_path: Path) -> None:
    ray.get(Worker.remote().note.remote(tmp_path))
    assert not list(tmp_path.iterdir())
