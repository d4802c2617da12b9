"""PPO as a sampler: a stack equals its singles, rollouts are what they claim, and policies learn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, make, train_stack
from ckpt_factory.tasks.base import Variation, seeded
from cluster.factory_config import cartpole
from rl_tasks.heads import PolicyBatch
from rl_tasks.ppo import PPO, PPOLearner
from rl_tasks.rollout import Copies
from rl_tasks.seeds import mix
from rl_tasks.tasks import PolicyTask, policy_task

SMALL = {"copies": 4, "rollout": 16, "epochs": 2, "episodes": 4, "hidden": "8,8"}


def small(env: str = "CartPole-v1", **changes: object) -> PolicyTask:
    task = policy_task(env=env, **SMALL | changes)
    task.id = "small"
    return task


def params_of(task: PolicyTask, theta: Tensor) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.spec.unflatten(theta).items()}


def moved(task: PolicyTask, runs: Sequence[int], steps: int = 12) -> tuple[Tensor, list[PolicyBatch]]:
    """theta of runs after some steps down their gradients, and the batches that they learnt from."""
    variation = Variation(
        label_noise=(0.0,) * len(runs),
        data_fraction=(1.0,) * len(runs),
        gamma=(0.0,) * len(runs),
        hyper={"clip": tuple(0.1 + 0.1 * k for k in runs), "value_lr": tuple(0.01 + 0.01 * k for k in runs)},
    )
    params = params_of(task, task.init([seeded(0, k) for k in runs]))
    next_batch = task.sampler([seeded(1, k) for k in runs], 32, variation)
    batches = []
    for _ in range(steps):
        batches.append(next_batch(params))
        for name, gradient in task.direction(params, batches[-1]).items():
            params[name] -= 0.3 * gradient
    return task.spec.flatten(params), batches


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_stack_equals_its_singles_to_the_last_bit(env: str) -> None:
    """Three rollouts, each of two epochs, with hyper-parameters of their own."""
    task = small(env)
    together, batches = moved(task, range(3))
    for k in range(3):
        alone, batches_alone = moved(task, [k])
        assert torch.equal(alone[0], together[k])
        for one, all_ in zip(batches_alone, batches, strict=True):
            assert all(torch.equal(a[0], b[k]) for a, b in zip(one, all_, strict=True))


def test_the_task_trains_in_the_factory_as_alone() -> None:
    task = small()
    plan = RunPlan(
        num_steps=8, batch_size=(32,), optimizer=("adamw",), num_checkpoints=3, hyper={"clip": (0.1, 0.3)}
    )
    rows = train_stack(task, plan, plan.runs(range(3)))
    for k in range(3):
        alone = train_stack(task, plan, plan.runs([k]))
        assert torch.equal(alone.theta[0], rows.theta[k])
        assert all(torch.equal(alone.metrics[name][0], rows.metrics[name][k]) for name in rows.metrics)


def learner_of(task: PolicyTask, num_runs: int = 2, batch_size: int = 32) -> PPOLearner:
    sampler = task.sampler([seeded(1, k) for k in range(num_runs)], batch_size)
    assert isinstance(sampler, PPOLearner)
    return sampler


def test_every_transition_of_a_rollout_is_handed_out_once_an_epoch_in_new_orders() -> None:
    task = small()
    params = params_of(task, task.init([seeded(0, k) for k in range(2)]))
    next_batch = learner_of(task)
    seen = [next_batch(params).observations.numpy() for _ in range(8)]  # two rollouts of two epochs of two

    def rows(part: Sequence[np.ndarray], k: int) -> list[tuple[float, ...]]:
        return [tuple(row) for batch in part for row in batch[k].tolist()]

    for k in range(2):
        first, second, later = rows(seen[:2], k), rows(seen[2:4], k), rows(seen[4:6], k)
        assert len(set(first)) == 64
        assert sorted(first) == sorted(second)
        assert first != second
        assert not set(first) & set(later)
    assert not set(rows(seen[:2], 0)) & set(rows(seen[:2], 1))


def test_runs_of_a_group_share_all_chance() -> None:
    task = small()
    theta = task.init([seeded(0, 0)]).repeat(2, 1)
    batch = task.sampler([seeded(1, 0)], 32)(params_of(task, theta))
    assert all(torch.equal(each[0], each[1]) for each in batch)


def test_old_log_probabilities_are_those_of_the_policies_that_acted() -> None:
    for env in ("CartPole-v1", "Pendulum-v1"):
        task = small(env)
        theta = task.init([seeded(0, k) for k in range(2)])
        theta = theta + 0.3 * torch.randn(theta.shape, generator=seeded(9))
        batch = learner_of(task)(params_of(task, theta))
        for k in range(2):
            module = task.module()
            module.load_state_dict(task.spec.unflatten(theta[k]))
            outputs = module(batch.observations[k]).detach()
            if env == "CartPole-v1":
                distribution = torch.distributions.Categorical(logits=outputs)
                expected = distribution.log_prob(batch.actions[k].squeeze(1))
            else:
                log_std = task.spec.unflatten(theta[k])["log_std"]
                distribution = torch.distributions.Normal(outputs, log_std.exp())
                expected = distribution.log_prob(batch.actions[k]).sum(1)
            assert torch.allclose(batch.log_probs[k], expected, atol=1e-5)  # float32


def test_advantages_of_a_rollout_have_mean_0_and_deviation_1_in_each_run() -> None:
    task = small()
    next_batch = learner_of(task, batch_size=64)
    advantages = next_batch(params_of(task, task.init([seeded(0, 0), seeded(0, 1)]))).advantages
    assert advantages.mean(1) == pytest.approx([0, 0], abs=1e-5)  # float32
    assert advantages.std(1, correction=0) == pytest.approx([1, 1], rel=1e-4)


def test_time_limits_are_bootstrapped_and_terminations_are_not() -> None:
    """Of episodes cut after 5 steps, next values are those of where they were cut, not of the next start."""
    task = small(max_steps=5)
    next_batch = learner_of(task)
    params = params_of(task, task.init([seeded(0, k) for k in range(2)]))
    next_batch(params)
    setting = task.setting
    layers = setting.net.layers([params[name].numpy() for name in setting.net.spec.names])
    copies = Copies(setting.make_env(), np.arange(2), 4, setting.scale)
    noise = setting.head.draw([seeded(3, k) for k in range(2)], (16, 4))
    rollout = copies.rollout(layers, None, setting.head, setting.net.act, noise)
    observations = rollout.observations.reshape(2, -1, 4)
    values = next_batch.critic.values(observations).reshape(2, 16, 4).transpose(1, 0, 2)
    found = next_batch._next_values(rollout, values)
    assert rollout.truncated.sum() == 2 * 4 * 3
    env = setting.make_env()  # the same episodes again, one copy at a time
    for k, e in np.ndindex(2, 4):
        for episode in range(3):
            env.reset(mix(np.array([k]), 0, e, episode))
            for t in range(5 * episode, 5 * episode + 5):
                action = rollout.actions[k, t, e].astype(np.int64)
                where, *_ = env.step(action)
            value = next_batch.critic.values(where[None].repeat(2, 0))[k, 0]
            assert found[5 * episode + 4, k, e] == pytest.approx(value, rel=1e-5)
    assert np.array_equal(found[:-1][~rollout.truncated[:-1]], values[1:][~rollout.truncated[:-1]])
    ended = rollout._replace(terminated=rollout.truncated, truncated=np.zeros_like(rollout.truncated))
    lost = next_batch._next_values(ended._replace(final_observations=np.zeros((0, 4), np.float32)), values)
    assert (lost[rollout.truncated] == 0).all()


def test_norms_are_clipped_per_run() -> None:
    task = small()
    params = params_of(task, task.init([seeded(0, k) for k in range(2)]))
    batch = learner_of(task)(params)
    gradients = task.spec.flatten(task.gradients(params, batch))
    norms = gradients.norm(dim=1)
    limit = torch.tensor([0.5 * float(norms[0]), 2 * float(norms[1])])
    clipped = task.spec.flatten(task.direction(params, batch._replace(max_grad_norm=limit)))
    assert torch.allclose(clipped[0], 0.5 * gradients[0], rtol=1e-4)
    assert torch.allclose(clipped[1], gradients[1])


def test_a_diverged_run_disturbs_no_other() -> None:
    task = small()

    def batches(lost: bool) -> list[PolicyBatch]:
        params = params_of(task, task.init([seeded(0, k) for k in range(3)]))
        if lost:
            for value in params.values():
                value[1] = torch.nan
        next_batch = learner_of(task, 3)
        return [next_batch(params) for _ in range(5)]

    for sound, found in zip(batches(False), batches(True), strict=True):
        assert all(torch.equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(sound, found, strict=True))


def test_what_is_no_whole_minibatch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 48; expected a divisor of the 64 transitions"):
        small().sampler([seeded(0)], 48)


def test_environment_steps_are_whole_rollouts() -> None:
    task = small()  # 64 transitions a rollout, 2 epochs of 2 minibatches of 32
    assert [task.env_steps(step, 32) for step in (0, 1, 4, 5, 8)] == [0, 64, 64, 128, 128]
    assert PPO(num_copies=8, num_steps=64, epochs=2).updates(64) == 16


def test_a_larger_clip_and_a_rate_of_the_critic_are_felt() -> None:
    task = small()
    plain, _ = moved(task, [0])
    for hyper in ({"clip": (0.01,)}, {"value_lr": (0.5,)}, {"entropy": (0.1,)}, {"discount": (0.5,)}):
        changed = replace(Variation(label_noise=(0.0,), data_fraction=(1.0,), gamma=(0.0,)), hyper=hyper)
        params = params_of(task, task.init([seeded(0, 0)]))
        next_batch = task.sampler([seeded(1, 0)], 32, changed)
        for _ in range(12):
            for name, gradient in task.direction(params, next_batch(params)).items():
                params[name] -= 0.3 * gradient
        assert not torch.equal(task.spec.flatten(params), plain)


@pytest.mark.slow
def test_ppo_solves_cartpole() -> None:
    """The preset's recipe: of 16 runs nearly all end at a return of 475 or more."""
    config = cartpole()
    plan = replace(config.plan, spacing="log", num_checkpoints=2)
    returns = train_stack(make(config.task), plan, plan.runs(range(16))).metrics["test_return"]
    assert (returns[:, 0] < 60).all()
    assert (returns[:, -1] >= 475).float().mean() >= 0.8
