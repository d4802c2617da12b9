"""Width transfer (muP): a learning rate that was found at a small width serves a large one.

Tensor Programs V (Yang et al. 2022), table 3, for Adam and for rules of signs. A matrix whose inputs grow
with the width by a factor r gets the learning rate lr / r and its weight decay times r, so that their product
stays. One that starts random and maps to a fixed number of outputs begins r^(1/2) times smaller than usual,
which their table 8 writes as an output multiplier (to Adam the two are one). Matrices from a fixed number of
inputs and all vectors keep learning rate and initial size of the base width. "Usual" is how the model begins:
`Denoiser.initial_std`. Heads keep their width, so that scores of attention need no rule of their own.
"""

from typing import Any

import torch
from torch import nn

from .dit import Denoiser


@torch.no_grad()
def transfer(model: Denoiser, base: Denoiser) -> None:
    """Bring a fresh model, in place, to where what was tuned on `base` is right for it.

    Args:
        base: the same model at the base width; its shapes alone are looked at.
    """
    bases = dict(base.named_modules())
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        small = bases[name]
        assert isinstance(small, nn.Linear)
        grown_in = layer.in_features / small.in_features
        grown_out = layer.out_features / small.out_features
        wanted = model.initial_std(small)
        if grown_in != 1:
            wanted /= grown_in**0.5 if grown_out != 1 else grown_in
        layer.weight.mul_(wanted / model.initial_std(layer))
        model.lr_scales[f"{name}.weight"] = 1 / grown_in


def parameter_groups(model: Denoiser, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters by how they are decayed and by what multiplies their learning rate, "lr_scale"."""
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = id(parameter) in linear, model.lr_scales.get(name, 1.0)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay / scale if decayed else 0.0, "lr_scale": scale}
        for (decayed, scale), params in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
