"""Generalised advantage estimation (Schulman et al. 2016) of stacks of runs."""

import numpy as np
from jaxtyping import Bool, Float32


def advantages(
    rewards: Float32[np.ndarray, "T K E"],
    values: Float32[np.ndarray, "T K E"],
    next_values: Float32[np.ndarray, "T K E"],
    ended: Bool[np.ndarray, "T K E"],
    discount: Float32[np.ndarray, " K"],
    gae_lambda: Float32[np.ndarray, " K"],
) -> Float32[np.ndarray, "T K E"]:
    """A_t = delta_t + discount * lambda * A_{t+1} within an episode (eq. 16), backwards in time.

    Args:
        values: V of the observation that the action of step t was taken at.
        next_values: V of what that step led to: 0 where it terminated; where the time limit cut it off,
            that of its final observation, not of the next episode's first.
        ended: whether the episode ended with the step, in either way.
    """
    found = np.empty_like(rewards)
    delta = rewards + discount[:, None] * next_values - values
    carried = discount[:, None] * gae_lambda[:, None] * ~ended
    following = np.zeros_like(rewards[0])
    for t in reversed(range(len(rewards))):
        np.multiply(carried[t], following, out=found[t])
        found[t] += delta[t]
        following = found[t]
    return found
