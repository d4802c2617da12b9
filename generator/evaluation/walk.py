"""Latent walks: one start and one prompt, a loop of noises, and the networks along the way."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded

from ..artefact import WeightGenerator
from ..sampling.samplers import SamplingChange

MANY_STEPS = 20
"""Sampling steps of a walk where the generator's own are too few to make anything of the noise."""


def circle(size: int, frames: int, *, rng: torch.Generator) -> Float[Tensor, "frames size"]:
    """Noises on a loop, cos(phi) a + sin(phi) b for normal a and b: each is standard normal itself.

    Two independent noises of many dimensions are as good as orthogonal and of one length: the loop is a
    slerp from a over b, -a and -b back to a.
    """
    a, b = torch.randn(2, size, generator=rng)
    phi = torch.arange(frames).unsqueeze(1) * (2 * math.pi / frames)
    return phi.cos() * a + phi.sin() * b


def walking(generator: WeightGenerator) -> WeightGenerator:
    """As a walk is sampled: nothing but the noise it begins with may be random, and that must matter."""
    steps = MANY_STEPS if generator.sampling.steps == 1 else None
    return generator.with_sampling(SamplingChange(steps=steps, sampler="ddim", trajectory="even"))


def latent_walk(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, " D"],
    *,
    frames: int,
    prompt: float,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Networks along a loop of noises from one start for one prompt: numbers, and arrays with their metrics.

    `walk_spread` is how far they are from their mean, root mean square, over how far they are from the start;
    `walk_spread_own` the same with one deterministic step where that is the generator's own sampling, whose
    networks hardly depend on the noise.
    """
    metrics = task.metrics_of(theta.unsqueeze(0))
    metric = metrics[generator.origin.prompted].expand(frames)
    noise = circle(generator.coordinates.Z, frames, rng=seeded(seed))
    starts = theta.expand(frames, -1)

    def walk(by: WeightGenerator) -> Float[Tensor, "F D"]:
        return by.update(starts, metric, prompt, rng=seeded(seed), noise=noise)

    walker = walking(generator)
    made = walk(walker)
    achieved = task.metrics_of(made)
    numbers = {
        "walk_steps": walker.sampling.steps,
        "walk_prompt": prompt,
        "walk_spread": spread(made, theta),
        "walk_spread_own": spread(walk(generator), theta) if generator.sampling.steps == 1 else None,
    }
    for name, values in achieved.items():
        if name in (f"test_{generator.metric}", "test_error"):
            numbers |= {f"walk_{name}_least": float(values.min()), f"walk_{name}_most": float(values.max())}
    arrays = {"walk_start": theta, "walk_theta": made}
    return numbers, arrays | {f"walk_{name}": values for name, values in achieved.items()}


def spread(made: Float[Tensor, "F D"], start: Float[Tensor, " D"]) -> float:
    """Distance of networks from their mean, over their distance from the start; both root mean square."""
    from_mean = (made - made.mean(0)).square().sum(1).mean()
    return float((from_mean / (made - start).square().sum(1).mean()).sqrt())
