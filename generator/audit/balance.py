"""Units between ReLUs may be scaled: whatever enters times c, and whatever leaves divided by it, is the same
network. Distances of weights are taken in the one scale in which both are as large."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from ckpt_factory import Symmetry, Task
from ckpt_factory.tasks.base import seeded

SWEEPS = 20
"""Layers are balanced one after the other, which unsettles their neighbours by less and less."""
EXAMPLES = 16
TOLERANCE = 1e-3
"""Change of answers, relative to their size, that is rounding."""


def scaled_units(task: Task) -> tuple[str, ...]:
    """The permutations of a task's symmetry whose units may be scaled, by trying it on a network; none where
    networks do not answer examples."""
    if not task.answers_examples:
        return ()
    net = task.module().eval()
    x, _ = task.examples("validation", torch.arange(min(EXAMPLES, task.num_examples("validation"))))
    rng = seeded(0)
    theta = task.init([rng])
    theta = theta + 0.1 * theta.std() * torch.randn(theta.shape, generator=rng)  # biases that begin at 0, too

    def answers(row: Tensor) -> Tensor:
        with torch.no_grad():
            return functional_call(net, task.spec.unflatten(row), (x,))

    before, found = answers(theta[0]), []
    for perm, size in task.symmetry.sizes.items():
        factor = torch.rand(1, size, generator=rng) * 1.5 + 0.5
        change = answers(_scale(task.symmetry, theta, perm, factor)[0]) - before
        if float(change.norm()) < TOLERANCE * float(before.norm()):
            found.append(perm)
    return tuple(found)


def balanced(symmetry: Symmetry, perms: Sequence[str], theta: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
    """The same networks, each unit of `perms` with as large a norm of what enters it as of what leaves it.

    That is the scale in which all parameters have the least norm; gradient flow keeps the difference of both
    (Du et al. 2018). Units without either stay as they are.
    """
    for _ in range(SWEEPS if len(perms) > 1 else 1):
        for perm in perms:
            enters, leaves = _squares(symmetry, theta, perm)
            alive = (enters > 0) & (leaves > 0)
            factor = torch.where(alive, leaves / enters, 1.0) ** 0.25
            theta = _scale(symmetry, theta, perm, factor)
    return theta


def _squares(symmetry: Symmetry, theta: Tensor, perm: str) -> tuple[Tensor, Tensor]:
    """Of each unit the sum of squares of what enters, and of what leaves it: (K, units) each."""
    sums = theta.new_zeros(2, len(theta), symmetry.sizes[perm])
    for name, parameter in symmetry.spec.unflatten(theta).items():
        for axis, acting in enumerate(symmetry.axes_to_perm[name]):
            if acting == perm:
                of_units = parameter.movedim(1 + axis, 1).reshape(*sums.shape[1:], -1)
                sums[int(axis > 0)] += of_units.square().sum(2)
    return sums[0], sums[1]


def _scale(symmetry: Symmetry, theta: Tensor, perm: str, factor: Float[Tensor, "K n"]) -> Tensor:
    params = symmetry.spec.unflatten(theta)
    for name, axes in symmetry.axes_to_perm.items():
        for axis, acting in enumerate(axes):
            if acting == perm:
                shape = [len(factor), *(1 for _ in axes)]
                shape[1 + axis] = factor.shape[1]
                each = factor.view(shape)
                params[name] = params[name] * (each if axis == 0 else 1 / each)
    return symmetry.spec.flatten(params)
