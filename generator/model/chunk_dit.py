"""ChunkDiT: tokens as published, stretches of a parameter, each with an encoder and a decoder of its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..coordinates import Coordinates
from .dit import Block, Denoiser, DiTConfig

# Shapes: B batch, T chunks, C model width, Z coordinates of a network.

CHUNK = 1000
"""Most parameters in a token, as published for MNIST."""


def chunk_sizes(parameters: tuple[int, ...], most: int) -> list[int]:
    """Chunks never cross parameters: pieces of `most` and a remainder (Peebles et al. 2022)."""
    return [min(most, size - done) for size in parameters for done in range(0, size, most)]


class ChunkDiT(Denoiser):
    """Denoiser over chunks within parameters, which it tells apart by learned positions.

    The chunks of the noised update come first, those of the start network after them, all with encoders of
    their own; decoders read the first ones. It knows nothing of permutations: its training pairs are permuted
    at random, or its networks brought into one order.
    """

    def __init__(self, coordinates: Coordinates, config: DiTConfig):
        super().__init__(config)
        width = config.width
        self.sizes = chunk_sizes(coordinates.reduced.spec.sizes, config.chunk or CHUNK)
        self.register_buffer("order", coordinates.order, persistent=False)
        self.register_buffer("back", coordinates.order.argsort(), persistent=False)
        self.positions = nn.Parameter(torch.zeros(2 * len(self.sizes), width))
        self.noised_in = nn.ModuleList(nn.Linear(size, width, bias=False) for size in self.sizes)
        self.start_in = nn.ModuleList(nn.Linear(size, width, bias=False) for size in self.sizes)
        self._build_trunk([Block(config) for _ in range(config.depth)])
        self.outs = nn.ModuleList(nn.Linear(width, size) for size in self.sizes)
        self._initialise(list(self.outs))

    def predict(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        order = self.get_buffer("order")
        noised, before = (z[:, order].split(self.sizes, 1) for z in (u_t, start))
        encoders, chunks = [*self.noised_in, *self.start_in], [*noised, *before]
        x = torch.stack([encode(chunk) for encode, chunk in zip(encoders, chunks, strict=True)], 1)
        x, condition = self._told(x + self.positions, t, metrics)  # (B, 2 T, C)
        for block in self.blocks:
            x = block(x, condition)  # (B, 2 T, C)
        x = self._last_norm(x[:, : len(self.sizes)], condition)
        out = [decode(x[:, i]) for i, decode in enumerate(self.outs)]
        return torch.cat(out, 1)[:, self.get_buffer("back")]  # (B, Z)
