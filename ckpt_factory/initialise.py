"""Initialisations that are not a task's own: the field's rules, applied to a ParamSpec."""

from math import prod, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from .spec import ParamSpec


def initialise(
    own: Float[Tensor, " D"], spec: ParamSpec, rule: str, *, rng: torch.Generator
) -> Float[Tensor, " D"]:
    """One network: matrices by the rule, biases 0, all else as in `own`, the task's own initialisation.

    What is neither, the scale of a norm or the log standard deviation of a Gaussian policy, has a meaning
    that only its task knows.

    Matrices are (fan_out, fan_in), convolutions (out, in, *kernel) with fan_in = in * kernel.
    kaiming: N(0, 2 / fan_in) (He et al. 2015, eq. 10). xavier: U(+-sqrt(6 / (fan_in + fan_out))) (Glorot and
    Bengio 2010, eq. 16). orthogonal: a random orthonormal matrix times sqrt(2) (Saxe et al. 2014).

    Raises:
        ValueError: the network has no matrices.
    """
    if max(map(len, spec.shapes)) < 2:
        raise ValueError(f"init {rule!r} is a rule for matrices; of {', '.join(spec.names)} none is one")
    parts = []
    for name, part, shape in spec.slices():
        if len(shape) < 2:
            parts.append(torch.zeros_like(own[part]) if name.endswith("bias") else own[part])
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
        parts.append(value.flatten().to(own))
    return torch.cat(parts)
