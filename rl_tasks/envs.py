"""make_stacked: the N copies of an environment that policies live in, by its Gymnasium id."""

from collections.abc import Callable

from .classic import Acrobot, CartPole, MountainCarContinuous, Pendulum
from .gym_envs import STEP_LIMIT, GymCopies, find_spec
from .seeds import mix, uniforms
from .stacked import Spaces, StackedEnv, Transition

__all__ = ["Spaces", "StackedEnv", "Transition", "make_stacked", "mix", "uniforms"]

DYNAMICS: dict[str, Callable[[int], StackedEnv]] = {
    "Acrobot-v1": Acrobot,
    "CartPole-v1": CartPole,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "Pendulum-v1": Pendulum,
}
"""Environments that are stepped as arrays; all others in a loop."""


def make_stacked(env_id: str, max_steps: int | None = None) -> StackedEnv:
    """Copies of the environment of that id; `reset` says how many.

    Args:
        env_id: Gymnasium's, "CartPole-v1", or "module:Name-v0" of one that another module registers.
        max_steps: step limit of an episode; None: the registered one, or 1,000 with a note where none is.

    Raises:
        ValueError: no such environment (with a suggestion), it cannot be made, or its spaces are others
            than Box and Discrete.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if env_id in DYNAMICS:
        return DYNAMICS[env_id](max_steps or find_spec(env_id).max_episode_steps or STEP_LIMIT)
    return GymCopies(env_id, max_steps)
