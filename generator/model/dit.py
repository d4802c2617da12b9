"""WeightDiT: a diffusion transformer over the units of a network, equivariant to their permutation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..sampling.diffusion import PathName, Times
from .prediction import PredictionName, clean_update
from .tokens import NeuronTokens

# Shapes: B batch, n units, T = n + 1 tokens, C model width, Z coordinates of a network.

TokensName = Literal["units", "chunks", "canonical", "gpt"]
ConditionName = Literal["adaln", "token"]
SymmetryName = Literal["shuffled", "none"]


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Kind and size of the transformer, and of its diffusion."""

    tokens: TokensName = "units"
    """What a token is. units: a hidden unit, equivariant to their order, matrices between hidden layers as
    features of pairs. chunks: a stretch of a parameter (Peebles et al. 2022), units shuffled at random in
    training. canonical: chunks of networks whose units are brought into the order of a reference network.
    gpt: the published transformer itself, to compare with."""
    chunk: int | None = None
    """Most parameters in a token of chunks; default 1000. Not for units."""
    symmetry: SymmetryName = "shuffled"
    """What tokens chunks and gpt learn of the symmetry of hidden units: their order is shuffled at random in
    training, or left as it is (none). Units and canonical chunks know of it by themselves."""

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
    condition: ConditionName | None = None
    """How it is told time and metrics: they modulate every block (adaln), or are tokens among the others
    (token). Default: adaln, with gpt token, which knows no other."""
    prediction: PredictionName = "clean"
    """What the output layers predict: the clean update, the velocity of the path (v), or the noise. Sampling
    is the same; the loss is the squared error of what is predicted, unless --weighting says otherwise."""
    path: PathName | None = None
    """From data to noise: cosine, linear (the published 1,000 steps) or flow (straight, of flow matching).
    All are one path in other times: this decides at which times it is trained and sampled. Default: cosine,
    with gpt linear."""
    time_shift: float | None = None
    """Moves training times towards noise, t -> shift t / (1 + (shift - 1) t). Default: 4, on the linear path
    1, which is uniform."""
    prompt_dropout: float = 0.0
    """Share of training examples without a prompt, so that it can be sampled with --guidance. Not for gpt."""

    def __post_init__(self) -> None:
        if self.chunk is not None and (self.tokens == "units" or self.chunk < 1):
            raise ValueError(
                f"chunk is {self.chunk} with tokens {self.tokens!r}; expected at least 1, and only with "
                "chunks, canonical or gpt"
            )
        for name in ("width", "depth", "heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        self._check_diffusion()
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width is {self.width}; expected an even multiple of heads = {self.heads}")
        head = self.width // self.heads
        if self.base_width is not None and (self.base_width < 2 or self.base_width % head):
            raise ValueError(
                f"base_width is {self.base_width} with heads of width {head}; expected a multiple of that: "
                "heads keep their width, give more --heads to a wider model"
            )

    def _check_diffusion(self) -> None:
        gpt = self.tokens == "gpt"
        if self.symmetry == "none" and self.tokens not in ("chunks", "gpt"):
            raise ValueError(
                f"symmetry is 'none' with tokens {self.tokens!r}, which know of it; expected it "
                "only with chunks or gpt"
            )
        if gpt and self.condition == "adaln":
            raise ValueError(
                "condition is 'adaln' with tokens 'gpt', whose condition is tokens; take --tokens chunks for "
                "adaln"
            )
        if self.time_shift is not None and not 0 < self.time_shift < math.inf:
            raise ValueError(f"time_shift is {self.time_shift}; expected a positive, finite number, like 4")
        if not 0 <= self.prompt_dropout < 1 or (gpt and self.prompt_dropout):
            raise ValueError(
                f"prompt_dropout is {self.prompt_dropout} with tokens {self.tokens!r}; expected a share from "
                "0 to below 1, and 0 with gpt"
            )

    @property
    def conditioned_by(self) -> ConditionName:
        """`condition`, or its default."""
        return self.condition or ("token" if self.tokens == "gpt" else "adaln")

    @property
    def times(self) -> Times:
        """When it is trained and sampled: `path` and `time_shift`, or their defaults."""
        path = self.path or ("linear" if self.tokens == "gpt" else "cosine")
        return Times(path, self.time_shift or (1.0 if path == "linear" else 4.0))

    def resolved(self) -> "DiTConfig":
        """With defaults said, as it is stored: they may be others one day."""
        times = self.times
        return replace(self, condition=self.conditioned_by, path=times.path, time_shift=times.shift)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "DiTConfig":
        """From what is stored; what was not stored before it could be chosen was the same for all."""
        gpt = fields.get("tokens") == "gpt"
        before = {
            "condition": "token" if gpt else "adaln",
            "prediction": "clean",
            "path": "linear" if gpt else "cosine",
            "time_shift": 1.0 if gpt else 4.0,
        }
        return cls(**{**before, **fields})

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


class Constant(nn.Module):
    """In the place of a modulation: numbers that are learned, whatever the condition, (B, C) -> (1, N).

    With shifts and scales at 0 and gates at 1 a block is a plain one.
    """

    def __init__(self, parts: Sequence[float], width: int):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(parts).repeat_interleave(width))

    def forward(self, condition: Tensor) -> Tensor:
        return self.value.to(condition).unsqueeze(0)


def modulation(config: DiTConfig, parts: Sequence[float]) -> nn.Module:
    """(B, C) -> a width of numbers for each part; which parts they are without a condition is given."""
    if config.conditioned_by == "token":
        return Constant(parts, config.width)
    return nn.Linear(config.width, len(parts) * config.width)


BLOCK_PARTS = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
"""Shift, scale and gate of attention and of the MLP."""


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
        self.modulation = modulation(config, BLOCK_PARTS)

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
    at zero, so that an untrained model that predicts clean updates returns the start network itself; of one
    that predicts v or noise the update is a multiple of u_t. What a token is, a subclass says.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config.resolved()
        self.times = config.times
        self.lr_scales: dict[str, float] = {}
        """Of parameters whose learning rate is not the optimizer's own: what it is multiplied by."""

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
            metrics: scaled metric of the start network and prompt, two features each, of one metric, NaN for
                no prompt; of several, `Scaling.condition`.
        """
        out = self.predict(u_t, t, start, metrics)
        return clean_update(self.config.prediction, self.times.path, out, u_t, t)

    @abstractmethod
    def predict(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        """What the output layers say: the clean update, the velocity, or the noise."""

    def condition_on(self, num_features: int) -> None:
        """Make a fresh model one that sees so many features of metrics, of several metrics more than 4."""
        self.metrics = ScalarEmbedding(num_features, self.config.width)
        _xavier(self.metrics)

    def initial_std(self, layer: nn.Linear) -> float:
        """Of the weights that a layer of its shape begins with, unless these are zeros."""
        return (2 / (layer.out_features + layer.in_features)) ** 0.5  # Xavier's, see `_xavier`

    def _build_trunk(self, blocks: Sequence[nn.Module]) -> None:
        """Everything between the first and the last layer; subclasses call it between making these."""
        width = self.config.width
        self.time = ScalarEmbedding(1, width)
        self.metrics = ScalarEmbedding(4, width)
        if self.config.prompt_dropout:
            self.unprompted = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = modulation(self.config, (0.0, 0.0))

    def _initialise(self, outputs: Sequence[nn.Module | None]) -> None:
        _xavier(self)
        zeroed = [self.modulation, *outputs, *[block.modulation for block in self.blocks]]
        for layer in zeroed:  # adaLN-Zero: every block starts as the identity, the output as "no update"
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)

    def _told(self, x: Tensor, t: Tensor, metrics: Tensor) -> tuple[Tensor, Tensor]:
        """(the tokens x, and two of the condition behind them if that is how it is told; the condition)"""
        time = self.time(4 * math.pi * t.unsqueeze(-1))
        metric = self._embedded(metrics) if self.config.prompt_dropout else self.metrics(metrics)
        if self.config.conditioned_by == "token":
            x = torch.cat([x, time.unsqueeze(1), metric.unsqueeze(1)], 1)
        return x, F.silu(time + metric)

    def _embedded(self, metrics: Tensor) -> Tensor:
        missing = metrics[:, 2:3].isnan()
        return self.metrics(metrics.nan_to_num()) + missing * self.unprompted

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

    def predict(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        *units, rest = self.tokens.parts
        n = self.tokens.num_units
        both = torch.stack([u_t, start], 1)  # (B, 2, Z)
        x = []
        if self.unit_in is not None:
            x.append(self.unit_in(side_by_side(both[:, :, units[0]], n)))
        if self.rest_in is not None:
            x.append(self.rest_in(both[:, :, rest].flatten(1)).unsqueeze(1))
        x, condition = self._told(torch.cat(x, 1), t, metrics)  # (B, T, C)
        for block in self.blocks:
            x = block(x, condition)  # (B, T, C)
        x = self._last_norm(x, condition)
        out = []
        if self.unit_out is not None:
            out.append(self.unit_out(x[:, :n]).flatten(1))
        if self.rest_out is not None:
            out.append(self.rest_out(x[:, n]))
        return torch.cat(out, 1)  # (B, Z)


def side_by_side(both: Float[Tensor, "B 2 nw"], num_units: int) -> Float[Tensor, "B n w2"]:
    """Of every unit, the features in both networks."""
    return both.unflatten(2, (num_units, -1)).movedim(1, 2).flatten(2)
