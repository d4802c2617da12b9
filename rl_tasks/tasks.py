"""Tasks whose metric is a return: policies in Gymnasium's environments, trained by PPO or evolution."""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ckpt_factory import Task, register
from ckpt_factory.schema import OF_LABELS
from ckpt_factory.tasks.base import SPLITS, Sampler, Variation

from .algorithm import EVALUATION, NOISE, Algorithm, Setting
from .evaluate import Episodes, play_episodes
from .evolution import EvolutionStrategies
from .ppo import PPO
from .seeds import mix, uniforms

SETS_OF_EPISODES = {name: code for code, name in enumerate(("train", *SPLITS, "pilot"))}
PILOT_EPISODES = 4
MOST_STEPS = 10**8
"""Of all episodes or copies together: the noise of their actions is held at once."""
MOST_UNITS = 4096
"""Of a hidden layer: two such have 17 million weights, and a stack holds many networks."""


class PolicyTask(Task):
    """Policies in an environment, K in a stack, and what they learn by.

    Metrics are of a fixed number of episodes on fixed seeds, common to all networks, as is the noise of their
    actions: what networks return differs by their parameters alone. "return" is the mean return of sampled
    actions, "deterministic_return" that of the likeliest ones, over half as many episodes, which start where
    the first of the others do; the rest are standard deviations between episodes, and their number.
    """

    metric = "return"
    metrics = ("return", "return_std", "deterministic_return", "deterministic_return_std", "episodes")
    objective = "max"
    prompt_start = 1.0
    networks_at_once = 8192
    unused = tuple(OF_LABELS)
    on_gpu = False
    sensitive = 0.05  # where an action or a swing hangs on the last bit of a sum, the rest of an episode does

    def __init__(self, setting: Setting, algorithm: Algorithm, *, episodes: int = 16):
        if episodes < 4 or episodes % 2:
            raise ValueError(f"episodes is {episodes}; expected an even number, at least 4")
        self.setting, self.algorithm, self.episodes = setting, algorithm, episodes
        if episodes * setting.env.max_steps > MOST_STEPS:
            raise ValueError(
                f"{episodes} episodes of max_steps {setting.env.max_steps} are too many steps; expected at "
                f"most {MOST_STEPS:,} in all, set a lower episodes or max_steps"
            )
        self.spec, self.symmetry = setting.net.spec, setting.net.symmetry
        self.hyper = dict(algorithm.hyper)
        self.notes = setting.env.notes
        self.inputs = f"observations of {setting.env_id}" + (
            f", times ({', '.join(f'{each:g}' for each in setting.scale)})"
            if (setting.scale != 1).any()
            else ""
        )

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        return self.setting.net.init(rngs)

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        if variation is not None and not variation.is_plain:
            raise ValueError(f"{self.id} has no labels: label_noise, data_fraction and loss are not for it")
        drawn = {name: [value] for name, value in self.hyper.items()}
        drawn |= {name: list(values) for name, values in (variation.hyper if variation else {}).items()}
        self.algorithm.check_hyper(drawn)
        return self.algorithm.sampler(self.setting, rngs, batch_size, drawn)

    def env_steps(self, step: int, batch_size: int) -> int:
        """Steps of the environment that a run has seen when its optimizer has made `step` steps."""
        return self.algorithm.env_steps(self.setting, step, batch_size)

    def fault(self) -> str:
        faults = self.setting.faults
        found = f"{faults[0]} (environment {self.setting.env_id})" if faults else ""
        faults.clear()
        return found

    def loss(self, theta: Float[Tensor, "K D"], batch: Any) -> Float[Tensor, " K"]:
        return self.algorithm.loss(self.setting, theta, batch)

    def gradients(self, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        return self.algorithm.gradients(self.setting, params, batch)

    def direction(self, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        return self.algorithm.direction(self.setting, params, batch)

    def module(self) -> nn.Module:
        return self.setting.net.module()

    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        return self._evaluate(theta, (split,))[split]

    def metrics_of(self, theta: Float[Tensor, "K D"]) -> dict[str, Float[Tensor, " K"]]:
        measured = self._evaluate(theta, SPLITS)
        return {f"{split}_{name}": values for split in SPLITS for name, values in measured[split].items()}

    def pilot_metric(self, theta: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
        """The mean return of a few episodes."""
        returns = self._returns(theta, (episodes_of(self.setting, "pilot", PILOT_EPISODES, 0),))
        return returns.mean(1).to(theta)

    def _evaluate(
        self, theta: Float[Tensor, "K D"], splits: Sequence[str]
    ) -> dict[str, dict[str, Float[Tensor, " K"]]]:
        """All splits together: long queues leave few copies idle."""
        half = self.episodes // 2
        returns = self._returns(
            theta, [episodes_of(self.setting, split, self.episodes, half) for split in splits]
        )
        found = {}
        for split, own in zip(splits, returns.split(self.episodes + half, 1), strict=True):
            sampled, likeliest = own[:, : self.episodes], own[:, self.episodes :]
            mean = sampled.mean(1)
            count = mean.new_full(mean.shape, self.episodes).where(mean.isfinite(), torch.nan)
            values = (mean, sampled.std(1), likeliest.mean(1), likeliest.std(1), count)
            found[split] = dict(zip(self.metrics, (each.to(theta) for each in values), strict=True))
        return found

    def _returns(self, theta: Float[Tensor, "K D"], sets: Sequence[Episodes]) -> Tensor:
        """(K, E) in float64; of networks that are not finite NaN, without a step."""
        returns = torch.full((len(theta), sum(each.seeds.shape[1] for each in sets)), torch.nan).double()
        finite = theta.isfinite().all(1).cpu()
        together = Episodes(
            np.concatenate([each.seeds for each in sets], 1), np.concatenate([each.noise for each in sets], 1)
        )
        s = self.setting
        played = play_episodes(
            s.net,
            s.head,
            s.env,
            theta[finite.to(theta.device)].cpu().float().numpy(),
            together,
            s.scale,
        )
        returns[finite] = torch.from_numpy(played.returns)
        return returns


@lru_cache(maxsize=16)
def episodes_of(setting: Setting, name: str, sampled: int, likeliest: int) -> Episodes:
    """Those of a split: with sampled actions, then with the likeliest, from the same starts."""
    if name not in SETS_OF_EPISODES:
        raise ValueError(f"unknown split {name!r}; expected one of {', '.join(SETS_OF_EPISODES)}")
    code = SETS_OF_EPISODES[name]
    seeds = mix(EVALUATION, code, np.arange(sampled))
    shape = (setting.env.max_steps, setting.head.outputs)
    noise = setting.head.noise(uniforms(mix(NOISE, code, np.arange(sampled)), shape))
    return Episodes(
        np.concatenate([seeds, seeds[:likeliest]])[None],
        np.concatenate([noise, np.zeros_like(noise[:likeliest])])[None],
    )


def _sizes(hidden: str) -> tuple[int, ...]:
    sizes = tuple(int(each) for each in hidden.split(",") if each.strip().isdecimal())
    if not sizes or min(sizes) < 1 or len(sizes) != len(hidden.split(",")):
        raise ValueError(f"hidden is {hidden!r}; expected numbers of units with commas, as in 32,32")
    if max(sizes) > MOST_UNITS:
        raise ValueError(f"hidden is {hidden!r}; expected at most {MOST_UNITS} units in a layer")
    return sizes


class Constants(NamedTuple):
    """What brings an environment's numbers to the size of 1: constants, so that a policy is theta alone."""

    observation_scale: tuple[float, ...] = ()
    reward_scale: float = 1.0


CONSTANTS = {
    "MountainCarContinuous-v0": Constants((1.0, 10.0), 10.0),
    "Pendulum-v1": Constants((1.0, 1.0, 0.25), 0.1),
}


def policy_task(
    *,
    env: str,
    activation: Literal["selu", "tanh", "relu"] = "selu",
    hidden: str = "32,32",
    episodes: int = 16,
    max_steps: int | None = None,
    algorithm: Literal["ppo", "es"] = "ppo",
    copies: int | None = None,
    rollout: int | None = None,
    epochs: int | None = None,
    trials: int | None = None,
) -> PolicyTask:
    """Policies in an environment of Gymnasium's, or of a module's own: "module:id".

    Args:
        activation, hidden: of the policies, and of PPO's critics.
        episodes: that every network is measured by, with sampled actions; with the likeliest half as many.
        max_steps: step limit of an episode; None: the environment's own.
        algorithm: proximal policy optimisation, or evolution strategies.
        copies, rollout, epochs: PPO's; copies of the environment, steps of each in a rollout, how often each
            transition is learnt from.
        trials: of evolution strategies, episodes that each perturbed policy plays.
    """
    constants = CONSTANTS.get(env, Constants())
    setting = Setting(env, max_steps, _sizes(hidden), activation, constants.observation_scale)
    of_ppo = {"num_copies": copies, "num_steps": rollout, "epochs": epochs}
    of_es = {"episodes": trials}
    mine, others = (of_ppo, of_es) if algorithm == "ppo" else (of_es, of_ppo)
    if any(value is not None for value in others.values()):
        raise ValueError(
            "copies, rollout and epochs are options of algorithm ppo, trials of es; "
            f"algorithm is {algorithm!r}"
        )
    given = {name: value for name, value in mine.items() if value is not None}
    if min(given.values(), default=1) < 1:
        raise ValueError(f"copies, rollout, epochs and trials are at least 1, got {given}")
    num_steps = given.get("num_copies", PPO.num_copies) * given.get("num_steps", PPO.num_steps)
    if max(num_steps, given.get("episodes", 0) * setting.env.max_steps) > MOST_STEPS:
        raise ValueError(f"copies, rollout and trials are for at most {MOST_STEPS:,} steps, got {given}")
    chosen = (
        PPO(reward_scale=constants.reward_scale, **given)
        if algorithm == "ppo"
        else EvolutionStrategies(**given)
    )
    return PolicyTask(setting, chosen, episodes=episodes)


register("rl_tasks:cartpole-v0", partial(policy_task, env="CartPole-v1"))
register("rl_tasks:acrobot-v0", partial(policy_task, env="Acrobot-v1"))
register("rl_tasks:mountaincar-continuous-v0", partial(policy_task, env="MountainCarContinuous-v0"))
register("rl_tasks:pendulum-v0", partial(policy_task, env="Pendulum-v1"))
register("rl_tasks:gym-v0", policy_task)
