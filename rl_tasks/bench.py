"""What a step of the environment and a good policy cost: the usual ways of reinforcement learning, and ours.

`theta bench rl` measures them in turns on CartPole-v1. The alternatives are written as their own
documentation does; nothing of ours is in them.
"""

from collections.abc import Callable, Sequence
from time import process_time
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy import ndarray
from torch.distributions import Categorical

from ckpt_factory import RunPlan
from ckpt_factory.bench.clock import calls_for, cpu_seconds, interleaved, medians
from ckpt_factory.bench.contenders import FactoryStack

from .rollout import Copies
from .tasks import PolicyTask

ENV_ID = "CartPole-v1"
GOOD_RETURN = 475.0
"""At this mean return CartPole-v1 counts as solved (its `reward_threshold`)."""
EPISODES = 16
"""Of sampled actions, one in each of so many environments, that a policy is measured by."""
ENVIRONMENTS = 64
STACK = (256, 8, 32)
"""Policies, copies of the environment for each, steps of each: what is rolled out at once."""
SHARE = 0.9
"""Of the policies of a stack have to be good until its CPU time is taken."""

SB3 = {
    "n_steps": 32,
    "batch_size": 256,
    "gae_lambda": 0.8,
    "gamma": 0.98,
    "n_epochs": 20,
    "ent_coef": 0.0,
    "learning_rate": lambda left: 1e-3 * left,
    "clip_range": lambda left: 0.2 * left,
}
"""Stable-Baselines3's own tuning for CartPole-v1 (RL Baselines3 Zoo, hyperparams/ppo.yml)."""
SB3_ENVIRONMENTS = 8
SB3_STEPS = 100_000


def measure_steps(task: PolicyTask, *, repeats: int, seconds: float) -> dict[str, Any]:
    """Steps of the environment per CPU second, acting included, of all contenders in turns."""
    probes = {
        "one torch policy, one environment": _one_policy(task, seconds),
        f"one torch policy, SyncVectorEnv of {ENVIRONMENTS}": _vector_policy(task, seconds),
        f"ours, {STACK[0]} policies x {STACK[1]} environments": _stacked_policies(task, seconds),
    }
    samples = interleaved(probes, repeats)
    return {"env_steps_per_cpu_s": medians(samples), "samples": samples}


def _one_policy(task: PolicyTask, seconds: float) -> Callable[[], float]:
    """The loop of every tutorial: a network, a distribution and an environment, one step after the other."""
    net, env = task.module(), gymnasium.make(ENV_ID)

    @torch.no_grad()
    def steps(num: int = 200) -> None:
        observation, _ = env.reset(seed=0)
        for _ in range(num):
            logits = net(torch.as_tensor(observation, dtype=torch.float32).unsqueeze(0))
            observation, _, over, cut, _ = env.step(int(Categorical(logits=logits).sample()))
            if over or cut:
                observation, _ = env.reset()

    calls = calls_for(steps, seconds)
    return lambda: 200 / cpu_seconds(steps, calls)


def _vector_policy(task: PolicyTask, seconds: float) -> Callable[[], float]:
    """The same with a batch of observations."""
    net = task.module()
    env = gymnasium.make_vec(ENV_ID, num_envs=ENVIRONMENTS, vectorization_mode="sync")

    @torch.no_grad()
    def steps(num: int = 20) -> None:
        observations, _ = env.reset(seed=0)
        for _ in range(num):
            logits = net(torch.as_tensor(observations, dtype=torch.float32))
            observations, *_ = env.step(Categorical(logits=logits).sample().numpy())

    calls = calls_for(steps, seconds)
    return lambda: 20 * ENVIRONMENTS / cpu_seconds(steps, calls)


def _stacked_policies(task: PolicyTask, seconds: float) -> Callable[[], float]:
    """Rollouts as PPO makes them, noise, resets and all."""
    num_policies, num_copies, num_steps = STACK
    rngs = [torch.Generator().manual_seed(k) for k in range(num_policies)]
    setting = task.setting
    layers = setting.net.layers(setting.net.params(task.init(rngs).numpy()))
    copies = Copies(setting.env, np.arange(num_policies), num_copies, setting.scale)

    def rollout() -> None:
        noise = setting.head.draw(rngs, (num_steps, num_copies))
        copies.rollout(layers, None, setting.head, setting.net.act, noise)

    calls = calls_for(rollout, seconds)
    return lambda: num_policies * num_copies * num_steps / cpu_seconds(rollout, calls)


def measure_learning(
    task: PolicyTask, plan: RunPlan, *, repeats: int, num_policies: int = 256
) -> dict[str, Any]:
    """CPU seconds until a policy's return is GOOD_RETURN, measuring left out: ours, and Stable-Baselines3's.

    Of ours, the CPU time when SHARE of a stack are good, divided among those that are: a good policy's price.

    Raises:
        ValueError: Stable-Baselines3 is not installed.
    """
    seeds = iter(range(2 * repeats + 2))
    probes = {
        "ours": lambda: _our_cpu_s(task, plan, range(k := next(seeds) * num_policies, k + num_policies)),
        "stable_baselines3": lambda: sb3_cpu_s(next(seeds)),
    }
    samples = interleaved(probes, repeats)
    found = medians(samples)
    return {
        "cpu_s_per_good_policy": found,
        "times_stable_baselines3": found["stable_baselines3"] / found["ours"],
        "samples": samples,
    }


def _our_cpu_s(task: PolicyTask, plan: RunPlan, run_ids: Sequence[int]) -> float:
    """CPU seconds per good policy of one stack; infinite where fewer than SHARE become good."""
    runs = plan.runs(run_ids)
    batch_size = runs[0].batch_size
    started = process_time()
    stack = FactoryStack(task, plan, runs)
    good, cpu_s = np.zeros(len(runs), np.bool_), 0.0
    for step in range(plan.num_steps):
        stack.advance(1)
        if task.env_steps(step + 2, batch_size) > task.env_steps(step + 1, batch_size):
            cpu_s += process_time() - started  # the next step begins a rollout: time to measure
            good |= stack.evaluate("validation")["return"].numpy() >= GOOD_RETURN
            if good.mean() >= SHARE:
                return cpu_s / int(good.sum())
            started = process_time()
    return float("inf")


def sb3_cpu_s(seed: int) -> float:
    """CPU seconds of Stable-Baselines3's PPO on CartPole-v1 until its policy is good; infinite if never."""
    try:
        from stable_baselines3 import PPO  # noqa: PLC0415  a development extra
        from stable_baselines3.common.callbacks import BaseCallback  # noqa: PLC0415
        from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415
    except ImportError:
        raise ValueError("stable-baselines3 is not installed; `pip install '.[dev]'` has it") from None

    class UntilGood(BaseCallback):
        measuring = 0.0
        is_good = False

        def _on_step(self) -> bool:
            return not self.is_good

        def _on_rollout_start(self) -> None:  # the policy has just learnt
            begun = process_time()
            self.is_good = bool(_first_returns(self.model.predict).mean() >= GOOD_RETURN)
            self.measuring += process_time() - begun

    model = PPO("MlpPolicy", make_vec_env(ENV_ID, SB3_ENVIRONMENTS), seed=seed, device="cpu", **SB3)
    watch = UntilGood()
    started = process_time()
    model.learn(SB3_STEPS, callback=watch)
    cpu_s = process_time() - started - watch.measuring
    return cpu_s if watch.is_good else float("inf")


def _first_returns(act: Callable[[ndarray], tuple[ndarray, Any]]) -> ndarray:
    """The return of the first episode in each of EPISODES environments, all run to their end."""
    env = gymnasium.make_vec(ENV_ID, num_envs=EPISODES, vectorization_mode="vector_entry_point")
    observations, _ = env.reset(seed=0)
    returns, over = np.zeros(EPISODES), np.zeros(EPISODES, np.bool_)
    while not over.all():
        observations, rewards, ended, cut, _ = env.step(act(observations)[0])
        returns += np.where(over, 0, rewards)
        over |= ended | cut
    return returns
