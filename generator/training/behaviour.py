"""Behaviour: predicted networks shall answer as those of the zoo do, not only be near them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import Task

from ..coordinates import Coordinates

WEIGHT = 100.0
"""Of divergences beside squared errors of scaled updates, unless told otherwise."""


@dataclass(frozen=True)
class Behaviour:
    """How far networks answer from others, on training examples that are drawn anew each time.

    Squared errors of parameters add up what is wrong with each layer, whether the others make up for it or
    not; answers are what all layers do together (Meynent et al. 2025, "Structure is not enough").
    """

    task: Task
    coordinates: Coordinates
    weight: float = WEIGHT
    num_examples: int = 64
    """Training examples for all networks of a step."""

    def to(self, device: torch.device | str) -> "Behaviour":
        """The same with its coordinates on a device."""
        return replace(self, coordinates=self.coordinates.to(device))

    def divergence(
        self, z: Float[Tensor, "B Z"], goal: Float[Tensor, "B Z"], *, rng: torch.Generator
    ) -> Float[Tensor, " B"]:
        """Of networks in coordinates, `Task.divergence`; differentiable in z.

        What lies outside of the kept directions of a layer's inputs is left out of both networks.
        """
        chosen = torch.randint(self.task.num_examples("train"), (self.num_examples,), generator=rng)
        x, _ = self.task.examples("train", chosen)
        return self.task.divergence(
            self.coordinates.decode_update(z), self.coordinates.decode_update(goal), x.to(z.device)
        )


def behaviour_of(
    task: Task, coordinates: Coordinates, weight: float | None, num_examples: int
) -> Behaviour | None:
    """The behaviour that a training minds; None where it minds none.

    Args:
        weight: None: the usual one, if the task's networks answer examples.

    Raises:
        ValueError: a weight is given, and the task has no examples.
    """
    if weight == 0 or (weight is None and not task.answers_examples):
        return None
    if not task.answers_examples:
        raise ValueError(f"behaviour is {weight:g}, but networks of {task.id} answer no examples; expected 0")
    return Behaviour(task, coordinates, WEIGHT if weight is None else weight, num_examples)
