"""Algorithm: how policies learn, and Setting: what they are and where they live."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from .envs import make_stacked
from .heads import Head, make_head
from .policy import PolicyNet
from .stacked import StackedEnv

EPISODES, EVALUATION, NOISE = range(3)
"""Purposes of seeds, see `seeds.mix`: a run's episodes in training, those that all networks are measured by,
and the noise of the latter's actions."""


@dataclass(frozen=True)
class Setting:
    """An environment and the policies in it."""

    env_id: str
    max_steps: int | None
    """Time limit of an episode in the place of the environment's own."""
    hidden: tuple[int, ...]
    activation: str
    observation_scale: tuple[float, ...] = ()
    """Constants that observations are multiplied with; none: they are taken as they are."""

    def make_env(self) -> StackedEnv:
        env = make_stacked(self.env_id, self.max_steps)
        env.faults = self.faults
        return env

    @cached_property
    def faults(self) -> list[str]:
        """The first fault of all environments that were made here, until somebody clears it."""
        return []

    @cached_property
    def env(self) -> StackedEnv:
        """One to ask for its spaces, and to measure networks in."""
        return self.make_env()

    @cached_property
    def head(self) -> Head:
        return make_head(self.env.spaces)

    @cached_property
    def net(self) -> PolicyNet:
        spaces = self.env.spaces
        return PolicyNet(
            spaces.observation_size, self.hidden, self.head.outputs, self.activation, self.head.continuous
        )

    @cached_property
    def scale(self) -> Float32[ndarray, " O"]:
        size = self.env.spaces.observation_size
        return np.array(self.observation_scale or [1.0] * size, np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Learner(ABC):
    """params -> the next batch, a `Sampler` of a stack's runs that counts what it costs them."""

    env_steps: Int64[ndarray, " K"] = np.zeros(1, np.int64)
    """Steps of the environment that each run has taken up to now; one 0 before there is a batch."""

    @abstractmethod
    def __call__(self, params: Mapping[str, Tensor]) -> Any: ...


class Range(NamedTuple):
    """What a hyper-parameter may be: as a message says it, and as a test."""

    words: str
    holds: Callable[[float], bool]


POSITIVE = Range("above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("at least 0", lambda value: value >= 0)
FROM_0_TO_1 = Range("from 0 to 1", lambda value: 0 <= value <= 1)
FROM_0_BELOW_1 = Range("at least 0 and below 1", lambda value: 0 <= value < 1)


class Algorithm(ABC):
    """What policies learn by: an endless stream of batches, and the loss that its gradients are of."""

    hyper: Mapping[str, float]
    """What may differ between the runs of a stack, and what it is where a plan does not say."""
    ranges: Mapping[str, Range]
    """Of each of them."""

    def check_hyper(self, hyper: Mapping[str, Sequence[float]]) -> None:
        """Raises ValueError for what no policy can learn by."""
        for name, values in hyper.items():
            for value in values:
                if not self.ranges[name].holds(value):
                    raise ValueError(f"hyper {name} is {value:g}; expected {self.ranges[name].words}")

    @abstractmethod
    def sampler(
        self,
        setting: Setting,
        rngs: Sequence[torch.Generator],
        batch_size: int,
        hyper: Mapping[str, Sequence[float]],
    ) -> Learner:
        """Batches of one group of runs per generator; runs of a group share all chance.

        Args:
            hyper: by name one value, or one for each run.

        Raises:
            ValueError: there are no batches of that size.
        """

    @abstractmethod
    def env_steps(self, setting: Setting, step: int, batch_size: int) -> int:
        """Steps of the environment that a run has seen when the optimizer has made `step` steps."""

    @abstractmethod
    def loss(self, setting: Setting, theta: Float[Tensor, "K D"], batch: Any) -> Float[Tensor, " K"]:
        """Differentiable in theta."""

    @abstractmethod
    def gradients(self, setting: Setting, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """Of `loss`, shaped like params, by hand."""

    def direction(self, setting: Setting, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """What the optimizer is given."""
        return self.gradients(setting, params, batch)
