"""Quality of samplers: do networks as prompted, and are their weights distributed as trained ones' are?"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import ParamSpec, Task
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..evaluation.evaluate import HeldOut, networks_of_metric, prompt_alignment, prompt_grid
from ..prompt import measured
from .samplers import Sampling

DIRECTIONS = 64
"""Random directions that tensors are projected on."""


def sliced_wasserstein(
    a: Float[Tensor, "N F"], b: Float[Tensor, "N F"], *, rng: torch.Generator, directions: int = DIRECTIONS
) -> float:
    """Mean 1-Wasserstein distance of two samples along random directions, over the spread of `b` along them.

    Samples of one number have a single direction.
    """
    along = torch.randn(a.shape[1], directions if a.shape[1] > 1 else 1, generator=rng)
    along = (along / along.norm(dim=0)).to(a)
    ours, theirs = (a @ along).sort(0).values, (b @ along).sort(0).values  # (N, directions)
    return float(((ours - theirs).abs().mean(0) / theirs.std(0).clamp_min(1e-8)).mean())


def weight_distances(
    spec: ParamSpec, made: Float[Tensor, "K D"], trained: Float[Tensor, "K D"], *, seed: int = 0
) -> dict[str, dict[str, float]]:
    """By tensor, how far the weights made are from as many trained ones, whatever the order of units.

    "wasserstein": sliced, of the rows of a tensor over its first axis (the incoming weights of units, entries
    of a bias) of all networks; in standard deviations of the trained ones. "variance": of all entries, made
    over trained.
    """
    ours, theirs = spec.unflatten(made), spec.unflatten(trained)
    found = {}
    for i, name in enumerate(spec.names):
        a, b = (
            each[name].flatten(0, 1).flatten(1) if each[name].ndim > 2 else each[name].reshape(-1, 1)
            for each in (ours, theirs)
        )
        found[name] = {
            "wasserstein": sliced_wasserstein(a, b, rng=seeded(seed, i)),
            "variance": float(a.var() / b.var().clamp_min(1e-12)),
        }
    return found


def sampler_quality(
    generator: WeightGenerator,
    task: Task,
    held_out: HeldOut,
    samplings: Sequence[Sampling],
    *,
    num_prompts: int,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """One update of every held-out start for every prompt, with one sampling after the other.

    None is calibrated, for a generator can be for one of them at most. Weights are compared with checkpoints
    of the held-out runs of the same starts: those whose validation metric is nearest to what the networks
    made have. Broken networks, whose metrics or weights are not finite, are counted and left out of that.
    """
    column, theta = generator.origin.prompted, held_out.theta[:, 0]
    start, generator = measured(task, theta), replace(generator, calibration=None)
    for sampling in samplings:
        grid = prompt_grid(
            generator.with_sampling(sampling), task, theta, start=start, seed=seed, num_prompts=num_prompts
        )
        alignment = prompt_alignment(grid["prompts"], grid[f"test_{generator.metric}"])
        trained = torch.stack(
            [networks_of_metric(held_out, column, reached) for reached in grid[column].unbind(1)], 1
        )
        good = grid[column].isfinite() & grid["theta"].isfinite().all(-1)
        tensors = (
            weight_distances(task.spec, grid["theta"][good], trained[good], seed=seed) if good.any() else {}
        )
        distances = [each["wasserstein"] for each in tensors.values()]
        yield {
            "sampler": sampling.sampler,
            "trajectory": sampling.trajectory,
            "evaluations": sampling.steps,
            "prompt_alignment": float(alignment.mean()),
            "one_update": float(grid[f"test_{generator.metric}"][:, 0].mean()),
            "wasserstein": sum(distances) / len(distances) if distances else None,
            "tensors": tensors,
            "broken": int((~good).sum()),
            "networks_per_s": grid["networks_per_s"],
        }
