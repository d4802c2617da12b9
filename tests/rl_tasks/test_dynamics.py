"""Stacked dynamics: step by step what Gymnasium's own environments do, for every copy as if it were alone."""

import gymnasium
import numpy as np
import pytest
import scipy.stats

from rl_tasks.envs import make_stacked, mix

IDS = ["Acrobot-v1", "CartPole-v1", "MountainCarContinuous-v0", "Pendulum-v1"]


def balancing(obs: np.ndarray) -> np.ndarray:
    """A hand-made CartPole policy that lasts to the limit if it is left to."""
    return (obs @ np.array([0.05, 0.2, 1.0, 0.5]) > 0).astype(np.int64)


def actions_of(env_id: str, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions that visit much of an environment: the first copies clever, the last ones random."""
    clumsy = rng.random(len(obs)) < np.linspace(0, 1, len(obs))
    if env_id == "CartPole-v1":
        return np.where(clumsy, rng.integers(0, 2, len(obs)), balancing(obs))
    if env_id == "Acrobot-v1":  # pumping: torque along with the second link's speed
        return np.where(clumsy, rng.integers(0, 3, len(obs)), (obs[:, 5] > 0) * 2)
    random = rng.normal(0, 1.5, len(obs))
    if env_id == "MountainCarContinuous-v0":
        random = np.where(clumsy, random, np.sign(obs[:, 1]))
    return random[:, None].astype(np.float32)


@pytest.mark.parametrize("env_id", IDS)
def test_whole_episodes_equal_gymnasiums(env_id: str) -> None:
    """From injected states to the end by itself or by the limit, obs and rewards to the last bit.

    But for Acrobot: it squares single numbers by pow, whose last bit may differ from a product's, and chaos
    would make much of it in hundreds of steps; so it is put where ours is before each of them.
    """
    stacked, single = make_stacked(env_id), gymnasium.make(env_id)
    rng, spaces = np.random.default_rng(0), stacked.spaces
    obs = stacked.reset(mix(0, np.arange(12)))
    states, actions, steps = [], [], []
    for _ in range(stacked.max_steps):
        actions.append(actions_of(env_id, obs, rng))
        if not spaces.num_actions:  # Gymnasium's mountain car charges what is beyond the bounds, ours clips
            actions[-1] = np.clip(actions[-1], spaces.action_low, spaces.action_high).astype(np.float32)
        states.append(stacked.state.copy())
        steps.append(stacked.step(actions[-1]))
        obs = steps[-1].obs
    ends = set()
    for i in range(12):
        single.reset(seed=0)
        single.unwrapped.state = states[0][:, i]
        for state, action, step in zip(states, actions, steps, strict=True):
            if env_id == "Acrobot-v1":
                single.unwrapped.state = state[:, i]
            expected, reward, *end, _ = single.step(action[i])
            # One unit in the last place of the float32 that the last bit of a float64 may round to.
            ulp = np.spacing(np.abs(expected)) if env_id == "Acrobot-v1" else 0.0
            assert (np.abs(step.obs[i] - expected) <= ulp).all()
            assert step.reward[i] == np.float32(reward)
            assert [step.terminated[i], step.truncated[i]] == end
            if any(end):
                ends.add(end[0])
                break
        else:
            pytest.fail("an episode has no end")
    assert ends == ({False} if env_id == "Pendulum-v1" else {True, False})


@pytest.mark.parametrize("env_id", IDS)
def test_starts_are_distributed_like_gymnasiums(env_id: str) -> None:
    stacked, single = make_stacked(env_id), gymnasium.make(env_id)
    ours = stacked.reset(np.arange(4000))
    theirs = np.stack([single.reset(seed=i)[0] for i in range(600)])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        # At the same distribution p < 1e-4 comes once in 10,000 columns; a wrong range gives p = 0.
        assert np.ptp(other) == np.ptp(mine) == 0 or scipy.stats.ks_2samp(mine, other).pvalue > 1e-4


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


def test_actions_beyond_the_bounds_are_clipped() -> None:
    for env_id in ("MountainCarContinuous-v0", "Pendulum-v1"):
        wild, tame = make_stacked(env_id), make_stacked(env_id)
        high = wild.spaces.action_high[0]
        for env in (wild, tame):
            env.reset(np.arange(3))
        wild_step = wild.step(np.array([[50.0], [-np.inf], [0.1]], dtype=np.float32))
        tame_step = tame.step(np.array([[high], [-high], [0.1]], dtype=np.float32))
        assert all(np.array_equal(a, b) for a, b in zip(wild_step, tame_step, strict=True))
        assert not wild.broken.any()


def test_a_policy_that_gives_nan_breaks_its_copy_alone() -> None:
    for env_id in ("MountainCarContinuous-v0", "Pendulum-v1"):
        env = make_stacked(env_id)
        env.reset(np.arange(3))
        step = env.step(np.array([[0.5], [np.nan], [-0.5]], dtype=np.float32))
        assert env.broken.tolist() == np.isnan(step.reward).tolist() == [False, True, False]
