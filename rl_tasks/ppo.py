"""Proximal policy optimisation (Schulman et al. 2017) as a sampler: its batches are minibatches of rollouts.

`Task.sampler` sees the parameters at every step, so that the learner needs no loop of its own: when its
minibatches are used up it rolls the current policies out, estimates advantages with its critics, and hands
out the next. The critics, one for each run, learn from every minibatch that is handed out and are thrown
away in the end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from ckpt_factory.optim import make_optimizer

from .algorithm import (
    FROM_0_BELOW_1,
    FROM_0_TO_1,
    NOT_NEGATIVE,
    POSITIVE,
    Algorithm,
    Learner,
    Range,
    Setting,
)
from .gae import advantages
from .heads import Arrays, PolicyBatch
from .policy import Layers, PolicyNet, backward, forward
from .rollout import Copies, Rollout

HYPER = {
    "discount": 0.99,
    "gae_lambda": 0.95,
    "clip": 0.2,
    "entropy": 0.0,
    "value_lr": 5e-3,
    "max_grad_norm": 0.5,
}
RANGES = {
    "discount": FROM_0_BELOW_1,  # rewards are multiplied with 1 - discount
    "gae_lambda": FROM_0_TO_1,
    "clip": POSITIVE,
    "entropy": NOT_NEGATIVE,
    "value_lr": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
}

RUNS_AT_ONCE = 16
"""Runs whose minibatches go through the networks together: what they need stays in the second-level cache."""

ROWS_AT_ONCE = 256
"""Of a run's rollout: more would not be faster, and BLAS would call for threads."""


@dataclass(frozen=True, kw_only=True)
class PPO(Algorithm):
    """Clipped surrogate, GAE(lambda), several epochs of shuffled minibatches; advantages are normalised over
    each rollout of each run, episodes cut off by the time limit are bootstrapped, norms of gradients are
    clipped per run. The fields are the same for all runs of a stack."""

    hyper: ClassVar[Mapping[str, float]] = HYPER
    ranges: ClassVar[Mapping[str, Range]] = RANGES
    num_copies: int = 8
    """Copies of the environment per run."""
    num_steps: int = 64
    """Steps of every copy in a rollout."""
    epochs: int = 3
    """How often every transition of a rollout is learnt from."""
    reward_scale: float = 1.0
    """Rewards are multiplied with it, and with 1 - discount: values are then of the size of 1."""

    @property
    def transitions(self) -> int:
        """Of a rollout, per run."""
        return self.num_copies * self.num_steps

    def updates(self, batch_size: int) -> int:
        """Steps of the optimizer per rollout.

        Raises:
            ValueError: a rollout is not whole minibatches.
        """
        if self.transitions % batch_size:
            raise ValueError(
                f"batch_size is {batch_size}; expected a divisor of the {self.transitions} transitions of a "
                f"rollout of {self.num_copies} copies by {self.num_steps} steps"
            )
        return self.epochs * self.transitions // batch_size

    def env_steps(self, setting: Setting, step: int, batch_size: int) -> int:
        return -(-step // self.updates(batch_size)) * self.transitions

    def sampler(
        self,
        setting: Setting,
        rngs: Sequence[torch.Generator],
        batch_size: int,
        hyper: Mapping[str, Sequence[float]],
    ) -> "PPOLearner":
        return PPOLearner(self, setting, rngs, batch_size, hyper)

    def loss(self, setting: Setting, theta: Float[Tensor, "K D"], batch: PolicyBatch) -> Float[Tensor, " K"]:
        """Written without what `gradients` is made of, which is checked against it."""
        params = setting.net.spec.unflatten(theta)
        log_std, x = params.pop("log_std", None), batch.observations
        weights, biases = list(params.values())[::2], list(params.values())[1::2]
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            x = setting.net.act.module()(x) if i < len(weights) - 1 else x
        return setting.head.loss(x, log_std, batch)

    def gradients(
        self, setting: Setting, params: Mapping[str, Tensor], batch: PolicyBatch
    ) -> dict[str, Tensor]:
        net, head = setting.net, setting.head
        arrays = [params[name].numpy() for name in net.spec.names]
        found = [np.empty(each.shape, np.float32) for each in arrays]
        for part in chunks(len(arrays[0])):
            some = Arrays(*(each[part].numpy() for each in batch[:6]))
            layers = [(weight[part], bias[part]) for weight, bias in net.layers(arrays)]
            outputs = forward(layers, some.observations, net.act)
            log_std = arrays[0][part] if head.continuous else None
            delta, of_std = head.loss_gradient(outputs[-1], log_std, some)
            by_layer = backward(layers, some.observations, outputs, delta, net.act)
            own = [each for layer in by_layer for each in layer]
            for into, gradient in zip(found, own if of_std is None else [of_std, *own], strict=True):
                into[part] = gradient
        return {name: torch.from_numpy(each) for name, each in zip(net.spec.names, found, strict=True)}

    def direction(
        self, setting: Setting, params: Mapping[str, Tensor], batch: PolicyBatch
    ) -> dict[str, Tensor]:
        with np.errstate(all="ignore"):  # diverged runs go on with their NaN
            gradients = self.gradients(setting, params, batch)
            clip_norms([each.numpy() for each in gradients.values()], batch.max_grad_norm.numpy())
        return gradients


class Critic:
    """A value network for each run, learning by Adam."""

    def __init__(self, net: PolicyNet, theta: Float32[ndarray, "K D"], hyper: Mapping[str, ndarray]):
        self.net, self.max_norm = net, hyper["max_grad_norm"]
        self.params = {
            name: torch.from_numpy(value.copy())
            for name, value in zip(net.spec.names, net.params(theta), strict=True)
        }
        rate = torch.from_numpy(hyper["value_lr"])
        self.optimizer = make_optimizer("adamw", self.params, lr=rate, weight_decay=0.0, momentum=0.9)

    @property
    def layers(self) -> Layers:
        return self.net.layers([value.numpy() for value in self.params.values()])

    def values(self, observations: Float32[ndarray, "K B O"]) -> Float32[ndarray, "K B"]:
        found = np.empty(observations.shape[:2], np.float32)
        for part in chunks(len(found)):
            layers = [(weight[part], bias[part]) for weight, bias in self.layers]
            for start in range(0, observations.shape[1], ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                found[part, rows] = forward(layers, observations[part, rows], self.net.act)[-1][..., 0]
        return found

    def learn(self, observations: Float32[ndarray, "K B O"], targets: Float32[ndarray, "K B"]) -> None:
        """One step down each run's mean of (V - target)^2 / 2."""
        for part in chunks(len(targets)):
            layers = [(weight[part], bias[part]) for weight, bias in self.layers]
            outputs = forward(layers, observations[part], self.net.act)
            delta = (outputs[-1] - targets[part, :, None]) * np.float32(1 / targets.shape[1])
            found = backward(layers, observations[part], outputs, delta, self.net.act)
            gradients = [each for layer in found for each in layer]
            clip_norms(gradients, self.max_norm[part])
            for param, gradient in zip(self.params.values(), gradients, strict=True):
                if param.grad is None:
                    param.grad = torch.empty_like(param)
                param.grad[part] = torch.from_numpy(gradient)
        self.optimizer.step()


class PPOLearner(Learner):
    """params -> the next minibatch. Runs of a group share chance: episodes, noise, shuffles."""

    def __init__(
        self,
        config: PPO,
        setting: Setting,
        rngs: Sequence[torch.Generator],
        batch_size: int,
        hyper: Mapping[str, Sequence[float]],
    ):
        config.updates(batch_size)  # refuses what is not whole minibatches
        self.config, self.setting, self.net, self.head = config, setting, setting.net, setting.head
        self.rngs, self.batch_size, self.drawn = rngs, batch_size, hyper
        self.copies: Copies | None = None
        self.batches: Iterator[PolicyBatch] = iter(())

    def __call__(self, params: Mapping[str, Tensor]) -> PolicyBatch:
        with np.errstate(all="ignore"):  # diverged runs go on with their NaN
            batch = next(self.batches, None)
            if batch is None:
                self.batches = self._minibatches([params[name].numpy() for name in self.net.spec.names])
                batch = next(self.batches)
            return batch

    def _begin(self, num_runs: int) -> Copies:
        """What a run needs at its first step: its seed, its critic, its copies of the environment."""
        self.share = num_runs // len(self.rngs)  # runs of a group
        self.hyper = {
            name: np.broadcast_to(np.array(values, np.float32), num_runs).copy()
            for name, values in self.drawn.items()
        }
        seeds = [int(torch.randint(2**62, (), generator=rng)) for rng in self.rngs]
        value_net = replace(self.net, outputs=1, continuous=False)
        theta = value_net.init(self.rngs, last_gain=1.0).numpy().repeat(self.share, 0)
        self.critic = Critic(value_net, theta, self.hyper)
        seeds = np.array(seeds).repeat(self.share)
        return Copies(self.setting.make_env(), seeds, self.config.num_copies, self.setting.scale)

    def _minibatches(self, params: list[ndarray]) -> Iterator[PolicyBatch]:
        """Roll the policies out and shuffle what they did, every epoch anew."""
        num_runs = len(params[0])
        if self.copies is None:
            self.copies = self._begin(num_runs)
        shape = (self.config.num_steps, self.config.num_copies)
        noise = self.head.draw(self.rngs, shape).repeat(self.share, 0)
        log_std = params[0] if self.head.continuous else None
        layers = self.net.layers(params)
        rollout = self.copies.rollout(layers, log_std, self.head, self.net.act, noise)
        self.env_steps = self.env_steps + np.full(num_runs, self.config.transitions)
        pool = self._pool(rollout, log_std)  # (K, T * E, O + a + 3)
        rows, width = pool.reshape(-1, pool.shape[-1]), self.net.observation_size
        limits = [torch.from_numpy(self.hyper[name]) for name in ("clip", "entropy", "max_grad_norm")]
        offset = np.arange(num_runs)[:, None] * self.config.transitions
        for _ in range(self.config.epochs):
            orders = [torch.randperm(self.config.transitions, generator=rng).numpy() for rng in self.rngs]
            order = np.stack(orders).repeat(self.share, 0) + offset  # (K, T * E)
            for start in range(0, self.config.transitions, self.batch_size):
                picked = rows.take(order[:, start : start + self.batch_size], axis=0)  # (K, B, ...)
                observations = picked[..., :width]
                self.critic.learn(observations, picked[..., -1])
                batch = torch.from_numpy(picked)
                yield PolicyBatch(
                    batch[..., :width], batch[..., width:-3], batch[..., -3], batch[..., -2], *limits
                )

    def _pool(self, rollout: Rollout, log_std: ndarray | None) -> Float32[ndarray, "K N F"]:
        """Transitions of every run: observation, action, log-probability, advantage, value to learn."""
        num_runs, num_steps, num_copies, _ = rollout.observations.shape
        flat = [each.reshape(num_runs, num_steps * num_copies, -1) for each in rollout[:3]]
        observations, outputs, actions = flat
        pool = np.empty((*flat[0].shape[:2], observations.shape[-1] + actions.shape[-1] + 3), np.float32)
        pool[..., : observations.shape[-1]] = observations
        pool[..., observations.shape[-1] : -3] = actions
        pool[..., -3] = self.head.log_prob(outputs, log_std, actions)
        values = self.critic.values(observations).reshape(num_runs, num_steps, num_copies)
        values = np.ascontiguousarray(values.transpose(1, 0, 2))  # (T, K, E)
        scale = self.config.reward_scale * (1 - self.hyper["discount"][:, None])
        gained = advantages(
            rollout.rewards * scale,
            values,
            self._next_values(rollout, values),
            rollout.terminated | rollout.truncated,
            self.hyper["discount"],
            self.hyper["gae_lambda"],
        )
        targets = (gained + values).transpose(1, 0, 2).reshape(num_runs, -1)
        gained = gained.transpose(1, 0, 2).reshape(num_runs, -1)
        gained -= gained.mean(1, keepdims=True)
        gained /= gained.std(1, keepdims=True) + np.float32(1e-8)  # over the whole rollout of the run
        pool[..., -2], pool[..., -1] = gained, targets
        return pool

    def _next_values(self, rollout: Rollout, values: Float32[ndarray, "T K E"]) -> Float32[ndarray, "T K E"]:
        """V of what each step led to, as `advantages` takes it."""
        found = np.empty_like(values)
        found[:-1] = values[1:]
        found[-1] = self.critic.values(rollout.next_observations)
        if len(rollout.final_observations):
            t, run, copy = rollout.truncated.nonzero()
            order = np.argsort(run, kind="stable")
            place = np.arange(len(run)) - np.searchsorted(
                run[order], run[order]
            )  # of a run's, the how-manyeth
            padded = np.zeros((values.shape[1], place.max() + 1, self.net.observation_size), np.float32)
            padded[run[order], place] = rollout.final_observations[order]
            found[t[order], run[order], copy[order]] = self.critic.values(padded)[run[order], place]
        found[rollout.terminated] = 0
        return found


def clip_norms(gradients: Sequence[ndarray], max_norm: Float32[ndarray, " K"]) -> None:
    """Shorten each run's gradient, in place, to at most that Euclidean norm over all parameters."""
    flat = [each.reshape(len(each), -1) for each in gradients]
    norm = np.sqrt(sum(np.einsum("kd,kd->k", each, each) for each in flat))
    factor = np.minimum(1, max_norm / (norm + np.float32(1e-6)))
    for each in flat:
        each *= factor[:, None]


def chunks(num_runs: int) -> Iterator[slice]:
    """The runs of a stack, a few at a time."""
    return (slice(start, start + RUNS_AT_ONCE) for start in range(0, num_runs, RUNS_AT_ONCE))
