"""The held-out loss: what training minimises, on pairs of runs never trained on, always the same ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo

from .artefact import WeightGenerator
from .diffusion import add_noise, training_times
from .dit import Denoiser
from .pairs import Pairs
from .reading import reservoir_of

BATCH = 256


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

        Raises:
            ValueError: there is no such run.
        """
        num_runs = zoo.header.num_runs
        reservoir = reservoir_of(zoo, generator.coordinates, first, num_runs, num_runs)
        if not len(reservoir):
            raise ValueError(
                f"zoo {zoo.path} has no finished held-out runs (ids from {first}); "
                "finish it with `theta make`"
            )
        pairs = reservoir.sample(num_pairs, rng=seeded(0))
        return cls(generator, generator.arrange(pairs, rng=seeded(1)), unit)

    @torch.no_grad()
    def __call__(self, model: Denoiser) -> float:
        rng, scaling, errors = seeded(2), self.generator.scaling, []
        ruler = scaling.update_scale / self.unit
        for pairs in self._batches():
            u0 = scaling.update(pairs.start, pairs.target)
            t = training_times(len(u0), rng=rng)
            metrics = torch.cat([scaling.metric(pairs.start_metric), scaling.metric(pairs.prompt)], -1)
            predicted = model(add_noise(u0, t, rng=rng), t, scaling.start(pairs.start), metrics)
            errors.append(((predicted.float() - u0) * ruler).square().mean(1))
        return float(torch.cat(errors).mean())

    def _batches(self) -> Iterable[Pairs]:
        return (Pairs(*parts) for parts in zip(*(each.split(BATCH) for each in self.pairs), strict=True))
