"""Stacked dynamics: step by step what Gymnasium's own environments do, for every copy as if it were alone."""

import gymnasium
import numpy as np
import pytest

from rl_tasks.envs import make_stacked, mix

IDS = ["CartPole-v1"]


def balancing(obs: np.ndarray) -> np.ndarray:
    """A hand-made CartPole policy that lasts for hundreds of steps, and to the limit from most states."""
    return (obs @ np.array([0.05, 0.2, 1.0, 0.5]) > 0).astype(np.int64)


def actions_of(env_id: str, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions that visit much of an environment."""
    if env_id == "CartPole-v1":
        clumsy = rng.random(len(obs)) < np.linspace(0, 0.8, len(obs))
        return np.where(clumsy, rng.integers(0, 2, len(obs)), balancing(obs))
    raise NotImplementedError(env_id)


def test_cartpole_equals_gymnasium_to_the_last_bit() -> None:
    """40 copies from injected states; every step of the first episode, its end by a fall or by the limit."""
    stacked, single = make_stacked("CartPole-v1"), gymnasium.make("CartPole-v1")
    rng, seeds = np.random.default_rng(0), np.arange(40)
    obs = stacked.reset(seeds)
    states = stacked.state.copy()
    actions, seen = [], []
    for _ in range(500):
        actions.append(actions_of("CartPole-v1", obs, rng))
        seen.append(stacked.step(actions[-1]))
        obs = seen[-1].obs
    falls = limits = 0
    for i in range(len(seeds)):
        single.reset(seed=0)
        single.unwrapped.state = states[:, i]
        for action, step in zip(actions, seen, strict=True):
            expected, reward, terminated, truncated, _ = single.step(int(action[i]))
            assert np.array_equal(step.obs[i], expected)
            assert (step.reward[i], step.terminated[i], step.truncated[i]) == (reward, terminated, truncated)
            falls, limits = falls + terminated, limits + (truncated and not terminated)
            if terminated or truncated:
                break
        else:
            pytest.fail("an episode has no end")
    assert falls >= 5
    assert limits >= 5


def test_cartpole_starts_like_gymnasiums() -> None:
    obs = make_stacked("CartPole-v1").reset(np.arange(4000))
    # Uniform in +-0.05: four standard errors of the mean are 0.0018.
    assert np.abs(obs).max() < 0.05
    assert np.abs(obs).max(axis=0).min() > 0.0499
    assert np.abs(obs.mean(axis=0)).max() < 0.0018


@pytest.mark.parametrize("env_id", IDS)
def test_a_copy_alone_is_the_same_to_the_last_bit(env_id: str) -> None:
    """Whatever N and its place: no vector instruction may treat a tail of the array in another way."""
    seeds = mix(1, np.arange(77))
    together = make_stacked(env_id)
    rng, obs, history = np.random.default_rng(1), together.reset(seeds), []
    history.append((obs, None))
    for _ in range(60):
        actions = actions_of(env_id, obs, rng)
        step = together.step(actions)
        obs = step.obs
        history.append((step, actions))
    for i in (0, 8, 63, 76):
        alone = make_stacked(env_id)
        assert np.array_equal(alone.reset(seeds[i : i + 1])[0], history[0][0][i])
        for step, actions in history[1:]:
            again = alone.step(actions[i : i + 1])
            assert all(np.array_equal(a[0], b[i]) for a, b in zip(again, step, strict=True))


@pytest.mark.parametrize("env_id", IDS)
def test_restart_and_keep_touch_no_other_copy(env_id: str) -> None:
    seeds, rng = mix(2, np.arange(12)), np.random.default_rng(2)
    env, untouched = make_stacked(env_id), make_stacked(env_id)
    obs = env.reset(seeds)
    untouched.reset(seeds)
    for _ in range(5):
        actions = actions_of(env_id, obs, rng)
        obs = env.step(actions).obs
        untouched.step(actions)
    fresh = env.restart(np.array([7, 3]), mix(9, np.arange(2)))
    assert np.array_equal(fresh, make_stacked(env_id).reset(mix(9, np.arange(2))))
    kept = np.array([11, 7, 0])
    env.keep(kept)
    actions = actions_of(env_id, obs, rng)
    step, expected = env.step(actions[kept]), untouched.step(actions)
    assert len(step.obs) == 3
    assert np.array_equal(step.obs[[0, 2]], expected.obs[[11, 0]])
    new = make_stacked(env_id)
    new.reset(mix(9, np.arange(1)))
    assert np.array_equal(step.obs[1], new.step(actions[7:8]).obs[0])


@pytest.mark.parametrize("env_id", IDS)
def test_the_step_limit_counts_from_the_restart(env_id: str) -> None:
    env = make_stacked(env_id)
    env.reset(np.arange(2))
    rng, limit = np.random.default_rng(3), env.max_steps
    obs = np.zeros((2, env.spaces.observation_size), dtype=np.float32)
    for n in range(1, limit + 1):
        if n == 4:
            env.restart(np.array([1]), np.array([5]))
        truncated = env.step(actions_of(env_id, obs, rng)).truncated
        assert truncated.tolist() == [n == limit, False]


@pytest.mark.parametrize("env_id", IDS)
def test_copies_that_are_lost_are_flagged_and_the_others_go_on(env_id: str) -> None:
    env, plain, rng = make_stacked(env_id), make_stacked(env_id), np.random.default_rng(4)
    obs = env.reset(np.arange(6))
    plain.reset(np.arange(6))
    env.state[:, 2] = np.nan
    for _ in range(3):
        actions = actions_of(env_id, obs, rng)
        step, expected = env.step(actions), plain.step(actions)
        assert env.broken.tolist() == [False, False, True, False, False, False]
        assert step.terminated[2]
        assert np.isnan(step.reward[2])
        assert (step.obs[2] == 0).all()
        others = [0, 1, 3, 4, 5]
        assert all(np.array_equal(a[others], b[others]) for a, b in zip(step, expected, strict=True))
    assert "NaN" in env.why_broken
    env.restart(np.array([2]), np.array([2]))
    assert not env.broken.any()
    assert np.isfinite(env.step(actions).reward).all()
