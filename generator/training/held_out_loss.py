"""The held-out loss: what training minimises, on pairs of runs never trained on, always the same ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo

from ..artefact import WeightGenerator
from ..model.dit import Denoiser
from ..sampling.diffusion import training_times
from .pairs import Pairs
from .reading import reservoir_of
from .train import errors

BATCH = 256
MOST_RUNS = 1024
"""Held-out runs that pairs are drawn from: all are in memory until they are, where the loss is measured; of a
training's workers that is rank 0 alone."""


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean squared error of predicted updates, in units of `unit`, over fixed pairs, times and noise.

    In units of their own, generators fitted on different training runs would measure by different rulers.
    """

    generator: WeightGenerator
    pairs: Pairs
    unit: Float[Tensor, " Z"]

    @classmethod
    def of_zoo(
        cls, zoo: Zoo, generator: WeightGenerator, first: int, num_pairs: int, unit: Float[Tensor, " Z"]
    ) -> "HeldOutLoss":
        """Pairs of the zoo's finished runs with ids from `first` on, drawn as those of training are.

        Of more than MOST_RUNS about so many are taken, as many of each shard.

        Raises:
            ValueError: there is no such run.
        """
        num_runs, columns = zoo.header.num_runs, generator.origin.columns
        most = min(num_runs, MOST_RUNS)
        reservoir = reservoir_of(zoo, generator.coordinates, first, num_runs, most, columns=columns)
        if not len(reservoir):
            raise ValueError(
                f"zoo {zoo.path} has no finished held-out runs (ids from {first}); "
                "finish it with `theta make`"
            )
        pairs = reservoir.sample(num_pairs, rng=seeded(0))
        return cls(generator, generator.arrange(pairs, rng=seeded(1)), unit)

    @torch.no_grad()
    def __call__(self, model: Denoiser) -> float:
        rng, scaling, found = seeded(2), self.generator.scaling, []
        ruler = scaling.update_scale / self.unit
        for pairs in self._batches():
            t = training_times(len(pairs.prompt), rng=rng)
            found.append((errors(model, pairs, t, scaling, rng) * ruler).square().mean(1))
        return float(torch.cat(found).mean())

    def _batches(self) -> Iterable[Pairs]:
        return (Pairs(*parts) for parts in zip(*(each.split(BATCH) for each in self.pairs), strict=True))
