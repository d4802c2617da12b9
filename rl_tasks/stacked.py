"""StackedEnv: N copies of one environment stepped together, each a function of its own seed and actions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped


@dataclass(frozen=True)
class Spaces:
    """What a policy sees and may do."""

    observation_size: int
    num_actions: int
    """Of a discrete choice; 0: actions are continuous."""
    action_low: tuple[float, ...] = ()
    """Bounds of every continuous action, -inf where there is none."""
    action_high: tuple[float, ...] = ()

    @property
    def action_size(self) -> int:
        """Numbers in a continuous action."""
        return len(self.action_low)


class Transition(NamedTuple):
    """What a step of all copies gives."""

    obs: Float32[np.ndarray, "N O"]
    reward: Float32[np.ndarray, " N"]
    terminated: Bool[np.ndarray, " N"]
    truncated: Bool[np.ndarray, " N"]


class StackedEnv(ABC):
    """N copies of an environment, in one call each step.

    There is no autoreset: what a copy that has ended reports means nothing until `restart`. What a copy
    does is a function of its seed and its actions, whatever N and its place are. Arrays that are returned
    are the caller's: later calls do not write into them.
    """

    spaces: Spaces
    max_steps: int
    """The time limit: the step of that number reports truncated, and terminated if it is that too."""
    at_once: int = 8192
    """Copies to step together where there are many more to step: enough for numpy, few enough for caches."""
    notes: tuple[str, ...] = ()
    """What the user should know of this environment, one line each."""
    broken: Bool[np.ndarray, " N"]
    """Copies that raised or gave NaN or infinity: they report terminated, reward NaN and zeros as obs."""
    why_broken: str = ""
    """What befell the first of them."""
    faults: list[str] | None = None
    """Where the first fault of the environment's own is noted, in one line; an action of NaN is none."""

    @abstractmethod
    def reset(self, seeds: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N O"]:
        """Start len(seeds) copies, whatever was there before; seeds are not negative."""

    @abstractmethod
    def step(self, actions: Shaped[np.ndarray, "N ..."]) -> Transition:
        """One step of all copies.

        Args:
            actions: (N,) integers from 0, or (N, A) floats, which are clipped to the bounds.
        """

    @abstractmethod
    def restart(
        self, index: Int64[np.ndarray, " M"], seeds: Int64[np.ndarray, " M"]
    ) -> Float32[np.ndarray, "M O"]:
        """Begin new episodes in some of the copies."""

    @abstractmethod
    def keep(self, index: Int64[np.ndarray, " M"]) -> None:
        """Go on with these copies alone, in this order: evaluation drops those that have ended."""

    def close(self) -> None:  # noqa: B027  most hold nothing
        """Let go of what the copies hold beside their memory, as simulators in C do."""
