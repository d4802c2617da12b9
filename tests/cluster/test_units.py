"""run_units without Ray: what is tried again, what is set aside, and what ends all at once."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from ckpt_factory.files import DiskFullError
from cluster import units
from cluster.units import ATTEMPTS, run_units


class Remote:
    """An actor's method: calling it gives a reference, which `get` carries out."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def remote(self, *args: Any) -> "Reference":
        return Reference(self.function, args)


class Reference:
    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]):
        self.function, self.args = function, args

    def get(self) -> Any:
        try:
            return self.function(*self.args)
        except Exception as error:
            raise RayTaskError("run", "its traceback", error) from None


class Actor:
    """Does `work` where it is; its `calls` are shared with all actors of a test."""

    def __init__(self, work: Callable[[int], dict[str, Any]], calls: list[int]):
        def run(unit: int) -> dict[str, Any]:
            calls.append(unit)
            return work(unit)

        self.run = Remote(run)
        self.__ray_ready__ = Remote(lambda: True)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units.ray, "wait", lambda refs, num_returns: (refs[:1], refs[1:]))
    monkeypatch.setattr(units.ray, "get", lambda ref: ref.get())


def full_from(unit: int) -> Callable[[int], dict[str, Any]]:
    def work(given: int) -> dict[str, Any]:
        if given >= unit:
            raise DiskFullError("disk full: free space")
        return {"unit": given}

    return work


def test_a_full_disk_ends_all_at_its_first_occurrence() -> None:
    calls: list[int] = []
    made = run_units(lambda: Actor(full_from(2), calls), range(50), 2, fatal=(DiskFullError,))
    done = []
    with pytest.raises(DiskFullError, match=r"^disk full: free space$"):
        done.extend(made)
    assert max(calls) == 2
    assert calls.count(2) == 1, "it is not tried again"


def test_any_other_error_is_tried_again_and_set_aside() -> None:
    calls: list[int] = []
    made = dict(run_units(lambda: Actor(full_from(4), calls), range(5), 2))
    assert [made[unit] for unit in range(4)] == [{"unit": unit} for unit in range(4)]
    assert isinstance(made[4], RayTaskError)
    assert calls.count(4) == ATTEMPTS
