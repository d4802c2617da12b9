"""WeightDiT: a diffusion transformer over the units of a network, equivariant to their permutation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .diffusion import timesteps, training_times
from .tokens import NeuronTokens

# Shapes: B batch, n units, T = n + 1 tokens, C model width, Z coordinates of a network.

TokensName = Literal["units", "chunks", "canonical", "gpt"]


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Kind and size of the transformer."""

    tokens: TokensName = "units"
    """What a token is. units: a hidden unit, equivariant to their order, matrices between hidden layers as
    features of pairs. chunks: a stretch of a parameter (Peebles et al. 2022), units shuffled at random in
    training. canonical: chunks of networks whose units are brought into the order of a reference network.
    gpt: the published transformer itself, to compare with, its schedule and its one scale for all parameters
    included."""
    chunk: int | None = None
    """Most parameters in a token of chunks; default 1000. Not for units."""

    width: int = 128
    """Features of a token."""
    depth: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads."""
    mlp_ratio: int = 4
    """Hidden width of a block's MLP over its width."""
    base_width: int | None = None
    """The width that learning rate, weight decay and initial sizes are meant for; those of a model of another
    width are derived from them (muP). Default: meant for the width it has."""

    def __post_init__(self) -> None:
        if self.chunk is not None and (self.tokens == "units" or self.chunk < 1):
            raise ValueError(
                f"chunk is {self.chunk} with tokens {self.tokens!r}; expected at least 1, and only with "
                "chunks, canonical or gpt"
            )
        for name in ("width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width is {self.width}; expected an even multiple of heads = {self.heads}")
        head = self.width // self.heads
        if self.base_width is not None and (self.base_width < 2 or self.base_width % head):
            raise ValueError(
                f"base_width is {self.base_width} with heads of width {head}; expected a multiple of that: "
                "heads keep their width, give more --heads to a wider model"
            )

    def at_base(self) -> "DiTConfig":
        """The same model at its base width, with heads of the same width."""
        width = self.base_width or self.width
        return replace(self, width=width, heads=width * self.heads // self.width)


class ScalarEmbedding(nn.Module):
    """Fourier features of standardised scalars, (B, S) -> (B, C).

    The frequencies are few and low, so that near values have near embeddings.
    """

    def __init__(self, num_scalars: int, width: int, num_frequencies: int = 7):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, num_frequencies - 2), persistent=False)
        self.mlp = nn.Sequential(
            nn.Linear(num_scalars * (2 * num_frequencies + 1), width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, scalars: Tensor) -> Tensor:
        angle = (scalars.unsqueeze(-1) * self.get_buffer("frequencies")).flatten(1)
        return self.mlp(torch.cat([scalars, angle.sin(), angle.cos()], -1))


class Block(nn.Module):
    """Attention and MLP, modulated by the condition (adaLN-Zero, Peebles and Xie 2023)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(),
            nn.Linear(config.mlp_ratio * width, width),
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        x = torch.addcmul(x, gate1, self.proj(self.attend(torch.addcmul(shift1, self.norm1(x), 1 + scale1))))
        h = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp(h))

    def attend(self, h: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, heads, T, C / heads)
        # Plain products: on so few tokens a fused kernel is no gain; its bfloat16 backward is slow on CPU.
        scores = q @ k.mT * q.shape[-1] ** -0.5  # (B, heads, T, T)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # (B, T, C)


class Denoiser(nn.Module, ABC):
    """Of scaled updates: (u_t, t, start, metrics) -> the clean update u_0.

    The start network is the global residual: the network made is start + update, and the output layers start
    at zero, so that an untrained model returns the start network itself. What a token is, a subclass says.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.lr_scales: dict[str, float] = {}
        """Of parameters whose learning rate is not the optimizer's own: what it is multiplied by."""

    @abstractmethod
    def forward(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        """
        Args:
            u_t: noised scaled update.
            t: diffusion time in [0, 1].
            start: scaled start network.
            metrics: scaled metric of the start network and prompt, two features each, of one metric; of
                several, `Scaling.condition`.
        """

    def training_times(self, num: int, *, rng: torch.Generator) -> Float[Tensor, " num"]:
        """Times at which it is trained."""
        return training_times(num, rng=rng)

    def timesteps(self, num: int) -> Float[Tensor, " {num}+1"]:
        """Times along which it is sampled in `num` steps, from noise down to 0."""
        return timesteps(num)

    def condition_on(self, num_features: int) -> None:
        """Make a fresh model one that sees so many features of metrics, of several metrics more than 4."""
        self.metrics = ScalarEmbedding(num_features, self.config.width)
        _xavier(self.metrics)

    def _build_trunk(self, blocks: Sequence[nn.Module]) -> None:
        """Everything between the first and the last layer; subclasses call it between making these."""
        width = self.config.width
        self.time = ScalarEmbedding(1, width)
        self.metrics = ScalarEmbedding(4, width)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)

    def _initialise(self, outputs: Sequence[nn.Module | None]) -> None:
        _xavier(self)
        zeroed = [self.modulation, *outputs, *[block.modulation for block in self.blocks]]
        for layer in zeroed:  # adaLN-Zero: every block starts as the identity, the output as "no update"
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)

    def _condition(self, t: Tensor, metrics: Tensor) -> Tensor:
        return F.silu(self.time(4 * math.pi * t.unsqueeze(-1)) + self.metrics(metrics))  # (B, C)

    def _last_norm(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


def _xavier(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class WeightDiT(Denoiser):
    """Denoiser for networks of at most one hidden layer: a token is one unit, noised update and start network
    side by side, and one more is the rest."""

    def __init__(self, tokens: NeuronTokens, config: DiTConfig):
        super().__init__(config)
        (layer,) = tokens.layers or (None,)
        self.tokens, width, rest = tokens, config.width, tokens.rest_width
        self.unit_in = nn.Linear(2 * layer.width, width) if layer else None
        self.rest_in = nn.Linear(2 * rest, width) if rest else None
        self._build_trunk([Block(config) for _ in range(config.depth)])
        self.unit_out = nn.Linear(width, layer.width) if layer else None
        self.rest_out = nn.Linear(width, rest) if rest else None
        self._initialise([self.unit_out, self.rest_out])

    def forward(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        condition = self._condition(t, metrics)
        *units, rest = self.tokens.parts
        n = self.tokens.num_units
        both = torch.stack([u_t, start], 1)  # (B, 2, Z)
        x = []
        if self.unit_in is not None:
            x.append(self.unit_in(side_by_side(both[:, :, units[0]], n)))
        if self.rest_in is not None:
            x.append(self.rest_in(both[:, :, rest].flatten(1)).unsqueeze(1))
        x = torch.cat(x, 1)  # (B, T, C)
        for block in self.blocks:
            x = block(x, condition)  # (B, T, C)
        x = self._last_norm(x, condition)
        out = []
        if self.unit_out is not None:
            out.append(self.unit_out(x[:, :n]).flatten(1))
        if self.rest_out is not None:
            out.append(self.rest_out(x[:, -1]))
        return torch.cat(out, 1)  # (B, Z)


def side_by_side(both: Float[Tensor, "B 2 nw"], num_units: int) -> Float[Tensor, "B n w2"]:
    """Of every unit, the features in both networks."""
    return both.unflatten(2, (num_units, -1)).movedim(1, 2).flatten(2)
