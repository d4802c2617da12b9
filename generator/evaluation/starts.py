"""Starts unlike the zoo's: how far recursive prompting brings initialisations never learned from."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import ParamSpec, Task
from ckpt_factory.initialise import initialise
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..prompt import prompt_networks

Start = Callable[[ParamSpec, Tensor, torch.Generator], Tensor]
"""(spec, theta (D,) as the task initialises it, rng) -> another start network (D,)."""


def scaled(factor: float) -> Start:
    """All parameters times a factor."""
    return lambda spec, theta, rng: factor * theta


def by_rule(rule: str) -> Start:
    """Matrices by a rule of `initialise`, biases 0; all other parameters as the task has them."""
    return lambda spec, theta, rng: initialise(theta, spec, rule, rng=rng)


STARTS: dict[str, Start] = {
    "own": scaled(1.0),
    "half": scaled(0.5),
    "double": scaled(2.0),
    "orthogonal": by_rule("orthogonal"),
    "uniform": by_rule("xavier"),
}
"""By name: the task's own initialisations as the yardstick, these scaled, orthonormal matrices times sqrt(2),
and uniform ones (Glorot and Bengio 2010)."""


def recursive_curves(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    kind: str,
    *,
    seed: int,
    updates: int = 10,
    best: float | None = None,
) -> dict[str, Any]:
    """Start networks of a kind, prompted for the best metric again and again.

    Args:
        theta: held-out initialisations, which the others are made from.
        best: the prompt; default the best validation metric of the training runs.

    Returns:
        The test metrics at the start and after each update, by column (N, updates + 1).
    """
    make, best = STARTS[kind], generator.best_metric if best is None else best
    rngs = [seeded(seed, list(STARTS).index(kind), n) for n in range(len(theta))]
    starts = torch.stack([make(task.spec, row, rng) for row, rng in zip(theta, rngs, strict=True)])
    rng = seeded(seed, list(STARTS).index(kind))
    prompt = torch.full((len(theta),), best)
    made = prompt_networks(generator, task, starts, prompt, rng=rng, updates=updates)
    return {
        name: torch.stack([made.start[name], *(after[name] for after in made.achieved)], 1)
        for name in made.start
        if name.startswith("test_")
    }
