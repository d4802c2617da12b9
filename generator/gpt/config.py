"""GptConfig: how the published transformer cuts a network into tokens, its size, its presets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, get_args

SplitPolicy = Literal["chunk", "chunk_within_input", "chunk_within_layer", "layer_by_layer"]


def token_sizes(inputs: Sequence[Sequence[int]], policy: SplitPolicy, most: int) -> tuple[int, ...]:
    """Widths of the tokens that inputs are cut into, one input after the other.

    Args:
        inputs: of each input, the sizes of its layers, which are tensors flattened row-major.
        policy: what no token crosses: nothing (chunk), the border of an input, or of a layer; with
            layer_by_layer every layer is one token, whatever its size.
        most: widest token; a stretch is cut into pieces of it and a remainder.
    """
    layers = [size for sizes in inputs for size in sizes]
    if policy == "layer_by_layer":
        return tuple(layers)
    stretches = {
        "chunk": [sum(layers)],
        "chunk_within_input": [sum(sizes) for sizes in inputs],
        "chunk_within_layer": layers,
    }[policy]
    return tuple(min(most, size - done) for size in stretches for done in range(0, size, most))


@dataclass(frozen=True, kw_only=True)
class GptConfig:
    """The published transformer of networks with tensors of these sizes."""

    sizes: tuple[int, ...]
    """Elements of each tensor of a network, in state_dict order."""
    split: SplitPolicy = "chunk_within_layer"
    """What no token crosses, see `token_sizes`."""
    chunk: int = 1000
    """Most numbers in a token."""
    width: int = 256
    """Features of a token."""
    depth: int = 6
    """Transformer blocks."""
    heads: int = 8
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    encoder_depth: int = 1
    """Linear layers of every token's encoder."""
    decoder_depth: int = 1
    """Linear layers of every token's decoder."""
    absolute_conditioning: bool = True
    """Whether target and start metric have a token each, besides that of their difference."""
    num_frequencies: int = 128
    """Of a scalar's embedding, sines and cosines each."""
    max_freq_log2: int = 14
    """The highest frequency is 2 to this power; the lowest is 1."""

    def __post_init__(self) -> None:
        if self.split not in get_args(SplitPolicy):
            raise ValueError(f"split is {self.split!r}; expected one of {', '.join(get_args(SplitPolicy))}")
        names = ("chunk", "width", "depth", "heads", "mlp_ratio", "encoder_depth", "decoder_depth")
        for name in (*names, "num_frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes is {self.sizes}; expected the element counts of a network's tensors")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}; expected a multiple of heads = {self.heads}")

    @property
    def D(self) -> int:
        """Parameters of a network."""
        return sum(self.sizes)

    @property
    def scalar_width(self) -> int:
        """Numbers in the embedding of a scalar: its sines, its cosines, itself."""
        return 2 * self.num_frequencies + 1

    @property
    def num_scalars(self) -> int:
        """Timestep and difference of the metrics, and the metrics themselves."""
        return 4 if self.absolute_conditioning else 2

    @cached_property
    def input_tokens(self) -> tuple[int, ...]:
        """Widths: of the noised network, the start network and the embedded scalars, a token each.

        Only where tokens cross inputs, scalars are cut like all else.
        """
        scalars = (self.scalar_width,) * self.num_scalars
        if self.split == "chunk":
            return token_sizes([self.sizes, self.sizes, scalars], self.split, self.chunk)
        return token_sizes([self.sizes, self.sizes], self.split, self.chunk) + scalars

    @cached_property
    def output_tokens(self) -> tuple[int, ...]:
        return token_sizes([self.sizes], self.split, self.chunk)


def _sizes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(prod, shapes))


MNIST = _sizes((10, 784), (10,), (10, 10), (10,))
CIFAR10 = _sizes((16, 3, 3, 3), (32, 16, 3, 3), (10, 32), (10,))
CARTPOLE = _sizes((1,), (32, 4), (32,), (32, 32), (32,), (1, 32), (1,))
DIGITS = _sizes((16, 64), (16,), (10, 16), (10,))
"""Sizes of the tensors of the networks 784-10-10, 3-16-32-10 (convolutions), 4-32-32-1 and 64-16-10."""

_MNIST = GptConfig(sizes=MNIST, width=1536, depth=12, heads=16)
_CIFAR10 = GptConfig(sizes=CIFAR10, chunk=576, width=2048, depth=12, heads=16)
_CARTPOLE = GptConfig(sizes=CARTPOLE, split="layer_by_layer", chunk=2048, width=1536, depth=12, heads=12)

PRESETS = {
    "mnist_loss": _MNIST,
    "mnist_error": _MNIST,
    "cifar10_loss": _CIFAR10,
    "cifar10_error": _CIFAR10,
    "cartpole": _CARTPOLE,
    "mnist_small": GptConfig(sizes=MNIST),
    "cifar10_small": GptConfig(sizes=CIFAR10, chunk=576),
    "cartpole_small": GptConfig(sizes=CARTPOLE, split="layer_by_layer"),
    "digits": GptConfig(sizes=DIGITS),
    "digits_small": GptConfig(sizes=DIGITS, width=128, depth=4, heads=4),
}
"""The five published configurations, and small ones."""
