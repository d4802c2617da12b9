"""make_stacked: the N copies of an environment that policies live in, by its Gymnasium id."""

from .dynamics import CartPole
from .seeds import mix, uniforms
from .stacked import Spaces, StackedEnv, Transition

__all__ = ["Spaces", "StackedEnv", "Transition", "make_stacked", "mix", "uniforms"]

DYNAMICS = {"CartPole-v1": CartPole}
"""Environments that are stepped as arrays."""


def make_stacked(env_id: str) -> StackedEnv:
    """Copies of the environment of that id; `reset` says how many.

    Raises:
        ValueError: there is none of that id.
    """
    if env_id not in DYNAMICS:
        raise ValueError(f"unknown environment {env_id!r}; known are {', '.join(DYNAMICS)}")
    return DYNAMICS[env_id]()
