"""The networks that zoos are made of: plain modules, and which of their axes a permutation may act on."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear - ReLU - ... - Linear with layers fc1, fc2, ...: (B, sizes[0]) -> (B, sizes[-1])."""

    def __init__(self, sizes: tuple[int, ...]):
        super().__init__()
        self.depth = len(sizes) - 1
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{layer}", nn.Linear(fan_in, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(1, self.depth):
            x = torch.relu(self.get_submodule(f"fc{layer}")(x))
        return self.get_submodule(f"fc{self.depth}")(x)

    def axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """Permutation P{l} acts on the units of hidden layer l."""
        axes: dict[str, tuple[str | None, ...]] = {}
        for layer in range(1, self.depth + 1):
            out = f"P{layer - 1}" if layer < self.depth else None
            axes[f"fc{layer}.weight"] = (out, f"P{layer - 2}" if layer > 1 else None)
            axes[f"fc{layer}.bias"] = (out,)
        return axes
