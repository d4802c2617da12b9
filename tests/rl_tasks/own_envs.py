"""Environments of a third party, registered when this module is imported: odd spaces, faults, no limits."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete


class Counting(gymnasium.Env):
    """Observes (seed's draw, steps) as a 2-D Box; rewards each action by its own value."""

    observation_space = Box(-np.inf, np.inf, (1, 2), dtype=np.float64)
    action_space = Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.draw, self.steps = self.np_random.random(), 0
        return self.observed(), {}

    def observed(self) -> np.ndarray:
        return np.array([[self.draw, self.steps]])

    def step(self, action):
        self.steps += 1
        return self.observed(), float(action), False, False, {}


class Faulty(Counting):
    """Does `fault` in its third step, if the seed's draw is above a half."""

    closed = 0

    def __init__(self, fault: str):
        self.fault = fault

    def close(self) -> None:
        Faulty.closed += 1

    def step(self, action):
        obs, reward, *rest = super().step(action)
        if self.draw > 0.5 and self.steps == 3:
            if self.fault == "raise":
                raise RuntimeError("the robot\nfell off the table")
            if self.fault == "nan observation":
                obs = obs * np.nan
            if self.fault == "infinite reward":
                reward = np.inf
            if self.fault == "wrong shape":
                obs = np.zeros((1, 3))
        return obs, reward, *rest


class Quitting(Counting):
    """Truncates itself after two steps."""

    def step(self, action):
        obs, reward, terminated, _, info = super().step(action)
        return obs, reward, terminated, self.steps >= 2, info


class Recording(Counting):
    """Continuous actions in two dimensions, one unbounded; the observation is the last action."""

    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Box(np.array([-1.0, -np.inf]), np.array([2.0, np.inf]), dtype=np.float64)

    def observed(self) -> np.ndarray:
        return np.zeros(2)

    def step(self, action):
        assert self.action_space.contains(action)
        return action, 1.0, False, False, {}


class DictObserved(Counting):
    observation_space = Dict({"a": Box(0, 1, (2,)), "b": Discrete(3)})


class ManyActions(Counting):
    action_space = MultiDiscrete([2, 3])


class NoActions(Counting):
    action_space = Box(-1, 1, (0,))


class Unmakeable(Counting):
    def __init__(self):
        raise OSError("no licence\nfound")


for kind in (Counting, Faulty, Quitting, Recording, DictObserved, ManyActions, NoActions, Unmakeable):
    gymnasium.register(f"{kind.__name__}-v0", kind)
gymnasium.register("Limited-v0", Counting, max_episode_steps=4)
for fault in ("raise", "nan observation", "infinite reward", "wrong shape"):
    gymnasium.register(f"Faulty-{fault.replace(' ', '-')}-v0", Faulty, kwargs={"fault": fault})
