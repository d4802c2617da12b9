"""StackedDynamics: an environment whose N copies are the columns of one state array."""

import math
from abc import abstractmethod

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped

from .stacked import StackedEnv, Transition


class StackedDynamics(StackedEnv):
    """An environment that is a function of arrays; a subclass says how it starts, advances and is seen.

    The state's entries are Gymnasium's: `gymnasium.make(id).unwrapped.state = env.state[:, i]` puts a
    Gymnasium environment where copy i is.
    """

    state: Shaped[np.ndarray, "S N"]

    def __init__(self, max_steps: int):
        self.max_steps = max_steps
        self.reset(np.zeros(0, dtype=np.int64))

    @abstractmethod
    def _initial(self, seeds: Int64[np.ndarray, " N"]) -> Shaped[np.ndarray, "S N"]:
        """Initial states."""

    @abstractmethod
    def _advance(
        self, actions: Shaped[np.ndarray, "N ..."]
    ) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
        """Bring `state` one step on, and give rewards and which copies terminate."""

    def _observe(self, state: Shaped[np.ndarray, "S N"]) -> Float32[np.ndarray, "N O"]:
        """What a policy sees of these states, in an array of its own."""
        return state.T.astype(np.float32, order="C")

    def reset(self, seeds: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N O"]:
        self.state = self._initial(seeds)
        self._steps = np.zeros(len(seeds), dtype=np.int32)
        self._ended = np.zeros(len(seeds), dtype=np.bool_)
        self.broken = np.zeros(len(seeds), dtype=np.bool_)
        self.why_broken = ""
        return self._observe(self.state)

    def step(self, actions: Shaped[np.ndarray, "N ..."]) -> Transition:
        with np.errstate(all="ignore"):  # copies that have ended may go anywhere
            reward, terminated = self._advance(actions)
            obs = self._observe(self.state)
            finite = math.isfinite(obs.sum())
        self._steps += 1
        truncated = self._steps >= self.max_steps
        if not finite:
            self._flag(obs)
        if self.why_broken:
            obs[self.broken], reward[self.broken], terminated[self.broken] = 0, np.nan, True
        self._ended |= terminated
        self._ended |= truncated
        return Transition(obs, reward.astype(np.float32, copy=False), terminated, truncated)

    def _flag(self, obs: Float32[np.ndarray, "N O"]) -> None:
        """Find the copies that are not finite, and put them where they cost no more."""
        lost = ~np.isfinite(obs).all(axis=1)
        self.broken |= lost & ~self._ended
        if self.broken.any():
            self.why_broken = self.why_broken or "its state became NaN or infinite, as from an action of NaN"
        self.state[:, lost], obs[lost] = 0, 0

    def restart(
        self, index: Int64[np.ndarray, " M"], seeds: Int64[np.ndarray, " M"]
    ) -> Float32[np.ndarray, "M O"]:
        initial = self._initial(seeds)
        self.state[:, index] = initial
        self._steps[index], self._ended[index], self.broken[index] = 0, False, False
        return self._observe(initial)

    def keep(self, index: Int64[np.ndarray, " M"]) -> None:
        self.state = np.ascontiguousarray(self.state[:, index])
        self._steps, self._ended, self.broken = (
            each[index] for each in (self._steps, self._ended, self.broken)
        )
