"""Honest returns: a fixed number of episodes on fixed seeds for every network, all run to their end.

Networks wait in a queue for slots of a stacked environment. A slot's copies work through the episodes of its
network, and when all of them have ended, the next network takes the slot: no copy idles while a long episode
ends elsewhere, and no episode is left out because it is long.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from .heads import Head
from .policy import PolicyNet, for_steps, forward
from .stacked import StackedEnv

COPIES_PER_SLOT = 8
"""Of more, more idle when a network's last episodes end; of fewer, matrix products are less efficient."""
ROWS = 4
"""Slots have multiples of so many copies: then what a network does is the same to the bit in all of them."""


@dataclass(frozen=True)
class Episodes:
    """The episodes that networks are measured by: where each starts, and its noise at every step."""

    seeds: Int64[ndarray, "R E"]
    noise: Float32[ndarray, "R E T A"]
    """Of the head's kind; 0 is the deterministic policy. T is the environment's time limit."""


class Played(NamedTuple):
    """What came of episodes."""

    returns: Float64[ndarray, "M E"]
    """Undiscounted; NaN where the environment broke, or the network gave no numbers."""
    lengths: Int64[ndarray, "M E"]
    """Steps of the environment that they took."""


def play_episodes(
    net: PolicyNet,
    head: Head,
    env: StackedEnv,
    theta: Float32[ndarray, "M D"],
    episodes: Episodes,
    scale: Float32[ndarray, " O"],
) -> Played:
    """Every episode, M / R networks in sequence having those of one row. What comes of them depends on a
    network and its episodes alone.

    Args:
        env: is reset; whatever was in it is lost.
    """
    shape = (len(theta), episodes.seeds.shape[1])
    played = Played(np.full(shape, np.nan), np.zeros(shape, np.int64))
    if len(theta):
        with np.errstate(all="ignore"):
            queue = _Queue(net, head, env, theta, episodes, scale, played)
            while len(queue.network):
                queue.step()
    return played


class _Queue:
    """S slots of C copies, and the networks that wait for one."""

    def __init__(
        self,
        net: PolicyNet,
        head: Head,
        env: StackedEnv,
        theta: Float32[ndarray, "M D"],
        episodes: Episodes,
        scale: Float32[ndarray, " O"],
        played: Played,
    ):
        self.net, self.head, self.env, self.scale = net, head, env, scale
        self.played = played
        num_networks, self.num_episodes = played.returns.shape
        self.width = min(-(-self.num_episodes // ROWS) * ROWS, COPIES_PER_SLOT)
        slots = min(num_networks, max(1, env.at_once // self.width))
        self.per_row = num_networks // len(episodes.seeds)
        self.seeds = episodes.seeds.ravel()
        self.num_steps = episodes.noise.shape[2]
        self.noise = episodes.noise.reshape(-1, head.outputs)
        self.params = net.params(theta)
        self.network = np.arange(slots)  # of each slot
        self.waiting = slots  # the first network that has no slot yet
        self.next_episode = np.full(slots, self.width)
        self.first = np.arange(self.width)  # a network's first episodes, those that there are
        self.episode = np.tile(np.minimum(self.first, self.num_episodes - 1), (slots, 1))  # (S, C)
        self.live = np.tile(self.first < self.num_episodes, (slots, 1))
        self.steps = np.zeros(self.episode.shape, np.int64)
        self.totals = np.zeros(self.episode.shape)
        self.log_std = self.params[0][:slots].copy() if head.continuous else None
        self.layers = for_steps([(w[:slots], b[:slots].copy()) for w, b in net.layers(self.params)])
        self.observations = env.reset(self.seeds[self._rows()].ravel())

    def _rows(self) -> Int64[ndarray, "S C"]:
        """Which of all episodes each copy is in."""
        return (self.network // self.per_row)[:, None] * self.num_episodes + self.episode

    def step(self) -> None:
        x = (self.observations * self.scale).reshape(*self.episode.shape, -1)
        outputs = forward(self.layers, x, self.net.act)[-1]
        noise = self.noise.take(self._rows() * self.num_steps + self.steps, axis=0)
        actions = self.head.act(outputs, self.log_std, noise)
        self.observations, reward, over, cut = self.env.step(self.head.to_env(actions))
        self.totals += reward.reshape(self.totals.shape)
        if not np.isfinite(outputs.sum()):
            self.totals[~np.isfinite(outputs).all(-1)] = np.nan  # that is no action, whatever came of it
        self.steps += self.live
        over |= cut
        over &= self.live.ravel()
        if over.any():
            self._end(over.nonzero()[0])

    def _end(self, index: Int64[ndarray, " N"]) -> None:
        """Episodes of these copies have ended: note what came of them, and begin others."""
        slot, width = index // self.width, self.width
        which = self.network[slot], self.episode.flat[index]
        self.played.returns[which] = self.totals.flat[index]
        self.played.lengths[which] = self.steps.flat[index]
        self.steps.flat[index] = 0
        following = self.next_episode[slot] + np.arange(len(slot)) - np.searchsorted(slot, slot)
        np.add.at(self.next_episode, slot, 1)
        more = following < self.num_episodes
        self.episode.flat[index[more]] = following[more]
        self.live.flat[index[~more]] = False
        begin = [index[more]]
        for free in np.unique(slot[~more]).tolist():
            if not self.live[free].any() and self.waiting < len(self.played.returns):
                self._load(free, self.waiting)
                self.waiting += 1
                begin.append(free * width + self.first)
        started = np.concatenate(begin)
        if len(started):
            self.totals.flat[started] = 0
            self.observations[started] = self.env.restart(started, self.seeds[self._rows().flat[started]])
        alive = np.any(self.live, axis=1)
        if alive.sum() <= 0.75 * len(alive):
            self._keep(alive.nonzero()[0])

    def _load(self, slot: int, network: int) -> None:
        self.network[slot], self.next_episode[slot] = network, self.width
        self.episode[slot] = np.minimum(self.first, self.num_episodes - 1)
        self.live[slot] = self.first < self.num_episodes
        if self.log_std is not None:
            self.log_std[slot] = self.params[0][network]
        for (weight, bias), (new_weight, new_bias) in zip(
            self.layers, self.net.layers(self.params), strict=True
        ):
            weight[slot], bias[slot] = new_weight[network], new_bias[network]

    def _keep(self, slots: Int64[ndarray, " S"]) -> None:
        """Go on with these slots alone: nothing waits any more, and the others are done."""
        copies = (slots[:, None] * self.width + np.arange(self.width)).ravel()
        self.env.keep(copies)
        self.observations = self.observations[copies]
        for name in ("network", "next_episode", "episode", "live", "steps", "totals"):
            setattr(self, name, getattr(self, name)[slots])
        self.log_std = self.log_std[slots] if self.log_std is not None else None
        self.layers = for_steps([(weight[slots], bias[slots]) for weight, bias in self.layers])
