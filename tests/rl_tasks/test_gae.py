"""Generalised advantage estimation against its definition, episode by episode."""

import numpy as np
import pytest

from rl_tasks.gae import advantages

T, K, E = 12, 2, 3
DISCOUNT, LAMBDA = np.array([0.9, 0.99], np.float32), np.array([0.8, 0.5], np.float32)


def rollout() -> tuple[np.ndarray, ...]:
    """rewards, values, next_values (0 where terminated, of other observations where truncated), ended."""
    rng = np.random.default_rng(3)
    rewards, values, others = rng.standard_normal((3, T, K, E)).astype(np.float32)
    terminated, truncated = rng.random((2, T, K, E)) < 0.2
    next_values = np.concatenate([values[1:], others[:1]])
    next_values = np.where(truncated, others, next_values)
    return rewards, values, np.where(terminated, 0, next_values), terminated | truncated


def test_advantages_are_the_discounted_sum_of_errors_within_an_episode() -> None:
    """Eq. 16 of Schulman et al. 2016 as a sum, forwards, for each transition."""
    rewards, values, next_values, ended = rollout()
    found = advantages(rewards, values, next_values, ended, DISCOUNT, LAMBDA)
    delta = rewards + DISCOUNT[:, None] * next_values - values
    for t, k, e in np.ndindex(T, K, E):
        total, weight = 0.0, 1.0
        for later in range(t, T):
            total += weight * delta[later, k, e]
            weight *= float(DISCOUNT[k] * LAMBDA[k])
            if ended[later, k, e]:
                break
        assert found[t, k, e] == pytest.approx(total, rel=1e-4, abs=1e-5)  # float32


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_its_ends_are_one_step_errors_and_returns(gae_lambda: float) -> None:
    rewards, values, next_values, ended = rollout()
    ended[-1] = True
    lambdas = np.full(K, gae_lambda, np.float32)
    found = advantages(rewards, values, next_values, ended, DISCOUNT, lambdas)
    if gae_lambda == 0:
        assert found == pytest.approx(rewards + DISCOUNT[:, None] * next_values - values, rel=1e-5)
        return
    expected = np.zeros_like(rewards)
    for t in reversed(range(T)):
        after = np.where(ended[t], next_values[t], expected[t + 1] if t + 1 < T else 0)
        expected[t] = rewards[t] + DISCOUNT[:, None] * after
    assert found + values == pytest.approx(expected, rel=1e-4, abs=1e-4)  # float32


def test_a_lost_run_harms_no_other() -> None:
    rewards, *rest = rollout()
    sound = advantages(rewards, *rest, DISCOUNT, LAMBDA)
    rewards[5, 0, 1] = np.nan
    found = advantages(rewards, *rest, DISCOUNT, LAMBDA)
    assert np.isnan(found[:, 0]).any()
    assert np.array_equal(found[:, 1], sound[:, 1])
