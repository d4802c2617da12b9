"""Initialisations that are not a task's own: the field's rules, applied to a ParamSpec."""

from math import prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from .spec import ParamSpec


def initialise(spec: ParamSpec, rule: str, *, rng: torch.Generator) -> Float[Tensor, " D"]:
    """One network: matrices by the rule, vectors and scalars 0.

    Matrices are (fan_out, fan_in), convolutions (out, in, *kernel) with fan_in = in * kernel.
    kaiming: N(0, 2 / fan_in) (He et al. 2015, eq. 10). xavier: U(+-sqrt(6 / (fan_in + fan_out))) (Glorot and
    Bengio 2010, eq. 16). orthogonal: a random orthonormal matrix times sqrt(2) (Saxe et al. 2014).

    Raises:
        ValueError: the network has vectors that are no biases, which a rule for matrices would set to 0.
    """
    parts = []
    for name, shape in zip(spec.names, spec.shapes, strict=True):
        if len(shape) < 2:
            if not name.endswith("bias"):
                raise ValueError(f"init {rule!r} knows matrices and biases, not {name!r} of shape {shape}")
            parts.append(torch.zeros(prod(shape)))
            continue
        fan_out, fan_in = shape[0], prod(shape[1:])
        if rule == "kaiming":
            value = torch.randn(fan_out, fan_in, generator=rng) * sqrt(2 / fan_in)
        elif rule == "xavier":
            receptive = prod(shape[2:])
            bound = sqrt(6 / (fan_in + fan_out * receptive))
            value = (2 * torch.rand(fan_out, fan_in, generator=rng) - 1) * bound
        else:
            tall = torch.randn(max(fan_out, fan_in), min(fan_out, fan_in), generator=rng)
            q, r = torch.linalg.qr(tall)
            q = q * r.diagonal().sign()  # uniform over orthonormal matrices
            value = sqrt(2) * (q if fan_out >= fan_in else q.T)
        parts.append(value.flatten())
    return torch.cat(parts)
