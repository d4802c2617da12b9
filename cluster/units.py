"""run_units: units of work on a crew of actors, each done at least once or set aside in the end."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

ATTEMPTS = 3
"""How often a unit is tried before it is set aside, and how often in a row an actor may fail to start."""
DEPTH = 2
"""Units at an actor, the one it works on included: the next waits there, the rest here (back-pressure)."""


def run_units(
    spawn: Callable[[], Any],
    units: Iterable[int],
    num_actors: int,
    *,
    fatal: tuple[type[BaseException], ...] = (),
) -> Iterator[tuple[int, dict[str, Any] | RayError]]:
    """Yield (unit, what `actor.run(unit)` returned), or (unit, the last error) once its attempts are used up.

    A unit whose actor dies is tried again, one that raises as well; units that merely waited behind the one
    that killed their actor are queued anew without blame. Work is given to actors that have started only:
    where a node is gone and its successor has to wait for a free CPU, the others do all of it. `run` must be
    idempotent.

    Args:
        fatal: what ends all at its first occurrence, since every other unit would meet it as well.

    Raises:
        RayError: actors fail to start, three times in a row.
        fatal: a unit raised it.
    """
    crew = Crew(spawn, units)
    attempts: dict[int, int] = {}
    failed_starts = 0
    for _ in range(min(num_actors, len(crew.waiting))):
        crew.start()
    while crew.inflight or (crew.waiting and crew.starting):
        (ref,), _ = ray.wait([*crew.inflight, *crew.starting], num_returns=1)
        try:
            result = ray.get(ref)
        except RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, fatal):
                raise cause from None
            if ref in crew.starting:
                failed_starts += 1
                if failed_starts >= ATTEMPTS:
                    raise
                del crew.starting[ref]
                crew.start()
                continue
            unit = crew.take(ref, died=isinstance(error, RayActorError))
            attempts[unit] = attempts.get(unit, 0) + 1
            if attempts[unit] < ATTEMPTS:
                crew.waiting.append(unit)
            else:
                yield unit, error
        else:
            if ref in crew.starting:
                crew.units_of[crew.starting.pop(ref)] = deque()
                failed_starts = 0
            else:
                yield crew.take(ref), result
        crew.hand_out()


class Crew:
    """Actors, the units that each of them holds, and the units that wait for one."""

    def __init__(self, spawn: Callable[[], Any], units: Iterable[int]):
        self.spawn = spawn
        self.waiting = deque(units)
        self.starting: dict[Any, Any] = {}
        """An actor's first sign of life -> the actor."""
        self.units_of: dict[Any, deque[int]] = {}
        """Started actor -> its units, in the order in which it works on them."""
        self.inflight: dict[Any, Any] = {}
        """A result to come -> its actor."""

    def start(self) -> None:
        actor = self.spawn()
        self.starting[actor.__ray_ready__.remote()] = actor

    def hand_out(self) -> None:
        """Give waiting units to actors, breadth first: all have one before any has two."""
        for depth in range(1, DEPTH + 1):
            for actor, own in self.units_of.items():
                if self.waiting and len(own) < depth:
                    own.append(self.waiting.popleft())
                    self.inflight[actor.run.remote(own[-1])] = actor

    def take(self, ref: Any, *, died: bool = False) -> int:
        """The unit that a result is of; if its actor died, the units behind it are queued anew."""
        actor = self.inflight.pop(ref)
        unit = self.units_of[actor].popleft()
        if died:
            for orphan in [other for other, owner in self.inflight.items() if owner == actor]:
                del self.inflight[orphan]
            self.waiting.extendleft(reversed(self.units_of.pop(actor)))
            self.start()
        return unit
