"""quadratic-v0: a problem with exact answers, for tests and for looking at the machinery."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..schema import OF_LABELS
from ..spec import ParamSpec
from ..symmetry import Symmetry
from .base import Batch, Sampler, Task, Variation
from .registry import register


class Quadratic(Task):
    """loss(w) = 1/2 sum_d a_d (w_d - c)^2 with noise-free gradients a_d (w_d - c): SGD has a closed form.

    The optimum c is 0 on the training and validation splits; on the test split it is 0.1 in every
    coordinate, so that a mix-up of the two columns shows.
    """

    curvature = torch.linspace(0.1, 1.0, 8)
    unused = tuple(OF_LABELS)

    def __init__(self) -> None:
        self.spec = ParamSpec(("w",), ((8,),))
        self.symmetry = Symmetry(self.spec, {"w": (None,)})

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        return torch.stack([torch.randn(self.spec.D, generator=rng) for rng in rngs])

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        del batch_size  # there is no noise to average out
        if variation is not None and not variation.is_plain:
            raise ValueError(f"{self.id} has neither labels nor data: no label_noise, data_fraction or tailr")
        empty = torch.zeros(len(rngs), 0)
        return lambda params: Batch(empty, empty)

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        return self._loss(theta, 0.0)

    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        return {"loss": self._loss(theta, 0.1 if split == "test" else 0.0)}

    def _loss(self, theta: Tensor, optimum: float) -> Tensor:
        return 0.5 * ((theta - optimum).square() * self.curvature.to(theta)).sum(-1)


register("quadratic-v0", Quadratic)
