"""Where training workers meet: a folder that is there while they work, and not after."""

from pathlib import Path
from typing import Any

import pytest

from cluster.rendezvous import FileRendezvous, LoopbackTorchConfig


class Group:
    """Two workers, as Ray Train shows them to a backend, which die on the way."""

    def __init__(self) -> None:
        self.stores: list[Path] = []

    def __len__(self) -> int:
        return 2

    def execute_single_async(self, rank: int, join: Any, store: str, *_: Any) -> int:
        self.stores.append(Path(store))
        self.stores[-1].touch()
        return rank

    def execute_async(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("the workers are dead")


def test_the_folder_of_a_rendezvous_does_not_outlive_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get", list)
    meeting, group = FileRendezvous(), Group()
    for _ in range(2):  # workers that die are started again
        meeting.on_start(group, LoopbackTorchConfig(backend="gloo"))
        store = group.stores[-1]
        assert store.exists()
        assert store.parent.stat().st_mode & 0o77 == 0, "its user's alone"
        with pytest.raises(RuntimeError, match="dead"):
            meeting.on_shutdown(group, LoopbackTorchConfig(backend="gloo"))
        assert not store.parent.exists()
