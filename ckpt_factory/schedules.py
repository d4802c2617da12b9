"""Learning-rate schedules: the factor on the rate as a function of (step, num_steps)."""

import difflib
import math
from collections.abc import Callable
from typing import Literal, get_args

Schedule = Literal["cosine", "constant", "inverse-time", "inverse-time-squared"]

HALF_LIFE = 1 / 4
"""Share of the training after which the inverse-time schedules have halved the rate: on digits-mlp-v0 the
best of 1/4, 1/8 and 1/16 for AdamW and Lion, while SGD's test error is the same with all three."""


def cosine(step: int, num_steps: int) -> float:
    """From 1 to 0 along half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def constant(step: int, num_steps: int) -> float:
    """1 throughout."""
    return 1.0


def inverse_time(step: int, num_steps: int) -> float:
    """(2 alpha_0 p_0 t + 1)^-1 (Su 2022, kexue.fm/archives/9344, "dynamic convergence").

    What convergence slows down to is only known in hindsight, so 2 alpha_0 p_0 is set by when the rate has
    halved, `HALF_LIFE` of the training; it ends at 1/5.
    """
    return 1 / (1 + step / (HALF_LIFE * num_steps))


def inverse_time_squared(step: int, num_steps: int) -> float:
    """(alpha_0 p t + 1)^-2 (Su 2022, kexue.fm/archives/9344, "analytic approximation"; constant p).

    alpha_0 p = (sqrt(2) - 1) / T halves the rate in T steps, as there; T is `HALF_LIFE` of the training. It
    falls faster afterwards: it ends at 1/7.
    """
    return (1 + (math.sqrt(2) - 1) * step / (HALF_LIFE * num_steps)) ** -2


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": cosine,
    "constant": constant,
    "inverse-time": inverse_time,
    "inverse-time-squared": inverse_time_squared,
}
assert tuple(SCHEDULES) == get_args(Schedule)


def lr_factor(name: str, step: int, num_steps: int, every: int = 1) -> float:
    """Factor on the learning rate for the step-th update, 0 <= step < num_steps.

    Args:
        every: the factor is held for that many steps. With the batches of an epoch this is the published
            recipe, lr(e) = (1 + cos(pi e / E)) / 2 in epoch e of E.

    Raises:
        ValueError: no such schedule; the message suggests the nearest name. Or `every` is below 1.
    """
    if name not in SCHEDULES:
        close = difflib.get_close_matches(name, SCHEDULES, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown schedule {name!r}. {hint}Known schedules: {', '.join(SCHEDULES)}")
    if every < 1:
        raise ValueError(f"every is {every}; expected at least 1 step")
    return SCHEDULES[name](step - step % every, num_steps)
