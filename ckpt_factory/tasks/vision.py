"""Image classifiers: stacks of small MLPs with hand-written gradients, digits-mlp-v0 and mnist-mlp-v0."""

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import stacked
from ..losses import cross_entropy, tailr
from ..nets import MLP
from ..spec import ParamSpec
from ..symmetry import Symmetry
from .base import Batch, Sampler, Task, Variation
from .data import ImageData, digits, image_folder, mnist
from .orders import labelled_batches, tailr_gamma
from .registry import register

EVALUATION_CHUNK = 1000
"""Images per product when a stack is evaluated: activations of a chunk stay in cache (measured best)."""

PREPARED_BYTES = 2**29
"""Training splits up to this size are normalised once per worker; larger ones row by row in the gather."""


class MLPClassifier(Task):
    """Cross-entropy classification by ReLU MLPs with layers fc1, fc2, ..., initialised as torch does."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "error")
    answers_examples = True

    def __init__(self, data: ImageData, sizes: tuple[int, ...]):
        self.data = data
        self.sizes = sizes
        self.inputs = f"{data.formula}, flattened row by row"
        net = MLP(sizes)
        self.spec = ParamSpec.of_module(net)
        self.symmetry = Symmetry(self.spec, net.axes_to_perm())
        self.images = {split: torch.from_numpy(x).flatten(1) for split, x in data.images.items()}
        self.labels = {split: torch.from_numpy(y) for split, y in data.labels.items()}
        self.product_dtype, self.compile = torch.float32, False
        self.prepared: dict[tuple[str, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"prepared": {}}

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, as torch.nn.Linear."""
        bound = torch.cat(
            [torch.full((fan_out * (fan_in + 1),), fan_in**-0.5) for fan_in, fan_out in pairwise(self.sizes)]
        )
        uniform = torch.stack([torch.rand(self.spec.D, generator=rng) for rng in rngs])
        return (2 * uniform - 1) * bound

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        gamma = tailr_gamma(variation)
        batches = labelled_batches(self.labels["train"], self.sizes[-1], rngs, batch_size, variation)

        def next_batch(params: Mapping[str, Tensor]) -> Batch:
            (index, y), device = next(batches), next(iter(params.values())).device
            x = self._rows("train", index.flatten(), device)
            on_device = gamma.to(device) if gamma is not None else None
            return Batch(x.view(*index.shape, -1), y.to(device), on_device)

        return next_batch

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        logits = stacked.forward(self._params(theta), batch.x, torch.float32)[-1]
        labels = batch.y.repeat_interleave(len(theta) // len(batch.y), 0)
        if batch.gamma is None:
            return cross_entropy(logits, labels).mean(-1)
        return tailr(logits, labels, batch.gamma).mean(-1)

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        function = stacked.compiled(stacked.gradients) if self.compile else stacked.gradients
        found = function([params[name] for name in self.spec.names], *batch, self.product_dtype)
        return dict(zip(self.spec.names, found, strict=True))

    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        params = [value.contiguous() for value in self._params(theta)]
        function = stacked.compiled(stacked.metrics) if self.compile else stacked.metrics
        loss, wrong = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
        x, labels = self._whole(split, theta.device)
        for images, y in zip(x.split(EVALUATION_CHUNK), labels.split(EVALUATION_CHUNK), strict=True):
            losses, errors = function(params, images.unsqueeze(0), y, self.product_dtype)
            loss += losses
            wrong += errors
        return {"loss": loss / len(labels), "error": wrong / len(labels)}

    def predict(
        self, theta: Float[Tensor, "K D"], split: str
    ) -> tuple[Float[Tensor, "K C B"], Int[Tensor, " B"]]:
        """Logits of all images of a split, and their labels."""
        x, labels = self._whole(split, theta.device)
        chunks = [
            stacked.forward(self._params(theta), part.unsqueeze(0), self.product_dtype)[-1]
            for part in x.split(EVALUATION_CHUNK)
        ]
        return torch.cat(chunks, -1), labels

    def with_products(self, precision: str, *, compile: bool = False) -> "MLPClassifier":
        task = copy.copy(self)
        task.product_dtype, task.compile = getattr(torch, precision), compile
        task.prepared = self.prepared  # copying goes through __getstate__
        return task

    def module(self) -> MLP:
        return MLP(self.sizes)

    def examples(
        self, split: str, index: Int[Tensor, " N"] | None = None
    ) -> tuple[Tensor, Int[Tensor, " N"]]:
        chosen = slice(None) if index is None else index
        return self._normalise(self.images[split][chosen], torch.float32), self.labels[split][chosen]

    def num_examples(self, split: str) -> int:
        return len(self.labels[split])

    def outputs(self, theta: Float[Tensor, "K D"], x: Float[Tensor, "B I"]) -> Float[Tensor, "K B C"]:
        return stacked.forward(self._params(theta), x.unsqueeze(0), torch.float32)[-1].transpose(1, 2)

    def input_moments(self) -> dict[str, tuple[Float[Tensor, " I"], Float[Tensor, "I I"]]]:
        x = self._normalise(self.images["train"], torch.float32).double()
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        return {"fc1": (mean.float(), covariance.float())}

    def _params(self, theta: Tensor) -> list[Tensor]:
        return list(self.spec.unflatten(theta).values())

    def _rows(self, split: str, index: Tensor, device: torch.device) -> Tensor:
        """Some images of a split, normalised: read from the prepared ones where memory allows."""
        images = self.images[split]
        if images.numel() * self.product_dtype.itemsize > PREPARED_BYTES:
            return self._normalise(images.index_select(0, index).to(device))
        return self._whole(split, device)[0].index_select(0, index.to(device))

    def _whole(self, split: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """All images of a split in the dtype of products, and their labels: prepared once."""
        key = (split, device, self.product_dtype)
        if key not in self.prepared:
            images = self._normalise(self.images[split].to(device), self.product_dtype)
            self.prepared[key] = images, self.labels[split].to(device)
        return self.prepared[key]

    def _normalise(self, images: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        mean, std = self.data.moments()
        scaled = images.float().mul_(1 / (self.data.full_scale * std)).sub_(mean / std)
        return scaled.to(dtype or self.product_dtype)


def _digits_mlp(data: ImageData) -> MLPClassifier:
    return MLPClassifier(data, (64, 16, 10))


def _mnist_mlp(data: ImageData) -> MLPClassifier:
    return MLPClassifier(data, (784, 10, 10))


def _images_mlp(data: ImageData) -> MLPClassifier:
    """One hidden layer of 32 units, sized by the images."""
    channels, height, width = data.images["train"].shape[1:]
    task = MLPClassifier(data, (channels * height * width, 32, data.num_classes))
    if channels > 1:
        task.inputs = f"{data.formula}, flattened channel by channel, row by row"
    return task


register("digits-mlp-v0", _digits_mlp, load=digits)
register("mnist-mlp-v0", _mnist_mlp, load=mnist)
register("images-mlp-v0", _images_mlp, load=image_folder)
