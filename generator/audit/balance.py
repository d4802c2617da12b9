"""What of parameters may change of networks that stay the same, besides orders and signs of hidden units; and
the form in which that makes no difference.

Units between ReLUs may be scaled: whatever enters times c, and whatever leaves divided by it. The rows of a
classifier's output layer may be shifted, all by one vector: softmax knows differences of logits alone. Which
may be is found by trying. Distances of weights are taken in the form that has the least norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""Change of answers, relative to their size or to that by a change that counts, that is rounding."""


@dataclass(frozen=True)
class Freedom:
    """What may change of networks that stay the same."""

    scaled: tuple[str, ...] = ()
    """The permutations whose units may be scaled."""
    shifted: tuple[str, ...] = ()
    """The parameters to all of whose rows the same may be added."""

    def __bool__(self) -> bool:
        return bool(self.scaled or self.shifted)

    def canonical(self, symmetry: Symmetry, theta: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
        """The same networks in the one form of least norm: rows centred, then units balanced."""
        return balanced(symmetry, self.scaled, centred(symmetry, self.shifted, theta))


def freedom_of(task: Task) -> Freedom:
    """What of a task's networks may change, by trying it; nothing where they do not answer examples."""
    if not task.answers_examples:
        return Freedom()
    x, _ = task.examples("validation", torch.arange(min(EXAMPLES, task.num_examples("validation"))))
    theta = task.init([seeded(0)])
    theta = theta + 0.1 * theta.std() * torch.randn(theta.shape, generator=seeded(1))  # biases of 0, too
    return Freedom(_scaled_units(task, theta, x), _shifted_parameters(task, theta, x))


def _scaled_units(task: Task, theta: Float[Tensor, "1 D"], x: Tensor) -> tuple[str, ...]:
    """The permutations whose units do not change the answers when scaled."""
    net, rng = task.module().eval(), seeded(2)

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


@torch.no_grad()
def _shifted_parameters(task: Task, theta: Float[Tensor, "1 D"], x: Tensor) -> tuple[str, ...]:
    """The parameters, of those whose rows are no hidden units, that may have the same added to all rows: what
    networks are judged by changes, but not by that."""
    params, rng, found = task.spec.unflatten(theta), seeded(3), []
    for name, axes in task.symmetry.axes_to_perm.items():
        if axes and axes[0] is None:
            each = torch.randn(params[name].shape, generator=rng)
            changes = each[:, :1].expand_as(each), each
            moved = [task.spec.flatten(params | {name: params[name] + change}) for change in changes]
            alike, apart = task.divergence(torch.cat(moved), theta.expand(2, -1), x).tolist()
            if alike < TOLERANCE * apart:
                found.append(name)
    return tuple(found)


def centred(symmetry: Symmetry, names: Sequence[str], theta: Float[Tensor, "K D"]) -> Float[Tensor, "K D"]:
    """The same networks, the rows of each named parameter with a mean of 0: so their norm is least."""
    params = symmetry.spec.unflatten(theta)
    for name in names:
        params[name] = params[name] - params[name].mean(1, keepdim=True)
    return symmetry.spec.flatten(params)


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
