"""Convolutional image classifiers: cifar-cnn-v0 as published, images-cnn-v0 for a user's own images."""

import copy
import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.func import functional_call

from ..losses import tailr_of_network
from ..nets import ConvNet
from ..spec import ParamSpec
from ..symmetry import Symmetry
from .base import Batch, Sampler, Task, Variation
from .data import ImageData, cifar10, image_folder
from .loops import stacked_gradients, stacked_loss, stacked_outputs
from .orders import labelled_batches, tailr_gamma
from .registry import register

EVALUATION_BLOCK = 64
"""Images per forward pass when networks are evaluated. Measured, CPU ms per network and 2,000 images, median
of 7 rounds, interleaved: blocks of 16 70, of 32 to 64 60 to 65, of 128 60 to 150, for their activations of
4 MiB are memory that may be returned to the system and cleared by it each time. Bfloat16 has 46 to 57, which
is not worth its rounding of the metrics."""
MICRO_BATCH = 64
"""Images per forward and backward pass in float32. Measured, CPU ms per network and step of 128 images,
median of 9 rounds, interleaved, on a core with AMX: whole batch 11.9, 64 11.1, 32 11.3, 16 13.2,
channels-last 13.7; bfloat16 whole batch 6.6, micro-batches of 32 8.9; vmap over 4 networks 12.3. On a core
without AMX: whole batch 15.3, 64 15.2, 32 15.8, 16 17.8, bfloat16 10.3, vmap 35."""
PADDING = 4
PATCHED_AT_ONCE = 500
"""Images whose patches are in memory together."""


class ConvClassifier(Task):
    """Classification by `ConvNet`s with cross-entropy or TaiLr, initialised as torch does.

    On a CPU each network has its own loop: stacked convolutions are slower (see `loops`). Elsewhere they are
    stacked. Metrics are always measured in float32.
    """

    metrics = ("loss", "error")
    answers_examples = True

    def __init__(self, data: ImageData, *, augment: bool):
        """`augment`: training images are mirrored with probability 1/2 and cropped with a border of zeros."""
        self.data, self.augment = data, augment
        channels = data.images["train"].shape[1]
        self.net = ConvNet(channels, data.num_classes)
        self.inputs = f"{data.formula}, (channels, height, width)"
        self.spec = ParamSpec.of_module(self.net)
        self.symmetry = Symmetry(self.spec, self.net.axes_to_perm())
        self.images = {split: torch.from_numpy(x) for split, x in data.images.items()}
        self.labels = {split: torch.from_numpy(y) for split, y in data.labels.items()}
        self.product_dtype = torch.float32
        per_channel = [torch.tensor(value).expand(channels).view(-1, 1, 1) for value in (data.mean, data.std)]
        self.mean, self.std = (data.full_scale * value for value in per_channel)

    def init(self, rngs: Sequence[torch.Generator]) -> Float[Tensor, "K D"]:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases, as torch.nn.Conv2d and Linear."""
        fan_in = {"conv1": 9 * self.mean.numel(), "conv2": 9 * 16, "fc": 32}
        bounds = [
            torch.full((part.stop - part.start,), fan_in[name.partition(".")[0]] ** -0.5)
            for name, part, _ in self.spec.slices()
        ]
        uniform = torch.stack([torch.rand(self.spec.D, generator=rng) for rng in rngs])
        return (2 * uniform - 1) * torch.cat(bounds)

    def sampler(
        self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
    ) -> Sampler:
        """Flips and crops have a stream of their own, drawn for each batch of each group."""
        gamma = tailr_gamma(variation)
        streams = [
            torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng))) for rng in rngs
        ]
        batches = labelled_batches(self.labels["train"], self.data.num_classes, rngs, batch_size, variation)

        def next_batch(params: Mapping[str, Tensor]) -> Batch:
            (index, y), device = next(batches), next(iter(params.values())).device
            images = self.images["train"][index]
            x = torch.stack(
                [
                    self._augmented(group, rng) if self.augment else self._normalise(group)
                    for group, rng in zip(images, streams, strict=True)
                ]
            )
            on_device = gamma.to(device) if gamma is not None else None
            return Batch(x.to(device), y.to(device), on_device)

        return next_batch

    def module(self) -> ConvNet:
        return copy.deepcopy(self.net)

    def examples(self, split: str, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        chosen = slice(None) if index is None else index
        return self._normalise(self.images[split][chosen]), self.labels[split][chosen]

    def num_examples(self, split: str) -> int:
        return len(self.labels[split])

    def outputs(
        self, theta: Float[Tensor, "K D"], x: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "K B classes"]:
        return stacked_outputs(self.net, self.spec.unflatten(theta), x, looped=theta.device.type == "cpu")

    def input_moments(self) -> dict[str, tuple[Float[Tensor, " I"], Float[Tensor, "I I"]]]:
        """Of the patches that the first convolution multiplies, borders of zeros among them."""
        conv = self.net.conv1
        total, squares, count = torch.zeros(()), torch.zeros(()), 0
        for block in self.images["train"].split(PATCHED_AT_ONCE):
            patches = F.unfold(self._normalise(block), conv.kernel_size, padding=1, stride=conv.stride)
            rows = patches.transpose(1, 2).flatten(0, 1)  # (images and places, I)
            total, squares = total + rows.sum(0).double(), squares + (rows.T @ rows).double()
            count += len(rows)
        mean = total / count
        return {"conv1": (mean.float(), (squares / count - mean.outer(mean)).float())}

    def loss(self, theta: Float[Tensor, "K D"], batch: Batch) -> Float[Tensor, " K"]:
        params = self.spec.unflatten(theta)
        return stacked_loss(self._loss, params, *batch, looped=theta.device.type == "cpu")

    def gradients(self, params: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        whole = self.product_dtype != torch.float32  # measured: better than micro-batches in bfloat16
        return stacked_gradients(
            functools.partial(self._loss, dtype=self.product_dtype),
            params,
            *batch,
            looped=batch.x.device.type == "cpu",
            micro_batch=None if whole else MICRO_BATCH,
        )

    @torch.no_grad()
    def evaluate(self, theta: Float[Tensor, "K D"], split: str) -> dict[str, Float[Tensor, " K"]]:
        networks = [self.spec.unflatten(row) for row in theta]
        loss, wrong = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))
        images, labels = self.images[split], self.labels[split]
        for block, y in zip(images.split(EVALUATION_BLOCK), labels.split(EVALUATION_BLOCK), strict=True):
            x, y = self._normalise(block).to(theta.device), y.to(theta.device)
            for k, network in enumerate(networks):
                logits = functional_call(self.net, network, (x,))  # (B, C)
                right = logits.gather(1, y.unsqueeze(1))
                loss[k] += (logits.logsumexp(1) - right.squeeze(1)).sum()
                # Right is only what beats all others: neither NaN nor a tie is.
                wrong[k] += ((logits >= right).sum(1) != 1).sum()
        return {"loss": loss / len(labels), "error": wrong / len(labels)}

    def with_products(self, precision: str, *, compile: bool = False) -> "ConvClassifier":
        """This task with convolutions of that precision, float32 or bfloat16, where it trains.

        Raises:
            ValueError: `compile`, which makes convolutions no faster (measured: slower).
        """
        if compile:
            raise ValueError(f"{self.id} gains nothing from compile; leave it out")
        task = copy.copy(self)
        task.product_dtype = getattr(torch, precision)
        return task

    def _loss(
        self,
        params: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        gamma: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """TaiLr where there is a gamma; 0 is cross-entropy."""
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            logits = functional_call(self.net, params, (x,))
        logits = logits.float()
        return F.cross_entropy(logits, y) if gamma is None else tailr_of_network(logits, y, gamma)

    def _normalise(self, images: UInt8[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        return images.float().sub_(self.mean).div_(self.std)

    def _augmented(self, images: UInt8[Tensor, "B C H W"], rng: torch.Generator) -> Float[Tensor, "B C H W"]:
        """Mirrored and cropped at random, by all nine offsets; the published code never draws the last."""
        size, (height, width) = len(images), images.shape[2:]
        mirrored = torch.rand(size, generator=rng) < 0.5
        rows, columns = (
            torch.randint(-PADDING, PADDING + 1, (size, 1), generator=rng) + torch.arange(n)
            for n in (height, width)
        )
        columns = torch.where(mirrored.unsqueeze(1), columns.flip(1), columns)
        inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & (
            (columns >= 0) & (columns < width)
        ).unsqueeze(1)
        pixel = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(0, width - 1).unsqueeze(1)
        index = pixel.view(size, 1, -1).expand(-1, images.shape[1], -1)  # (B, C, H W)
        moved = images.flatten(2).gather(2, index).view_as(images)
        return self._normalise(moved).mul_(inside.unsqueeze(1))  # the border is 0 after normalisation


register("cifar-cnn-v0", functools.partial(ConvClassifier, augment=True), load=cifar10)
register(
    "images-cnn-v0",
    functools.partial(ConvClassifier, augment=False),
    load=functools.partial(image_folder, per_channel=True),
)
