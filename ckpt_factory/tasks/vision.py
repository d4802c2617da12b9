"""Image classifiers: stacks of small MLPs with hand-written gradients, digits-mlp-v0 and mnist-mlp-v0."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..nets import MLP
from ..spec import ParamSpec
from ..symmetry import Symmetry
from .base import Batch, Sampler, Task
from .data import ImageData, digits, image_folder, mnist
from .orders import mini_batches
from .registry import register

EVALUATION_CHUNK = 1000
"""Images per product when a stack is evaluated: activations of a chunk stay in cache (measured best)."""


class MLPClassifier(Task):
    """Cross-entropy classification by ReLU MLPs with layers fc1, fc2, ..., initialised as torch does."""

    metrics: ClassVar[tuple[str, ...]] = ("loss", "error")

    def __init__(self, data: ImageData, sizes: tuple[int, ...]):
        self.data = data
        self.sizes = sizes
        self.inputs = f"{data.formula}, flattened row by row"
        net = MLP(sizes)
        self.spec = ParamSpec.of_module(net)
        self.symmetry = Symmetry(self.spec, net.axes_to_perm())
        self.images = {split: torch.from_numpy(x).flatten(1) for split, x in data.images.items()}
        self.labels = {split: torch.from_numpy(y) for split, y in data.labels.items()}

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, as torch.nn.Linear."""
        bound = torch.cat(
            [torch.full((fan_out * (fan_in + 1),), fan_in**-0.5) for fan_in, fan_out in pairwise(self.sizes)]
        )
        uniform = torch.stack([torch.rand(self.spec.D, generator=rng) for rng in rngs])
        return (2 * uniform - 1) * bound

    def sampler(self, rngs: Sequence[torch.Generator], batch_size: int) -> Sampler:
        indices = mini_batches(rngs, len(self.labels["train"]), batch_size)

        def next_batch(theta: Tensor) -> Batch:
            return Batch(*self._gather("train", next(indices).to(theta.device)))

        return next_batch

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        logits = self._forward(self.spec.unflatten(theta), batch.x)[-1]
        labels = _per_run(batch.y, len(theta))
        return -logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1).mean(-1)

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Back-propagation by hand: the first layer's weight gradient is one product per group of runs."""
        *hidden, logits = self._forward(params, batch.x)
        num_runs, _, batch_size = logits.shape
        labels = _per_run(batch.y, num_runs).unsqueeze(1)
        delta = logits.softmax(1)  # (K, C, B): softmax minus one-hot, over B
        delta.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=delta.dtype)).div_(batch_size)
        gradients: dict[str, Tensor] = {}
        for layer in range(len(self.sizes) - 1, 1, -1):
            below = hidden[layer - 2]  # (K, H, B)
            gradients[f"fc{layer}.weight"] = delta.bmm(below.transpose(1, 2))
            gradients[f"fc{layer}.bias"] = delta.sum(-1)
            delta = params[f"fc{layer}.weight"].transpose(1, 2).bmm(delta).mul_(below > 0)
        grouped = delta.reshape(len(batch.x), -1, batch_size)  # (G, K/G * H, B)
        gradients["fc1.weight"] = grouped.bmm(batch.x).view(num_runs, *params["fc1.weight"].shape[1:])
        gradients["fc1.bias"] = delta.sum(-1)
        return gradients

    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        params = {name: value.contiguous() for name, value in self.spec.unflatten(theta).items()}
        loss, wrong = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
        num_images = len(self.labels[split])
        for part in torch.arange(num_images).split(EVALUATION_CHUNK):
            x, y = self._gather(split, part.unsqueeze(0).to(theta.device))
            logits = self._forward(params, x)[-1]  # (K, C, B)
            labels = _per_run(y, len(theta))
            right = logits.gather(1, labels.unsqueeze(1))
            loss += (logits.logsumexp(1) - right.squeeze(1)).sum(-1)
            # Right is only what beats all others: neither NaN nor a tie, or a network of zeros had no error.
            wrong += ((logits >= right).sum(1) != 1).sum(-1)
        return {"loss": loss / num_images, "error": wrong / num_images}

    def input_moments(self) -> dict[str, tuple[Float[Tensor, " I"], Float[Tensor, "I I"]]]:
        x = self._normalise(self.images["train"]).double()
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / len(x)
        return {"fc1": (mean.float(), covariance.float())}

    def _gather(self, split: str, index: Int[Tensor, "G B"]) -> tuple[Tensor, Tensor]:
        images, labels = self.images[split].to(index.device), self.labels[split].to(index.device)
        return self._normalise(images[index]), labels[index]

    def _normalise(self, images: Tensor) -> Tensor:
        mean, std = self.data.moments()
        return images.float().div_(self.data.full_scale * std).sub_(mean / std)

    def _forward(self, params: Mapping[str, Tensor], x: Tensor) -> list[Tensor]:
        """Activations of every layer, (K, H, B) each, logits (K, C, B) last; x is (G, B, I).

        The first layer of all runs of a group is ONE product: their rows stand below one another.
        """
        weight, bias = params["fc1.weight"], params["fc1.bias"]
        num_runs, num_units, _ = weight.shape
        grouped = torch.baddbmm(
            bias.reshape(len(x), -1, 1), weight.reshape(len(x), -1, weight.shape[-1]), x.transpose(1, 2)
        )
        h = grouped.view(num_runs, num_units, -1)
        activations = []
        for layer in range(2, len(self.sizes)):
            h = h.relu()
            activations.append(h)
            h = torch.baddbmm(params[f"fc{layer}.bias"].unsqueeze(-1), params[f"fc{layer}.weight"], h)
        return [*activations, h]


def _per_run(labels: Int[Tensor, "G B"], num_runs: int) -> Int[Tensor, "K B"]:
    return labels.repeat_interleave(num_runs // len(labels), 0)


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
