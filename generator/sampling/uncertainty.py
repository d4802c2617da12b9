"""Measuring how uncertain a trained generator's predictions are, on training runs and on held-out ones."""

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo

from ..artefact import AT_ONCE, WeightGenerator
from ..training.pairs import Pairs, Reservoir
from ..training.reading import reservoir_of
from .analytic import Moments, velocity_variances
from .diffusion import alpha_sigma

TIMES = 32
"""Times that are measured at, evenly spaced on the model's path."""
MOST_RUNS = 256
"""Runs of either kind that pairs are drawn from."""


def measure_moments(
    generator: WeightGenerator, zoo: Zoo, *, num_pairs: int, seed: int, num_times: int = TIMES
) -> Moments:
    """Variances of the generator's predictions by time and tensor, means over `num_pairs` pairs at each time.

    The plain form is measured on training runs. The extended one is on the second half of the held-out runs,
    which no evaluation may use any more: it takes the first half, as long as the generator keeps the moments.

    Raises:
        ValueError: fewer than two held-out runs.
    """
    first, end, hole = generator.origin.num_training_runs, zoo.header.num_runs, generator.origin.hole
    if end - first < 2:
        raise ValueError(
            f"zoo {zoo.path} has {end - first} held-out runs; expected at least two, to measure on and to "
            "evaluate on: hold out more when training"
        )
    second_half = first + (end - first + 1) // 2
    columns = generator.origin.columns
    training = reservoir_of(zoo, generator.coordinates, 0, first, MOST_RUNS, hole, columns)
    held_out = reservoir_of(zoo, generator.coordinates, second_half, end, MOST_RUNS, hole, columns)
    if not len(held_out):
        raise ValueError(
            f"zoo {zoo.path} has no finished runs from {second_half} on; finish it with `theta make`"
        )
    times = generator.model.times.sampling(num_times)[:-1].flip(0).float()
    rng = seeded(seed, 2)
    analytic, extended = [], []
    for t in times:
        analytic.append(_variances(generator, training, num_pairs, t, rng)[0])
        extended.append(_variances(generator, held_out, num_pairs, t, rng)[1])
    sizes = generator.coordinates.group.bincount()
    return Moments(times, torch.stack(analytic), torch.stack(extended), sizes, second_half)


def _variances(
    generator: WeightGenerator, reservoir: Reservoir, num_pairs: int, t: Tensor, rng: torch.Generator
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """(analytic, extended) variances at a time, means within each tensor."""
    pairs = generator.arrange(reservoir.sample(num_pairs, rng=rng), rng=rng)
    found = torch.zeros(4, generator.coordinates.Z)
    for part in zip(*(tensor.split(AT_ONCE) for tensor in pairs), strict=True):
        start, metric, target, prompt = Pairs(*part)
        u0 = generator.scaling.update(start, target)
        analytic, extended = velocity_variances(generator.denoiser(start, metric, prompt), u0, t, rng=rng)
        found += len(u0) / num_pairs * torch.stack([analytic, extended, u0.mean(0), u0.square().mean(0)])
    analytic, extended, mean, square = found
    group = generator.coordinates.group
    sums = torch.zeros(3, len(generator.coordinates.spec.names))
    sums.index_add_(1, group, torch.stack([analytic, extended, square - mean.square()]))
    analytic, extended, whole = sums / group.bincount()
    # x_0 given x_t cannot vary by less than nothing or by more than x_0 itself
    return torch.minimum(analytic.clamp_min(0), whole / alpha_sigma(t)[1] ** 2), extended
