"""Honest returns: what a network returns is what a plain loop over its episodes says, and its own affair."""

import math
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor

from ckpt_factory import RunPlan, train_stack
from ckpt_factory.tasks.base import seeded
from rl_tasks.evaluate import COPIES_PER_SLOT, Episodes, play_episodes
from rl_tasks.seeds import mix
from rl_tasks.tasks import PolicyTask, episodes_of, policy_task

E = 11  # more than the copies of a slot


def task_of(env: str = "CartPole-v1", **changes: object) -> PolicyTask:
    task = policy_task(env=env, **{"hidden": "8,8", "episodes": 4} | changes)
    task.id = "evaluated"
    return task


def policies(task: PolicyTask, num: int, seed: int = 0) -> Tensor:
    """Very different ones: some fall at once, some hold out."""
    theta = task.init([seeded(seed, k) for k in range(num)])
    return theta + torch.randn(theta.shape, generator=seeded(seed, 99))


def episodes(task: PolicyTask, num: int = E, rows: int = 1) -> Episodes:
    seeds = mix(7, np.arange(rows)[:, None], np.arange(num))
    noise = task.setting.head.draw([seeded(4, r) for r in range(rows)], (num, task.setting.env.max_steps))
    return Episodes(seeds, noise)


def measured(task: PolicyTask, theta: Tensor, each: Episodes) -> ndarray:
    s = task.setting
    return play_episodes(s.net, s.head, s.make_env(), theta.numpy(), each, s.scale).returns


def test_lengths_are_the_steps_that_episodes_took() -> None:
    """Every step of CartPole is worth 1: an episode is as long as its return."""
    task = task_of(max_steps=40)
    s, theta = task.setting, policies(task, 5)
    played = play_episodes(s.net, s.head, s.make_env(), theta.numpy(), episodes(task), s.scale)
    assert played.lengths.tolist() == played.returns.tolist()
    assert len(set(played.lengths.flatten().tolist())) > 5


def plain_return(task: PolicyTask, theta: Tensor, seed: int, noise: ndarray) -> float:
    """One policy in one copy with torch's module, a step at a time."""
    env, module, s = task.setting.make_env(), task.module(), task.setting
    module.load_state_dict(task.spec.unflatten(theta))
    log_std = task.spec.unflatten(theta)["log_std"].numpy()[None] if s.head.continuous else None
    obs, total = env.reset(np.array([seed])), 0.0
    for t in range(env.max_steps):
        outputs = module(torch.from_numpy(obs * s.scale)).detach().numpy()[None]
        action = s.head.act(outputs, log_std, noise[None, None, t])
        obs, reward, terminated, truncated = env.step(s.head.to_env(action))
        total += float(reward[0])
        if terminated[0] or truncated[0]:
            return total
    raise AssertionError("the episode has no end")


@pytest.mark.parametrize("env", ["CartPole-v1", "MountainCarContinuous-v0"])
def test_returns_are_those_of_a_plain_loop_over_episodes(env: str) -> None:
    task = task_of(env, max_steps=60)
    theta, each = policies(task, 3), episodes(task)
    found = measured(task, theta, each)
    for k in range(3):
        for e in (0, 3, COPIES_PER_SLOT, E - 1):
            expected = plain_return(task, theta[k], int(each.seeds[0, e]), each.noise[0, e])
            assert found[k, e] == pytest.approx(expected, rel=1e-4)  # float32, other products


def test_a_network_returns_the_same_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: alone or among 40, with few slots or many, whichever episodes it plays besides."""
    task = task_of(max_steps=200)
    theta, each = policies(task, 40), episodes(task)
    together = measured(task, theta, each)
    assert len(np.unique(together.mean(1))) > 20  # very different networks
    monkeypatch.setattr(type(task.setting.env), "at_once", 24)  # three slots for 40 networks
    assert np.array_equal(measured(task, theta, each), together)
    for k in (0, 17, 39):
        assert np.array_equal(measured(task, theta[k : k + 1], each)[0], together[k])
    for some in (slice(2), slice(3, 9)):
        fewer = Episodes(each.seeds[:, some], each.noise[:, some])
        assert np.array_equal(measured(task, theta, fewer), together[:, some])


def test_every_row_of_episodes_is_played_by_its_own_networks() -> None:
    task = task_of(max_steps=100)
    theta, each = policies(task, 2), episodes(task, num=3, rows=2)
    found = measured(task, theta.repeat_interleave(4, 0), each)
    for row in range(2):
        own = Episodes(each.seeds[row : row + 1], each.noise[row : row + 1])
        expected = measured(task, theta[row : row + 1], own)
        assert np.array_equal(found[4 * row : 4 * row + 4], expected.repeat(4, 0))


def test_all_episodes_count_and_none_twice() -> None:
    """A return that is not first come, first served: the mean is over the very episodes that were given."""
    task = task_of(max_steps=300)
    theta, each = policies(task, 6), episodes(task)
    found = measured(task, theta, each)
    order = np.random.default_rng(0).permutation(E)
    shuffled = measured(task, theta, Episodes(each.seeds[:, order], each.noise[:, order]))
    assert np.array_equal(shuffled, found[:, order])
    assert np.isfinite(found).all()


def test_metrics_are_of_fixed_episodes_of_each_split() -> None:
    task = task_of(max_steps=200)
    theta = policies(task, 5)
    found = task.metrics_of(theta)
    assert set(found) == {f"{split}_{name}" for split in ("validation", "test") for name in task.metrics}
    for split in ("validation", "test"):
        alone = task.evaluate(theta, split)
        assert all(torch.equal(alone[name], found[f"{split}_{name}"]) for name in task.metrics)
        sampled, likeliest = measured(task, theta, episodes_of(task.setting, split, 4, 2)), None
        sampled, likeliest = sampled[:, :4], sampled[:, 4:]
        assert alone["return"].numpy() == pytest.approx(sampled.mean(1), rel=1e-6)
        assert alone["return_std"].numpy() == pytest.approx(sampled.std(1, ddof=1), rel=1e-6)
        assert alone["deterministic_return"].numpy() == pytest.approx(likeliest.mean(1), rel=1e-6)
        assert alone["deterministic_return_std"].numpy() == pytest.approx(likeliest.std(1, ddof=1), rel=1e-6)
        assert alone["episodes"].tolist() == [4] * 5
    assert not torch.equal(found["validation_return"], found["test_return"])


def test_splits_differ_in_starts_and_noise_and_likeliest_actions_have_none() -> None:
    task = task_of()
    sets = {split: episodes_of(task.setting, split, 4, 2) for split in ("validation", "test", "pilot")}
    starts = np.concatenate([each.seeds[0, :4] for each in sets.values()])
    assert len(set(starts.tolist())) == 12
    for each in sets.values():
        assert np.array_equal(each.seeds[0, :2], each.seeds[0, 4:])
        assert (each.noise[0, :4] != 0).any()
        assert (each.noise[0, 4:] == 0).all()
    assert not np.array_equal(sets["validation"].noise, sets["test"].noise)
    with pytest.raises(ValueError, match="unknown split 'dev'; expected one of train, validation, test"):
        task.evaluate(policies(task, 1), "dev")


def test_networks_that_are_not_finite_have_no_metrics_and_harm_no_other() -> None:
    task = task_of(max_steps=100)
    theta = policies(task, 4)
    sound = task.metrics_of(theta)
    lost = theta.clone()
    lost[1, 3], lost[2] = torch.inf, torch.nan
    for name, values in task.metrics_of(lost).items():
        assert values[1:3].isnan().all(), name
        assert torch.equal(values[[0, 3]], sound[name][[0, 3]])
    assert task.pilot_metric(lost).isnan().tolist() == [False, True, True, False]


def test_a_network_that_gives_no_numbers_has_no_metrics() -> None:
    """Finite parameters, infinite products of theirs."""
    task = task_of(max_steps=30)
    theta = policies(task, 3)
    sound = task.metrics_of(theta)
    theta[1] *= 1e30
    for name, values in task.metrics_of(theta).items():
        assert values.isnan().tolist() == [False, True, False]
        assert torch.equal(values[[0, 2]], sound[name][[0, 2]])


class Brittle(gymnasium.Env):
    """Rewards action 1; breaks for good in an episode where it was chosen at every one of five steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    fault = "raise"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.steps, self.ones = 0, 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        self.ones += int(action)
        obs, reward = self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action)
        if self.ones == 5:
            if self.fault == "raise":
                raise RuntimeError("broke")
            obs, reward = obs * np.nan, math.nan
        return obs, reward, False, self.steps >= 5, {}


class Spoilt(Brittle):
    fault = "nan"


for kind in (Brittle, Spoilt):
    gymnasium.register(f"{kind.__name__}-v0", kind, max_episode_steps=5)


def steered(task: PolicyTask, biases: list[float]) -> Tensor:
    """Policies that choose action 1 with a logit of so much, whatever they see."""
    theta = torch.zeros(len(biases), task.spec.D)
    theta[:, -1] = torch.tensor(biases)
    return theta


@pytest.mark.parametrize("env", ["Brittle-v0", "Spoilt-v0"])
def test_an_environment_that_breaks_flags_its_network_alone(env: str) -> None:
    task = task_of(env)
    found = task.metrics_of(steered(task, [-9, 9, -1, 9]))
    for name, values in found.items():
        assert values.isnan().tolist() == [False, True, False, True], name
    assert found["test_return"][0] < found["test_return"][2]


def test_a_run_whose_environment_breaks_in_training_is_flagged_and_others_are_not(tmp_path: Path) -> None:
    task = task_of("Brittle-v0", copies=4, rollout=16, epochs=1)
    plan = RunPlan(num_steps=4, batch_size=(32,), lr=(1e-3, 1e-3), num_checkpoints=3, init_scale=(1.0, 1.0))
    starts = steered(task, [-9, 9, -2])
    task.init = lambda rngs: starts[: len(rngs)]  # pyright: ignore[reportAttributeAccessIssue]
    rows = train_stack(task, plan, plan.runs(range(3)))
    assert rows.finite().tolist() == [True, False, True]
    assert rows.theta[1, -1].isnan().any()
