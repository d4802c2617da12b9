"""Rollouts: K policies in E copies of an environment each, stepped together through episode after episode."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from .algorithm import EPISODES
from .heads import Head
from .policy import Activation, Layers, for_steps, forward
from .seeds import mix
from .stacked import StackedEnv


class Rollout(NamedTuple):
    """T steps of all copies. Observations are scaled, as policies see them."""

    observations: Float32[ndarray, "K T E O"]
    outputs: Float32[ndarray, "K T E A"]
    """Of the policies, at those observations."""
    actions: Float32[ndarray, "K T E a"]
    rewards: Float32[ndarray, "T K E"]
    terminated: Bool[ndarray, "T K E"]
    truncated: Bool[ndarray, "T K E"]
    """Cut off by the time limit, and not terminated by the same step."""
    final_observations: Float32[ndarray, "M O"]
    """Those that truncated episodes ended with, in the order of `truncated.nonzero()`."""
    next_observations: Float32[ndarray, "K E O"]
    """Where the next rollout begins."""


class Copies:
    """E copies of an environment for each of K policies, in the middle of their episodes.

    The i-th episode of copy e of run k starts from mix(seeds[k], EPISODES, e, i): from its own run alone.
    """

    def __init__(
        self, env: StackedEnv, seeds: Int64[ndarray, " K"], num_copies: int, scale: Float32[ndarray, " O"]
    ):
        self.env, self.scale = env, scale
        self.shape = (len(seeds), num_copies)
        self.seeds = seeds.repeat(num_copies)
        self.copy = np.tile(np.arange(num_copies), len(seeds))
        self.begun = np.zeros(self.copy.shape, np.int64)
        self.observations = env.reset(mix(self.seeds, EPISODES, self.copy, self.begun))

    def rollout(
        self,
        layers: Layers,
        log_std: ndarray | None,
        head: Head,
        activation: Activation,
        noise: Float32[ndarray, "K T E A"],
    ) -> Rollout:
        """As many steps as there is noise for."""
        num_runs, num_copies = self.shape
        num_steps = noise.shape[1]
        layers = for_steps(layers)
        observations = np.empty((num_runs, num_steps, num_copies, len(self.scale)), np.float32)
        outputs = np.empty((num_runs, num_steps, num_copies, head.outputs), np.float32)
        actions = np.empty((num_runs, num_steps, num_copies, head.action_size), np.float32)
        rewards = np.empty((num_steps, num_runs, num_copies), np.float32)
        terminated, truncated = np.empty(rewards.shape, np.bool_), np.empty(rewards.shape, np.bool_)
        finals = [np.empty((0, len(self.scale)), np.float32)]
        for t in range(num_steps):
            x = self._scaled(self.observations)
            out = forward(layers, x, activation)[-1]
            action = head.act(out, log_std, noise[:, t])
            observations[:, t], outputs[:, t], actions[:, t] = x, out, action
            self.observations, reward, over, cut = self.env.step(head.to_env(action))
            cut &= ~over
            rewards[t], terminated[t], truncated[t] = (
                each.reshape(self.shape) for each in (reward, over, cut)
            )
            over |= cut
            if over.any():
                finals.append(self.observations[cut] * self.scale)
                self._begin(over.nonzero()[0])
        return Rollout(
            observations,
            outputs,
            actions,
            rewards,
            terminated,
            truncated,
            np.concatenate(finals),
            self._scaled(self.observations),
        )

    def _scaled(self, observations: Float32[ndarray, "N O"]) -> Float32[ndarray, "K E O"]:
        return (observations * self.scale).reshape(*self.shape, -1)

    def _begin(self, index: Int64[ndarray, " M"]) -> None:
        self.begun[index] += 1
        seeds = mix(self.seeds[index], EPISODES, self.copy[index], self.begun[index])
        self.observations[index] = self.env.restart(index, seeds)
