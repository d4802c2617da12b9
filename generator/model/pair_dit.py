"""PairDiT: WeightDiT for several hidden layers; matrices between them are features of pairs of units."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .dit import BLOCK_PARTS, Block, Denoiser, DiTConfig, modulation, side_by_side
from .tokens import Matrix, NeuronTokens

# Shapes: B batch, n and m units at the rows and columns of a matrix, f its features of a pair, k kinds of
# messages along it, T = all units + 1 tokens, C model width.

KINDS = 4
"""Kinds of messages along a matrix of several features; along one of one feature there are two."""
RANK, GATE_RANK = 64, 8
"""Of the bilinear forms that a matrix's update is read out as, and the gates of its own entries."""


class Entries(NamedTuple):
    """A matrix of the noised update and one of the start network."""

    both: Float[Tensor, "B 2 n m f"]
    to_rows: Float[Tensor, "B n k*m"]
    """What messages from the columns' units are weighted by."""
    to_columns: Float[Tensor, "B m k*n"]


def num_kinds(matrix: Matrix) -> int:
    return 2 if matrix.width == 1 else KINDS


def spans(tokens: NeuronTokens) -> list[slice]:
    """Which tokens are the units of each layer."""
    ends = [0]
    for layer in tokens.layers:
        ends.append(ends[-1] + layer.num_units)
    return [slice(a, b) for a, b in pairwise(ends)]


class PairBlock(Block):
    """A block whose units also send messages along the matrices between their layers.

    Unit i hears sum_j A_ij V h_j from the units j of the layer next to it, A the entries of the noised or the
    start matrix, and so in the other direction: linear in the entries, so that no pair has a state to store.
    """

    def __init__(self, config: DiTConfig, tokens: NeuronTokens):
        super().__init__(config)
        width, kinds = config.width, [num_kinds(matrix) for matrix in tokens.matrices]
        self.matrices, self.spans, self.kinds = tokens.matrices, spans(tokens), max(kinds, default=1)
        self.rows_hear = nn.ModuleList(nn.Linear(width, k * width, bias=False) for k in kinds)
        self.columns_hear = nn.ModuleList(nn.Linear(width, k * width, bias=False) for k in kinds)
        self.modulation = modulation(config, (*BLOCK_PARTS, *[0.0] * self.kinds))

    def forward(self, x: Tensor, condition: Tensor, entries: Sequence[Entries]) -> Tensor:
        modulation = self.modulation(condition).unsqueeze(1)  # (B, 1, (6 + k) C)
        shift1, scale1, gate1, shift2, scale2, gate2, *loud = modulation.chunk(6 + self.kinds, -1)
        h = torch.addcmul(shift1, self.norm1(x), 1 + scale1)
        heard = self.attend(h) + self.messages(h, entries, 1 + torch.stack(loud, 2))
        x = torch.addcmul(x, gate1, self.proj(heard))
        h = torch.addcmul(shift2, self.norm2(x), 1 + scale2)
        return torch.addcmul(x, gate2, self.mlp(h))

    def messages(self, h: Tensor, entries: Sequence[Entries], loudness: Tensor) -> Tensor:
        """What every token hears along matrices; the condition says how loud each kind is, (B, 1, k, C)."""
        heard: list[list[Tensor]] = [[] for _ in self.spans]
        for i, (matrix, weights) in enumerate(zip(self.matrices, entries, strict=True)):
            row, column = matrix.layers
            heard[row].append(weights.to_rows @ _said(self.rows_hear[i](h[:, self.spans[column]]), loudness))
            heard[column].append(
                weights.to_columns @ _said(self.columns_hear[i](h[:, self.spans[row]]), loudness)
            )
        zeros = (h.new_zeros(len(h), h.shape[1] - self.spans[-1].stop, h.shape[2]),)  # the rest hears nothing
        layers = (
            torch.stack(parts).sum(0) if parts else torch.zeros_like(h[:, span])
            for parts, span in zip(heard, self.spans, strict=True)
        )
        return torch.cat([*layers, *zeros], 1)


def _said(values: Tensor, loudness: Tensor) -> Tensor:
    """(B, m, k C) -> (B, k m, C), kind after kind."""
    said = values.unflatten(2, (-1, loudness.shape[-1]))  # (B, m, k, C)
    return (said * loudness[:, :, : said.shape[2]]).transpose(1, 2).flatten(1, 2)


class PairDiT(Denoiser):
    """Denoiser for networks of several hidden layers, equivariant to the permutations of all of them.

    A token is one unit of any hidden layer: incoming weights from the input, bias, outgoing weights to the
    output, whichever it has, noised update and start network side by side, with a learned code for its layer;
    one more token is the rest. The update of a matrix between hidden layers is a bilinear form of the final
    states of the two units, plus copies of its own entries with gates that are such forms too.
    """

    def __init__(self, tokens: NeuronTokens, config: DiTConfig):
        super().__init__(config)
        self.tokens, width = tokens, config.width
        layers = len(tokens.layers)
        self.sizes = [*(layer.num_units for layer in tokens.layers), 1]  # tokens of each kind
        widths = {
            str(i): w for i, w in enumerate([*(la.width for la in tokens.layers), tokens.rest_width]) if w
        }
        self.codes = nn.Parameter(torch.zeros(layers + 1, width))
        self.ins = nn.ModuleDict({i: nn.Linear(2 * w, width, bias=False) for i, w in widths.items()})
        self.mixes = nn.ModuleDict(
            {
                str(i): nn.Linear(2 * m.width, KINDS, bias=False)
                for i, m in enumerate(tokens.matrices)
                if m.width > 1
            }
        )
        self._build_trunk([PairBlock(config, tokens) for _ in range(config.depth)])
        self.outs = nn.ModuleDict({i: nn.Linear(width, w) for i, w in widths.items()})
        forms = [m.width * (RANK + 2 * GATE_RANK) for m in tokens.matrices]
        self.rows = nn.ModuleList(nn.Linear(width, form) for form in forms)
        columns = [nn.Linear(width, form) for form in forms]
        self.columns = nn.ModuleList(columns)
        self._initialise([*self.outs.values(), *self.rows])
        nn.init.normal_(self.codes, std=0.02)
        for layer in columns:
            nn.init.ones_(layer.bias)  # so that a gate can be one number for all entries

    def predict(
        self,
        u_t: Float[Tensor, "B Z"],
        t: Float[Tensor, " B"],
        start: Float[Tensor, "B Z"],
        metrics: Float[Tensor, "B F"],
    ) -> Float[Tensor, "B Z"]:
        both = torch.stack([u_t, start], 1)  # (B, 2, Z)
        parts = [both[:, :, part] for part in self.tokens.parts]
        kinds = len(self.sizes)
        x = torch.cat([self._tokens(i, part) for i, part in enumerate(parts[:kinds])], 1)
        x, condition = self._told(x, t, metrics)  # (B, T, C)
        entries = [self._entries(i, part) for i, part in enumerate(parts[kinds:])]
        for block in self.blocks:
            x = block(x, condition, entries)  # (B, T, C)
        states = self._last_norm(x[:, : sum(self.sizes)], condition).split(self.sizes, 1)
        out = [self.outs[i](states[int(i)]).flatten(1) for i in self.outs]
        for i, matrix in enumerate(self.tokens.matrices):
            rows, columns = (states[layer] for layer in matrix.layers)
            update = _bilinear(self.rows[i](rows), self.columns[i](columns), entries[i].both)
            out.append(update.flatten(1))
        return torch.cat(out, 1)  # (B, Z)

    def _tokens(self, i: int, both: Tensor) -> Tensor:
        code = self.codes[i].expand(len(both), self.sizes[i], -1)
        return code + self.ins[str(i)](side_by_side(both, self.sizes[i])) if str(i) in self.ins else code

    def _entries(self, i: int, both: Tensor) -> Entries:
        n, m = self.tokens.matrices[i].num_units
        both = both.unflatten(2, (n, m, -1))  # (B, 2, n, m, f)
        if str(i) in self.mixes:
            kinds = self.mixes[str(i)](both.permute(0, 2, 3, 1, 4).flatten(3)).movedim(3, 1)
        else:
            kinds = both.squeeze(4)  # (B, k, n, m)
        return Entries(
            both,
            (m**-0.5 * kinds).movedim(1, 2).flatten(2),
            (n**-0.5 * kinds).permute(0, 3, 1, 2).flatten(2),
        )


def _bilinear(rows: Tensor, columns: Tensor, both: Tensor) -> Tensor:
    """The update of a matrix from forms of its units' states: (B, n, m, f)."""
    ranks, f = (RANK, GATE_RANK, GATE_RANK), both.shape[-1]
    split = (part.unflatten(2, (f, -1)).transpose(1, 2).split(ranks, 3) for part in (rows, columns))
    update, *gates = (
        (r @ c.mT).movedim(1, 3) * rank**-0.5 for r, c, rank in zip(*split, ranks, strict=True)
    )  # (B, n, m, f)
    return update + gates[0] * both[:, 0] + gates[1] * both[:, 1]
