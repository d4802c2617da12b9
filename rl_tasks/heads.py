"""Heads: what a policy's outputs mean, a categorical choice or a Gaussian action, and PPO's loss of them.

All chance is noise that was drawn before: Gumbel's for a choice (argmax of logits + noise is a sample of
the softmax), a standard normal's for a Gaussian. Noise 0 is the deterministic policy.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped
from numpy import ndarray
from scipy.special import ndtri
from torch import Tensor

from .stacked import Spaces

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
LARGEST_LOG_RATIO = 20.0
"""Beyond, an action that has become e^20 times as likely counts as one that has become just that."""
SMALLEST = 2.0**-54
"""In the place of a uniform number of 0, half of the smallest other one."""


class PolicyBatch(NamedTuple):
    """Transitions for a step of K policies, from rollouts of an earlier moment of the same ones."""

    observations: Float[Tensor, "K B O"]
    actions: Float[Tensor, "K B A"]
    """Numbers of a Gaussian's action, before it is clipped; or one number, that of a choice."""
    log_probs: Float[Tensor, "K B"]
    """Of the actions under the policies that took them."""
    advantages: Float[Tensor, "K B"]
    clip: Float[Tensor, " K"]
    entropy: Float[Tensor, " K"]
    """Coefficient of the entropy bonus."""
    max_grad_norm: Float[Tensor, " K"]


class Head(ABC):
    """The distribution that a policy's outputs stand for."""

    outputs: int
    """Numbers that a network gives per observation."""
    action_size: int
    """Numbers that an action is stored as."""
    continuous: bool

    @abstractmethod
    def draw(self, rngs: Sequence[torch.Generator], shape: tuple[int, ...]) -> Float32[ndarray, "G ..."]:
        """A block of noise from every generator, `outputs` numbers for each of shape's actions."""

    @abstractmethod
    def noise(self, uniform: Float[ndarray, "*N A"]) -> Float32[ndarray, "*N A"]:
        """Noise of the head's kind from uniform numbers, `outputs` per action."""

    @abstractmethod
    def act(
        self, outputs: Float32[ndarray, "K E A"], log_std: ndarray | None, noise: Float32[ndarray, "K E A"]
    ) -> Float32[ndarray, "K E a"]:
        """Actions as they are stored."""

    @abstractmethod
    def to_env(self, actions: Float32[ndarray, "K E a"]) -> Shaped[ndarray, "N ..."]:
        """Actions as an environment takes them."""

    @abstractmethod
    def log_prob(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, actions: Float32[ndarray, "K B a"]
    ) -> Float32[ndarray, "K B"]: ...

    @abstractmethod
    def loss(self, outputs: Float[Tensor, "K B A"], log_std: Tensor | None, batch: PolicyBatch) -> Tensor:
        """PPO's clipped loss less an entropy bonus (Schulman et al. 2017, eq. 7, 9), (K,), for autograd."""

    @abstractmethod
    def loss_gradient(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, batch: "Arrays"
    ) -> tuple[Float32[ndarray, "K B A"], ndarray | None]:
        """Gradients of `loss` in the outputs and in log_std, by hand."""


class Arrays(NamedTuple):
    """A PolicyBatch's numbers, or some runs of it, in numpy."""

    observations: ndarray
    actions: ndarray
    log_probs: ndarray
    advantages: ndarray
    clip: ndarray
    entropy: ndarray


def make_head(spaces: Spaces) -> Head:
    """The head for an environment's actions."""
    return Categorical(spaces.num_actions) if spaces.num_actions else Gaussian(spaces)


class Categorical(Head):
    """One of a few actions, by its logits."""

    continuous = False
    action_size = 1

    def __init__(self, num_actions: int):
        self.outputs = num_actions

    def draw(self, rngs: Sequence[torch.Generator], shape: tuple[int, ...]) -> Float32[ndarray, "G ..."]:
        drawn = np.empty((len(rngs), *shape, self.outputs), np.float32)
        for own, rng in zip(drawn, rngs, strict=True):
            torch.rand(own.shape, generator=rng, out=torch.from_numpy(own))
        return self.noise(drawn)

    def noise(self, uniform: Float[ndarray, "*N A"]) -> Float32[ndarray, "*N A"]:
        exponential = -np.log(np.maximum(uniform, SMALLEST))  # of a float32 below 1, it is at least 6e-8
        return -np.log(exponential).astype(np.float32, copy=False)

    def act(
        self, outputs: Float32[ndarray, "K E A"], log_std: ndarray | None, noise: Float32[ndarray, "K E A"]
    ) -> Float32[ndarray, "K E 1"]:
        scores = outputs + noise
        best, chosen = scores[..., 0], np.zeros(scores.shape[:-1], np.float32)
        for action in range(1, self.outputs):  # argmax over a short last axis, along the long ones
            better = scores[..., action] > best
            chosen[better] = action
            if action < self.outputs - 1:
                best = np.maximum(best, scores[..., action])
        return chosen[..., None]

    def to_env(self, actions: Float32[ndarray, "K E 1"]) -> Shaped[ndarray, " N"]:
        return actions.reshape(-1).astype(np.int64)

    def log_prob(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, actions: Float32[ndarray, "K B 1"]
    ) -> Float32[ndarray, "K B"]:
        return (_log_softmax(outputs) * self._one_hot(actions)).sum(0)

    def loss(self, outputs: Float[Tensor, "K B A"], log_std: Tensor | None, batch: PolicyBatch) -> Tensor:
        log_p = outputs.log_softmax(-1)
        log_prob = log_p.gather(-1, batch.actions.long()).squeeze(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        return _clipped(log_prob, batch) - batch.entropy * entropy.mean(-1)

    def loss_gradient(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, batch: Arrays
    ) -> tuple[Float32[ndarray, "K B A"], ndarray | None]:
        log_p, one_hot = _log_softmax(outputs), self._one_hot(batch.actions)  # (A, K, B): along long axes
        p = np.exp(log_p)
        delta = (one_hot - p) * _weight((log_p * one_hot).sum(0), batch)
        if batch.entropy.any():
            entropy = -(p * log_p).sum(0)
            delta += (batch.entropy / p.shape[-1])[:, None] * p * (log_p + entropy)
        return np.ascontiguousarray(delta.transpose(1, 2, 0)), None

    def _one_hot(self, actions: ndarray) -> ndarray:
        choices = np.arange(self.outputs, dtype=np.float32)[:, None, None]
        return (actions[..., 0] == choices).astype(np.float32)


class Gaussian(Head):
    """Numbers with independent normal distributions, whose standard deviations depend on no state.

    An action of 1 is the upper bound, -1 the lower one where both are finite; what is sampled beyond is
    clipped. Where they are not, actions are as they are.
    """

    continuous = True

    def __init__(self, spaces: Spaces):
        low, high = np.array(spaces.action_low), np.array(spaces.action_high)
        bounded = np.isfinite(low) & np.isfinite(high)
        self.outputs = self.action_size = len(low)
        with np.errstate(invalid="ignore"):  # of infinite bounds, which are not taken
            self.middle = np.where(bounded, (low + high) / 2, 0).astype(np.float32)
            self.half = np.where(bounded, (high - low) / 2, 1).astype(np.float32)
        self.low, self.high = low.astype(np.float32), high.astype(np.float32)

    def draw(self, rngs: Sequence[torch.Generator], shape: tuple[int, ...]) -> Float32[ndarray, "G ..."]:
        drawn = np.empty((len(rngs), *shape, self.outputs), np.float32)
        for own, rng in zip(drawn, rngs, strict=True):
            torch.from_numpy(own).normal_(generator=rng)
        return drawn

    def noise(self, uniform: Float[ndarray, "*N A"]) -> Float32[ndarray, "*N A"]:
        return ndtri(np.maximum(uniform, SMALLEST)).astype(np.float32)

    def act(
        self, outputs: Float32[ndarray, "K E A"], log_std: ndarray | None, noise: Float32[ndarray, "K E A"]
    ) -> Float32[ndarray, "K E A"]:
        return outputs + _std(log_std)[:, None] * noise

    def to_env(self, actions: Float32[ndarray, "K E A"]) -> Float32[ndarray, "N A"]:
        flat = actions.reshape(-1, self.outputs) * self.half + self.middle
        if np.isnan(flat.sum()):  # of a policy that is lost: an environment need not know what to do with it
            np.nan_to_num(flat, copy=False, posinf=np.inf, neginf=-np.inf)
        return np.clip(flat, self.low, self.high, out=flat)

    def log_prob(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, actions: Float32[ndarray, "K B A"]
    ) -> Float32[ndarray, "K B"]:
        z = (actions - outputs) / _std(log_std)[:, None]
        return self._log_prob(z, log_std)

    def loss(self, outputs: Float[Tensor, "K B A"], log_std: Tensor | None, batch: PolicyBatch) -> Tensor:
        assert log_std is not None
        normal = torch.distributions.Normal(outputs, log_std.exp().unsqueeze(1), validate_args=False)
        log_prob = normal.log_prob(batch.actions).sum(-1)
        return _clipped(log_prob, batch) - batch.entropy * normal.entropy().sum(-1).mean(-1)

    def loss_gradient(
        self, outputs: Float32[ndarray, "K B A"], log_std: ndarray | None, batch: Arrays
    ) -> tuple[Float32[ndarray, "K B A"], ndarray | None]:
        std = _std(log_std)
        z = (batch.actions - outputs) / std[:, None]
        weight = _weight(self._log_prob(z, log_std), batch)[..., None]
        of_std = (weight * (z * z - 1)).sum(1) - batch.entropy[:, None]
        return weight * z / std[:, None], of_std

    def _log_prob(self, z: ndarray, log_std: ndarray | None) -> ndarray:
        assert log_std is not None
        return -0.5 * (z * z).sum(-1) - (log_std.sum(-1) + self.outputs * LOG_SQRT_2PI)[:, None]


def _std(log_std: ndarray | None) -> ndarray:
    assert log_std is not None
    return np.exp(log_std)


def _log_softmax(outputs: ndarray) -> ndarray:
    """(K, B, A) -> (A, K, B)."""
    logits = np.ascontiguousarray(outputs.transpose(2, 0, 1))
    logits -= logits.max(0)
    return logits - np.log(np.exp(logits).sum(0))


def _clipped(log_prob: Tensor, batch: PolicyBatch) -> Tensor:
    """-mean(min(r A, clip(r, 1 - c, 1 + c) A)) of each run."""
    ratio, clip = (log_prob - batch.log_probs).exp(), batch.clip.unsqueeze(1)
    bounded = torch.minimum(torch.maximum(ratio, 1 - clip), 1 + clip)
    return -torch.minimum(ratio * batch.advantages, bounded * batch.advantages).mean(-1)


def _weight(log_prob: ndarray, batch: Arrays) -> ndarray:
    """The gradient of `_clipped` in log_prob: -r A / B where the ratio is not clipped, else 0."""
    ratio, clip = np.exp(np.minimum(log_prob - batch.log_probs, LARGEST_LOG_RATIO)), batch.clip[:, None]
    followed = np.where(batch.advantages > 0, ratio <= 1 + clip, ratio >= 1 - clip)
    return ratio * batch.advantages * followed * np.float32(-1 / log_prob.shape[1])
