"""Evolution strategies (Salimans et al. 2017) as a sampler: a batch is an estimate of the gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from scipy.stats import rankdata
from torch import Tensor

from .algorithm import EPISODES, POSITIVE, Algorithm, Learner, Range, Setting
from .evaluate import Episodes, play_episodes
from .seeds import mix


class EvolutionBatch(NamedTuple):
    """What perturbed policies have taught."""

    gradient: Float[Tensor, "K D"]
    """Of minus the mean shaped return of perturbed policies, estimated."""


@dataclass(frozen=True, kw_only=True)
class EvolutionStrategies(Algorithm):
    """Antithetic Gaussian perturbations, returns replaced by centred ranks.

    The batch size is the number of perturbed policies per step, which all play the same episodes: new ones
    every step, to their end, with sampled actions. It has no critic and no discount.
    """

    hyper: ClassVar[Mapping[str, float]] = {"sigma": 0.1}
    """Standard deviation of perturbations."""
    ranges: ClassVar[Mapping[str, Range]] = {"sigma": POSITIVE}

    episodes: int = 2
    """Episodes that every perturbed policy plays."""

    def sampler(
        self,
        setting: Setting,
        rngs: Sequence[torch.Generator],
        batch_size: int,
        hyper: Mapping[str, Sequence[float]],
    ) -> "EvolutionLearner":
        if batch_size % 2:
            raise ValueError(
                f"batch_size is {batch_size}; expected an even number: perturbations have both signs"
            )
        return EvolutionLearner(self, setting, rngs, batch_size, hyper["sigma"])

    def env_steps(self, setting: Setting, step: int, batch_size: int) -> int:
        """At most: if every episode reached the time limit."""
        return step * batch_size * self.episodes * setting.env.max_steps

    def loss(self, setting: Setting, theta: Float[Tensor, "K D"], batch: EvolutionBatch) -> Tensor:
        """Linear in theta, with the estimated gradient."""
        return (theta * batch.gradient.to(theta)).sum(1)

    def gradients(
        self, setting: Setting, params: Mapping[str, Tensor], batch: EvolutionBatch
    ) -> dict[str, Tensor]:
        like = next(iter(params.values()))
        return {
            name: value.clone() for name, value in setting.net.spec.unflatten(batch.gradient.to(like)).items()
        }


class EvolutionLearner(Learner):
    """params -> what the next perturbations have taught."""

    def __init__(
        self,
        config: EvolutionStrategies,
        setting: Setting,
        rngs: Sequence[torch.Generator],
        batch_size: int,
        sigma: Sequence[float],
    ):
        self.config, self.setting, self.rngs, self.pairs = config, setting, rngs, batch_size // 2
        self.sigma = np.array(sigma, np.float32)[:, None, None]  # (K or 1, 1, 1)
        self.seeds = np.array([int(torch.randint(2**62, (), generator=rng)) for rng in rngs])
        self.env, self.step = setting.make_env(), 0

    def __call__(self, params: Mapping[str, Tensor]) -> EvolutionBatch:
        s = self.setting
        theta = s.net.spec.flatten(params).cpu().numpy()
        share = len(theta) // len(self.rngs)  # runs of a group share all chance
        epsilon = torch.stack([torch.randn(self.pairs, s.net.spec.D, generator=rng) for rng in self.rngs])
        epsilon = epsilon.numpy().repeat(share, 0)  # (K, B / 2, D)
        noise = s.head.draw(self.rngs, (self.config.episodes, self.env.max_steps))
        seeds = mix(self.seeds[:, None], EPISODES, self.step, np.arange(self.config.episodes))
        self.step += 1
        moved = self.sigma * epsilon
        policies = np.concatenate([theta[:, None] + moved, theta[:, None] - moved], 1)  # (K, B, D)
        played = play_episodes(
            s.net,
            s.head,
            self.env,
            policies.reshape(-1, policies.shape[-1]),
            Episodes(seeds, noise),
            s.scale,
        )
        self.env_steps = self.env_steps + played.lengths.reshape(len(theta), -1).sum(1)
        shaped = centred_ranks(played.returns.mean(1).reshape(len(theta), -1))
        better = shaped[:, : self.pairs] - shaped[:, self.pairs :]  # the first sign than the second
        estimate = np.matmul(better[:, None], epsilon)[:, 0] / (2 * self.pairs * self.sigma[:, 0])
        return EvolutionBatch(torch.from_numpy(-estimate))


def centred_ranks(returns: Float64[ndarray, "K B"]) -> Float32[ndarray, "K B"]:
    """Ranks among each run's perturbed policies, from -1/2 for the worst to 1/2; equal returns rank equally.

    NaN for all of a run that has one: something is wrong with it that must not be hidden.
    """
    ranks = rankdata(returns, axis=1, nan_policy="propagate")
    return ((ranks - 1) / (returns.shape[1] - 1) - 0.5).astype(np.float32)
