"""Any Gymnasium environment as copies: the same as alone, faults flagged, bad ids and spaces refused."""

import gymnasium
import numpy as np
import pytest

from rl_tasks.envs import StackedEnv, make_stacked, mix
from rl_tasks.gym_envs import GymCopies

from . import own_envs

OWN = "tests.rl_tasks.own_envs"


def random_actions(env: StackedEnv, num_copies: int, rng: np.random.Generator) -> np.ndarray:
    if env.spaces.num_actions:
        return rng.integers(0, env.spaces.num_actions, num_copies)
    return rng.uniform(-1, 1, (num_copies, env.spaces.action_size)).astype(np.float32)


def check_against_gymnasium(env_id: str, num_steps: int) -> None:
    """Three copies, step by step what gymnasium.make(env_id).reset(seed=seed) gives."""
    stacked = make_stacked(env_id)
    assert isinstance(stacked, GymCopies)
    seeds, rng = np.array([3, 1, 4]), np.random.default_rng(0)
    singles = [gymnasium.make(env_id) for _ in seeds]
    obs = stacked.reset(seeds)
    space = singles[0].observation_space
    expected = [env.reset(seed=int(seed))[0] for env, seed in zip(singles, seeds, strict=True)]
    running = np.ones(3, dtype=np.bool_)
    for _ in range(num_steps):
        flat = np.stack([gymnasium.spaces.flatten(space, each) for each in expected]).astype(np.float32)
        assert np.array_equal(obs[running], flat[running])
        actions = random_actions(stacked, 3, rng)
        obs, reward, terminated, truncated = stacked.step(actions)
        for i in np.flatnonzero(running):
            expected[i], gain, *ends, _ = singles[i].step(actions[i])
            assert reward[i] == np.float32(gain)
            assert [terminated[i], truncated[i]] == ends
            running[i] = not any(ends)
    stacked.close()


def test_a_box_environment_equals_gymnasiums() -> None:
    check_against_gymnasium("MountainCar-v0", 201)  # to its limit of 200 steps


def test_a_discrete_environment_equals_gymnasiums() -> None:
    check_against_gymnasium("FrozenLake-v1", 40)


def test_a_mujoco_environment_equals_gymnasiums() -> None:
    pytest.importorskip("mujoco", reason="pip install '.[mujoco]'")
    check_against_gymnasium("InvertedPendulum-v5", 40)


def test_observations_are_flattened_and_actions_counted_from_the_spaces_start() -> None:
    env = make_stacked(f"{OWN}:Counting-v0")
    assert (env.spaces.observation_size, env.spaces.num_actions) == (2, 3)
    env.reset(np.array([1, 2]))
    step = env.step(np.array([0, 2]))
    assert step.reward.tolist() == [5, 7]
    assert step.obs[:, 1].tolist() == [1, 1]


def test_continuous_actions_are_clipped_where_there_are_bounds() -> None:
    env = make_stacked(f"{OWN}:Recording-v0")
    assert env.spaces.action_low == (-1, -np.inf)
    assert env.spaces.action_high == (2, np.inf)
    env.reset(np.arange(2))
    step = env.step(np.array([[9, 1e6], [-9, -1e6]], dtype=np.float32))
    assert step.obs.tolist() == [[2, 1e6], [-1, -1e6]]
    env.reset(np.arange(4))
    env.step(np.array([[0, np.nan], [0, 0], [np.inf, 0], [0, np.inf]], dtype=np.float32))
    assert env.broken.tolist() == [True, False, False, True]
    assert env.why_broken == "FloatingPointError: an action is NaN or infinite"


def test_a_start_depends_on_the_seed_alone() -> None:
    env, seeds = make_stacked(f"{OWN}:Counting-v0"), mix(0, np.arange(5))
    first = env.reset(seeds)
    for _ in range(3):
        env.step(np.zeros(5, dtype=np.int64))
    assert len(np.unique(first[:, 0])) == 5
    assert np.array_equal(env.restart(np.array([4, 0]), seeds[[2, 3]]), first[[2, 3]])
    assert np.array_equal(env.reset(seeds[3:]), first[3:])
    assert np.array_equal(env.reset(np.append(seeds[::-1], 9))[:5], first[::-1])


def test_kept_copies_go_on_and_the_others_are_used_again() -> None:
    env = make_stacked(f"{OWN}:Counting-v0")
    obs = env.reset(np.arange(4))
    env.step(np.zeros(4, dtype=np.int64))
    env.keep(np.array([3, 1]))
    env.restart(np.array([1]), np.array([8]))
    step = env.step(np.zeros(2, dtype=np.int64))
    assert step.obs[:, 1].tolist() == [2, 1]
    assert step.obs[0, 0] == obs[3, 0]
    assert len({id(each) for each in (*env._envs, *env._idle)}) == 4
    env.reset(np.arange(4))
    assert not env._idle


def test_closing_closes_every_environment_once_and_it_can_be_used_again() -> None:
    env = make_stacked(f"{OWN}:Faulty-raise-v0")
    faulty = env.reset(np.arange(8))[:, 0] > 0.5
    for _ in range(3):
        env.step(np.zeros(8, dtype=np.int64))
    env.keep(np.flatnonzero(faulty)[:1])
    made = own_envs.Faulty.closed
    env.close()
    assert own_envs.Faulty.closed == made + (~faulty).sum()
    assert len(env.reset(np.arange(3))) == 3


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("raise", "RuntimeError: the robot fell off the table"),
        ("nan-observation", "its observation or reward is NaN or infinite"),
        ("infinite-reward", "its observation or reward is NaN or infinite"),
        ("wrong-shape", "cannot reshape"),
    ],
)
def test_an_environment_with_a_fault_is_flagged_and_the_others_go_on(fault: str, why: str) -> None:
    env = make_stacked(f"{OWN}:Faulty-{fault}-v0")
    faulty = env.reset(np.arange(8))[:, 0] > 0.5
    assert 0 < faulty.sum() < 8
    for n in range(1, 6):
        step = env.step(np.ones(8, dtype=np.int64))
        expected = faulty & (n >= 3)
        assert np.array_equal(env.broken, expected)
        assert np.array_equal(np.isnan(step.reward), expected)
        assert np.array_equal(step.terminated, expected)
        assert np.array_equal(step.obs[:, 1], np.where(expected, 0, n))
    assert why in env.why_broken
    sound, broken = np.flatnonzero(~faulty), np.flatnonzero(faulty)
    env.restart(broken, np.resize(sound, len(broken)))  # with seeds that do no harm
    assert not env.broken.any()
    for _ in range(4):
        assert not env.step(np.ones(8, dtype=np.int64)).terminated.any()


def test_without_a_limit_of_its_own_episodes_are_cut_and_a_note_says_so() -> None:
    env = make_stacked(f"{OWN}:Counting-v0")
    assert env.max_steps == 1000
    assert len(env.notes) == 1
    assert "sets no step limit: its episodes are cut after 1,000 steps" in env.notes[0]
    assert "--options max_steps 200 sets another limit" in env.notes[0]
    assert make_stacked(f"{OWN}:Counting-v0", max_steps=3).notes == ()
    assert make_stacked("CartPole-v1").notes == ()


@pytest.mark.parametrize(
    ("name", "max_steps", "expected"), [("Limited", None, 4), ("Limited", 6, 6), ("Quitting", None, 2)]
)
def test_episodes_end_at_the_limit(name: str, max_steps: int | None, expected: int) -> None:
    env = make_stacked(f"{OWN}:{name}-v0", max_steps)
    env.reset(np.arange(1))
    truncated = [bool(env.step(np.zeros(1, dtype=np.int64)).truncated[0]) for _ in range(expected)]
    assert truncated == [False] * (expected - 1) + [True]


def test_the_limit_of_stacked_dynamics_can_be_set() -> None:
    env = make_stacked("Pendulum-v1", max_steps=2)
    env.reset(np.arange(1))
    assert [bool(env.step(np.zeros((1, 1))).truncated[0]) for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"unknown environment 'CartPol-v1'. Did you mean 'CartPole-v1'\?"),
        ("cartpole", r"unknown environment 'cartpole'. Did you mean 'CartPole-v1'\?"),
        ("xyzzy", r"unknown environment 'xyzzy'. One that a module of your own registers is named"),
        ("no_such_module:A-v0", r"cannot import module 'no_such_module' \(ModuleNotFoundError"),
        (
            "no_such.part:A-v0",
            r"; is it installed, or no_such/part.py in the current folder or on PYTHONPATH",
        ),
        (f"{OWN}:Countin-v0", rf"unknown environment .* Did you mean '{OWN}:Counting-v0'\?"),
        ("Blackjack-v1", r"observations Tuple\(Discrete\(32\).*; supported are Box and Discrete"),
        (f"{OWN}:DictObserved-v0", r"has observations Dict\(.*; supported are Box and Discrete"),
        (
            f"{OWN}:ManyActions-v0",
            r"has actions MultiDiscrete\(.*; supported are Discrete and Box of floats",
        ),
        (f"{OWN}:NoActions-v0", r"has actions Box\(.*; supported are .* in one dimension, at least one"),
        (f"{OWN}:Unmakeable-v0", r"cannot be made: OSError: no licence found"),
        ("GymV21Environment-v0", r"cannot be made: "),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make_stacked(env_id)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_a_limit_below_one_is_refused(env_id: str) -> None:
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        make_stacked(env_id, max_steps=0)
