"""Gpt: the published weight transformer; its parameters have the names and shapes of the released."""

import difflib
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .config import PRESETS, GptConfig

# Shapes: B batch, T tokens, C model width, D parameters of a network.

INIT_STD = 0.02


class ScalarEmbedder(nn.Module):
    """Sines and cosines of a raw scalar, and itself: (B,) -> (B, 2 F + 1)."""

    def __init__(self, num_frequencies: int, max_freq_log2: int):
        super().__init__()
        self.register_buffer("frequencies", 2 ** torch.linspace(0, max_freq_log2, num_frequencies))

    def forward(self, scalar: Float[Tensor, " B"]) -> Float[Tensor, "B S"]:
        scalar = scalar.unsqueeze(1)
        angle = scalar * self.get_buffer("frequencies")
        return torch.cat([angle.sin(), angle.cos(), scalar], 1)


class Attention(nn.Module):
    """Of all tokens to all tokens; a head is a contiguous slice of the features."""

    def __init__(self, config: GptConfig):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        q, k, v = (
            layer(h).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )  # (B, heads, T, C / heads)
        scores = q @ k.mT * q.shape[-1] ** -0.5  # (B, heads, T, T)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each behind its norm; nothing is conditioned but by tokens."""

    def __init__(self, config: GptConfig):
        super().__init__()
        width = config.width
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = Attention(config)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(),
            nn.Linear(config.mlp_ratio * width, width),
        )

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Decoder(nn.Module):
    """The transformer from a vector of numbers to another, whose tokens are the first of its own."""

    def __init__(self, config: GptConfig):
        super().__init__()
        width, self.token_widths, outputs = config.width, config.input_tokens, config.output_tokens
        self.pos_emb = nn.Parameter(torch.zeros(1, len(self.token_widths), width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        inner = [width] * (config.encoder_depth - 1)
        self.input_parameter_projections = nn.ModuleList(
            _projection([size, *inner, width]) for size in self.token_widths
        )
        self.ln_in = nn.LayerNorm(width)
        self.ln_f = nn.LayerNorm(width)
        inner = [width] * (config.decoder_depth - 1)
        self.output_parameter_projections = nn.ModuleList(
            _projection([width, *inner, size]) for size in outputs
        )

    def forward(self, inputs: Float[Tensor, "B I"]) -> Float[Tensor, "B D"]:
        tokens = inputs.split(self.token_widths, 1)
        encoders, decoders = self.input_parameter_projections, self.output_parameter_projections
        x = torch.stack([encode(token) for encode, token in zip(encoders, tokens, strict=True)], 1)
        x = self.ln_in(x) + self.pos_emb  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        x = self.ln_f(x[:, : len(decoders)])
        return torch.cat([decode(x[:, i]) for i, decode in enumerate(decoders)], 1)


class Gpt(nn.Module):
    """(noised theta*, timestep, start theta, metrics of both) -> theta*, all networks normalised.

    It predicts the clean target network as the clean start network plus a difference, which is zero before
    training. Metrics and the timestep, an integer, are embedded raw. Of D numbers, in state_dict order.
    """

    def __init__(self, config: GptConfig):
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.scalar_embedder = ScalarEmbedder(config.num_frequencies, config.max_freq_log2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for projection in self.decoder.output_parameter_projections:
            *_, last = projection.children()
            nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_preset(cls, name: str) -> "Gpt":
        """An untrained model of a preset; under `torch.device("meta")` without memory for its parameters.

        Raises:
            ValueError: no such preset.
        """
        if name not in PRESETS:
            close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown preset {name!r}. {hint}Known presets: {', '.join(PRESETS)}")
        return cls(PRESETS[name])

    def forward(
        self,
        noised: Float[Tensor, "B D"],
        step: Float[Tensor, " B"],
        start: Float[Tensor, "B D"],
        start_metric: Float[Tensor, " B"],
        target_metric: Float[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:
        return start + self.difference(noised, step, start, start_metric, target_metric)

    def difference(
        self,
        noised: Float[Tensor, "B D"],
        step: Float[Tensor, " B"],
        start: Float[Tensor, "B D"],
        start_metric: Float[Tensor, " B"],
        target_metric: Float[Tensor, " B"],
    ) -> Float[Tensor, "B D"]:
        """What the predicted clean target has on top of the start network."""
        scalars = [step, target_metric - start_metric, target_metric, start_metric]
        embedded = [self.scalar_embedder(s.to(start)) for s in scalars[: self.config.num_scalars]]
        return self.decoder(torch.cat([noised, start, *embedded], 1))


def _projection(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers without biases, GELUs between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.GELU()] * bool(layers) + [nn.Linear(fan_in, fan_out, bias=False)]
    return nn.Sequential(*layers)
