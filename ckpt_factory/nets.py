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


class ConvNet(nn.Module):
    """The published CIFAR-10 network (Peebles et al. 2022): (B, channels, H, W) -> (B, classes), any H and W.

    Conv 3x3 (16, stride 2) - ReLU - Conv 3x3 (32) - ReLU - global average pooling - Linear; convolutions are
    padded by 1 and have no bias. 5,370 parameters with 3 channels and 10 classes.
    """

    def __init__(self, channels: int = 3, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv1(x))  # (B, 16, ceil(H / 2), ceil(W / 2))
        h = torch.relu(self.conv2(h))  # (B, 32, ceil(H / 2), ceil(W / 2))
        return self.fc(h.mean((2, 3)))

    def axes_to_perm(self) -> dict[str, tuple[str | None, ...]]:
        """P0 acts on the channels of conv1, P1 on those of conv2."""
        return {
            "conv1.weight": ("P0", None, None, None),
            "conv2.weight": ("P1", "P0", None, None),
            "fc.weight": (None, "P1"),
            "fc.bias": (None,),
        }
