"""GymCopies: any Gymnasium environment of plain spaces as a StackedEnv, its copies stepped in a loop."""

import contextlib
import difflib
import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, Space
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8

from .stacked import Spaces, StackedEnv, Transition

STEP_LIMIT = 1000
"""Of environments that register none."""


def find_spec(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id; "module:Name-v0" imports the module, which registers it, first.

    Raises:
        ValueError: no such module or environment; the message suggests the nearest id.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever somebody's module raises
            file = f"{module.replace('.', '/')}.py"
            raise ValueError(
                f"environment {env_id!r}: cannot import module {module!r} ({_short(error)}); is it "
                f"installed, or {file} in the current folder or on PYTHONPATH?"
            ) from None
    if name not in gymnasium.registry:
        close = difflib.get_close_matches(name, gymnasium.registry, n=1)
        hint = f"Did you mean {module + colon + close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown environment {env_id!r}. {hint}"
            "One that a module of your own registers is named 'module:Name-v0'"
        )
    return gymnasium.registry[name]


class GymCopies(StackedEnv):
    """N environments of `gymnasium.make`, one after the other: as fast as they are themselves.

    Observations are flattened, those of a Discrete space one-hot. Seeds go to `reset(seed=...)` modulo
    2**31, which environments with 32-bit seeds of their own accept. What raises or returns NaN is made
    anew when it is restarted.
    """

    at_once = 64

    def __init__(self, env_id: str, max_steps: int | None = None, *, render_mode: str | None = None):
        self.env_id, self._spec, self._render_mode = env_id, find_spec(env_id), None
        first = self._make()
        if render_mode is not None:
            modes = first.metadata.get("render_modes") or ()
            first.close()
            if render_mode not in modes:
                known = ", ".join(map(str, modes)) or "none"
                raise ValueError(
                    f"environment {env_id!r} cannot be drawn: it has no render mode {render_mode!r} "
                    f"(it has {known}); film another, or give it one"
                )
            self._render_mode = render_mode
            first = self._make()
        self._idle = [first]
        self._observations, self._actions = first.observation_space, first.action_space
        self.spaces = _spaces(env_id, self._observations, self._actions)
        limit = max_steps or self._spec.max_episode_steps
        if limit is None:
            self.notes = (
                f"environment {env_id!r} sets no step limit: its episodes are cut after {STEP_LIMIT:,} steps "
                "(--options max_steps 200 sets another limit)",
            )
        self.max_steps = limit or STEP_LIMIT
        self._envs: list[gymnasium.Env] = []
        self.broken = np.zeros(0, dtype=np.bool_)
        self.reset(np.zeros(0, dtype=np.int64))

    def reset(self, seeds: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N O"]:
        self._idle += [env for env, broken in zip(self._envs, self.broken, strict=True) if not broken]
        self._envs = [self._idle.pop() if self._idle else self._make() for _ in seeds]
        self._steps = np.zeros(len(seeds), dtype=np.int32)
        self._ended = np.zeros(len(seeds), dtype=np.bool_)
        self.broken = np.zeros(len(seeds), dtype=np.bool_)
        self.why_broken = ""
        return self.restart(np.arange(len(seeds)), seeds)

    def restart(
        self, index: Int64[np.ndarray, " M"], seeds: Int64[np.ndarray, " M"]
    ) -> Float32[np.ndarray, "M O"]:
        self._steps[index], self._ended[index] = 0, False
        obs = np.zeros((len(index), self.spaces.observation_size))
        for row, i, seed in zip(obs, index.tolist(), seeds.tolist(), strict=True):
            try:
                if self.broken[i]:
                    self._envs[i], self.broken[i] = self._make(), False
                self._observe(self._envs[i].reset(seed=seed % 2**31)[0], row)
                if not np.isfinite(_float32(row)).all():
                    raise FloatingPointError("its first observation is NaN or infinite")
            except Exception as error:  # whatever somebody's environment raises
                self._break(i, error)
                row[:] = 0
        return _float32(obs)

    def step(self, actions: Shaped[np.ndarray, "N ..."]) -> Transition:
        num_copies, running = len(self._envs), ~self._ended
        obs = np.zeros((num_copies, self.spaces.observation_size))
        reward = np.where(self.broken, np.nan, 0.0)
        terminated, truncated = self._ended.copy(), np.zeros(num_copies, dtype=np.bool_)
        actions = self._acted(actions)
        if not self.spaces.num_actions:
            self._break_all(running & ~np.isfinite(actions).all(axis=1), "an action is NaN or infinite")
        for i in np.flatnonzero(~self._ended).tolist():
            try:
                seen, gain, terminated[i], truncated[i], _ = self._envs[i].step(actions[i])
                self._observe(seen, obs[i])
                reward[i] = np.asarray(gain).item()
            except Exception as error:  # whatever somebody's environment raises
                self._break(i, error)
        obs, reward = _float32(obs), _float32(reward)
        finite = np.isfinite(obs).all(axis=1) & np.isfinite(reward)
        why = "its observation or reward is NaN or infinite"
        self._break_all(running & ~self.broken & ~finite, why, its_own=True)
        obs[self.broken], reward[self.broken], terminated[self.broken] = 0, np.nan, True
        self._steps += 1
        truncated |= self._steps >= self.max_steps
        self._ended |= terminated | truncated
        return Transition(obs, reward, terminated, truncated)

    def keep(self, index: Int64[np.ndarray, " M"]) -> None:
        kept = set(index.tolist())
        self._idle += [env for i, env in enumerate(self._envs) if i not in kept and not self.broken[i]]
        self._envs = [self._envs[i] for i in index.tolist()]
        self._steps, self._ended, self.broken = (
            each[index] for each in (self._steps, self._ended, self.broken)
        )

    @property
    def uses_mujoco(self) -> bool:
        """It draws with OpenGL, which takes a display or another back end."""
        return any(hasattr(each.unwrapped, "mujoco_renderer") for each in (*self._envs, *self._idle))

    def picture(self, i: int) -> UInt8[np.ndarray, "H W 3"]:
        """What copy i draws of itself now, with the render mode "rgb_array"."""
        return np.asarray(self._envs[i].render())

    def close(self) -> None:
        self.reset(np.zeros(0, dtype=np.int64))  # all that are sound are idle
        for env in self._idle:
            env.close()
        self._idle = []

    def _make(self) -> gymnasium.Env:
        try:
            drawn = {} if self._render_mode is None else {"render_mode": self._render_mode}
            return gymnasium.make(self._spec, max_episode_steps=-1, disable_env_checker=True, **drawn)
        except Exception as error:  # a missing dependency, or whatever its constructor raises
            raise ValueError(f"environment {self.env_id!r} cannot be made: {_short(error)}") from None

    def _break_all(self, which: Bool[np.ndarray, " N"], why: str, *, its_own: bool = False) -> None:
        for i in np.flatnonzero(which).tolist():
            self._break(i, FloatingPointError(why), its_own=its_own)

    def _break(self, i: int, error: Exception, *, its_own: bool = True) -> None:
        self.broken[i] = self._ended[i] = True
        if its_own and self.faults is not None and not self.faults:  # the first is enough
            self.faults.append(_short(error))
        self.why_broken = self.why_broken or _short(error)
        with contextlib.suppress(Exception):  # it is broken: whatever it holds, nothing more can be done
            self._envs[i].close()

    def _observe(self, seen: Any, out: Float64[np.ndarray, " O"]) -> None:
        if isinstance(self._observations, Discrete):
            out[int(seen) - int(self._observations.start)] = 1
        else:
            out[:] = np.asarray(seen).reshape(len(out))

    def _acted(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the environments take them, one a row."""
        if isinstance(self._actions, Discrete):
            return actions + self._actions.start
        assert isinstance(self._actions, Box)
        return np.clip(actions, self._actions.low, self._actions.high).astype(self._actions.dtype)


def _float32(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
        return values.astype(np.float32)


def _spaces(env_id: str, observations: Space, actions: Space) -> Spaces:
    """The spaces in our terms.

    Raises:
        ValueError: they are of another kind.
    """
    if not isinstance(observations, Box | Discrete):
        raise ValueError(
            f"environment {env_id!r} has observations {_short(observations)}; supported are Box and Discrete "
            "(register a variant wrapped in gymnasium.wrappers.FlattenObservation)"
        )
    size = int(observations.n if isinstance(observations, Discrete) else np.prod(observations.shape))
    if isinstance(actions, Discrete):
        return Spaces(size, int(actions.n))
    one_row = isinstance(actions, Box) and len(actions.shape) == 1 and actions.shape[0] > 0
    if isinstance(actions, Box) and one_row and np.issubdtype(actions.dtype, np.floating):
        return Spaces(size, 0, tuple(actions.low.tolist()), tuple(actions.high.tolist()))
    raise ValueError(
        f"environment {env_id!r} has actions {_short(actions)}; supported are Discrete and Box of floats in "
        "one dimension, at least one (register a variant whose wrapper makes them so)"
    )


def _short(what: object) -> str:
    """One line of at most 160 characters; of an exception with its kind."""
    text = f"{type(what).__name__}: {what}" if isinstance(what, Exception) else str(what)
    return " ".join(text.split())[:160]
