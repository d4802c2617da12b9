"""Task: a learning problem over stacks of networks; it begins every story and judges its end."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from numpy.random import SeedSequence
from torch import Tensor, nn

from ..losses import kl_divergence
from ..spec import ParamSpec
from ..symmetry import Symmetry

SPLITS = ("validation", "test")


class Batch(NamedTuple):
    """One mini-batch for each of G groups; run k of K learns from that of group k // (K // G)."""

    x: Tensor  # (G, B, ...)
    y: Tensor  # (G, B)
    gamma: Tensor | None = None  # (K,), TaiLr's; None is cross-entropy for all


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What the batches and losses of a stack's runs may differ in."""

    label_noise: tuple[float, ...]
    """Per group: share of the training labels replaced by another class."""
    data_fraction: tuple[float, ...]
    """Per group: share of the training data that is seen."""
    gamma: tuple[float, ...]
    """Per run: TaiLr's gamma, 0 for cross-entropy."""
    hyper: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Per run: the task's own hyper-parameters that the plan sets, some of `Task.hyper`."""

    @property
    def is_plain(self) -> bool:
        return not any(self.label_noise) and not any(self.gamma) and set(self.data_fraction) <= {1.0}


Sampler = Callable[[Mapping[str, Tensor]], Any]
"""params {name: (K, *shape)} -> the next batch. It sees them: a batch may be a rollout of policies."""


class Task(ABC):
    """A learning problem whose networks are rows of theta: (K, D). One network is K = 1.

    A subclass gives four verbs (init, sampler, loss, evaluate) and the attributes below. `gradients` is
    derived from `loss`; a task that knows a faster way overrides it, and `check_task` holds both together.
    """

    id: str
    """The name under which `make` finds the task, "module:name-v0" outside this package."""
    spec: ParamSpec
    symmetry: Symmetry
    objective: Literal["min", "max"] = "min"
    """Whether a good `metric` is small (a loss) or large (a return)."""
    metric: str = "loss"
    """The one of `metrics` that the generator is prompted with."""
    metrics: tuple[str, ...] = ("loss",)
    """What `evaluate` measures."""
    answers_examples: bool = False
    """Whether its networks answer labelled examples: then `examples`, `outputs` and `module` are given."""
    prompt_start: float = 0.9
    """Prompts range from the best metric to this share of the start network's (Peebles et al. 2022)."""
    inputs: str = ""
    """How a network's input is made from raw data, for the cards of zoos and generators."""
    data: Any = None
    """What it was made from, as `make` takes it, for workers to be given it; None: they load it anew."""
    sensitive: float = 0.0
    """Share of networks whose metrics another processor may measure otherwise by more than rounding."""
    networks_at_once: int = 1
    """How many networks are evaluated together where many are; at least one of each run of a stack."""
    hyper: Mapping[str, float] = {}
    """Hyper-parameters of its own that a plan may set per run, and what they are where it does not."""
    unused: tuple[str, ...] = ()
    """Settings of a run that mean nothing to it, of those about labelled data: null in the runs table."""
    on_gpu: bool = True
    """Whether its stacks can be trained on a GPU."""
    notes: tuple[str, ...] = ()
    """What whoever uses the task should know of it, one line each; said when a zoo is made."""

    @abstractmethod
    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        """Initial parameters of one run per generator; run k depends on rngs[k] alone."""

    @abstractmethod
    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        """An endless stream of batches, one group of runs per generator.

        Raises:
            ValueError: batches are larger than the data, or the task knows no such variation.
        """

    @abstractmethod
    def loss(self, theta: Float[Tensor, "K D"], batch: Any) -> Float[Tensor, " K"]:
        """Each run's training loss, differentiable in theta."""

    @abstractmethod
    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        """Each run's metrics on all of a split, "train", "validation" or "test"."""

    def gradients(self, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """Gradients of each run's loss, shaped like params: {name: (K, *shape)}."""
        theta = self.spec.flatten(params).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(theta, batch).sum(), theta)
        return self.spec.unflatten(gradient)

    def direction(self, params: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        """What the optimizer is given: the gradients, or what the task makes of them (clipped norms)."""
        return self.gradients(params, batch)

    def with_products(self, precision: str, *, compile: bool = False) -> "Task":
        """This task with matrix products of that precision, its inner loop compiled or not.

        Raises:
            ValueError: the task knows float32 alone.
        """
        if precision != "float32":
            raise ValueError(f"{self.id} knows precision float32 alone, not {precision}")
        if compile:
            raise ValueError(f"{self.id} has no inner loop to compile; leave out --compile")
        return self

    def module(self) -> nn.Module:
        """One network as a plain module: its state_dict has this spec, its input is a batch's x (B, ...).

        Raises:
            ValueError: the task's networks have no such form.
        """
        raise ValueError(f"{self.id} gives no plain module of its networks")

    def examples(
        self, split: str, index: Int[Tensor, " N"] | None = None
    ) -> tuple[Tensor, Int[Tensor, " N"]]:
        """Inputs (N, ...) of a split as a float32 `module` takes them, and their labels.

        Args:
            index: of these examples; all of them by default.

        Raises:
            ValueError: the task has no labelled examples.
        """
        raise ValueError(f"{self.id} has no labelled examples")

    def num_examples(self, split: str) -> int:
        """How many labelled examples a split has.

        Raises:
            ValueError: the task has none.
        """
        return len(self.examples(split)[1])

    def outputs(
        self, theta: Float[Tensor, "K D"], x: Float[Tensor, "B *input"]
    ) -> Float[Tensor, "K B *output"]:
        """What each network answers to the same inputs, in the form of `examples`; differentiable in theta.

        Raises:
            ValueError: the task has no examples.
        """
        raise ValueError(f"{self.id} has no examples that its networks answer")

    def divergence(
        self, theta: Float[Tensor, "K D"], goal: Float[Tensor, "K D"], x: Float[Tensor, "B *input"]
    ) -> Float[Tensor, " K"]:
        """How far each network's answers are from those of its goal; differentiable in theta.

        Raises:
            ValueError: the task has no examples.
        """
        with torch.no_grad():
            wanted = self.outputs(goal, x)
        return self.apart(self.outputs(theta, x), wanted)

    def apart(
        self, outputs: Float[Tensor, "K B *output"], goal: Float[Tensor, "K B *output"]
    ) -> Float[Tensor, " K"]:
        """How far answers are from others: the mean Kullback-Leibler divergence from the goal's probabilities
        of classes, in nats. A task whose answers are no logits of classes measures what fits.
        """
        return kl_divergence(outputs, goal)

    def input_moments(self) -> dict[str, tuple[Float[Tensor, " I"], Float[Tensor, "I I"]]]:
        """Mean and covariance of what each named layer's weight multiplies, over the training split.

        Empty where they are not known. The generator's function-space coordinates are built from them.
        """
        return {}

    def fault(self) -> str:
        """What broke in what its runs learn from or are measured by, in one line, since this was last asked;
        runs that it has cost have diverged. Empty: nothing did."""
        return ""

    def metrics_of(self, theta: Float[Tensor, "K D"]) -> dict[str, Float[Tensor, " K"]]:
        """Validation and test metrics under the names that the zoo's columns have: "validation_loss", ..."""
        return {
            f"{split}_{name}": values
            for split in SPLITS
            for name, values in self.evaluate(theta, split).items()
        }

    def pilot_metric(self, theta: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
        """An estimate of the validation metric to choose checkpoints by, where a cheaper one will do."""
        return self.evaluate(theta, "validation")[self.metric]


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator whose stream is a function of integers alone, through numpy's SeedSequence."""
    state = SeedSequence(entropy).generate_state(2)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
