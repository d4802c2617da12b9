"""Lion for stacks: two well-kept implementations agree with it, run by run."""

import math
from collections.abc import Callable

import lion_pytorch
import pytest
import pytorch_optimizer
import torch
from torch.optim import Optimizer

from ckpt_factory.optim import Lion

from .optim_runs import K, gradients, run, start

# The same products and sums in another order. An update is a sign: where the average of gradients is as
# small as its rounding, runs would part by lr; none of these gradients is.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("other", [lion_pytorch.Lion, pytorch_optimizer.Lion])
@pytest.mark.parametrize(("betas", "weight_decay"), [((0.9, 0.99), 0.0), ((0.95, 0.98), 0.1)])
def test_stacked_lion_equals_the_well_kept_ones(
    other: Callable[..., Optimizer], betas: tuple[float, float], weight_decay: float
) -> None:
    params = start()
    run(Lion(params, lr=0.01, betas=betas, weight_decay=weight_decay), params)
    for k in range(K):
        alone = [torch.nn.Parameter(param[k].clone()) for param in start()]
        run(other(alone, lr=0.01, betas=betas, weight_decay=weight_decay), alone, part=k)
        torch.testing.assert_close([param[k] for param in params], [p.detach() for p in alone], **TOLERANCE)


def test_every_run_has_its_own_settings() -> None:
    lr, weight_decay = torch.tensor([0.01, 0.1, 0.3, 0.0]), torch.tensor([0.0, 0.1, 0.01, 0.5])
    beta1, beta2 = torch.tensor([0.9, 0.5, 0.95, 0.9]), torch.tensor([0.99, 0.9, 0.98, 0.95])
    params = start()
    run(Lion(params, lr, (beta1, beta2), weight_decay), params)
    for k in range(K):
        alone = [param[k].clone() for param in start()]
        own = [float(values[k]) for values in (lr, beta1, beta2, weight_decay)]
        run(Lion(alone, own[0], (own[1], own[2]), own[3], stacked=False), alone, part=k)
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_what_has_no_gradient_does_not_move() -> None:
    """sign(0) = 0, and an entry moves again once there is one."""
    param = torch.ones(1, 3)
    optimizer = Lion([param], lr=0.5)
    param.grad = torch.tensor([[0.0, 1e-30, -2.0]])
    optimizer.step()
    assert param.tolist() == [[1.0, 0.5, 1.5]]
    param.grad = torch.zeros(1, 3)
    optimizer.step()  # along the average of the past
    assert param.tolist() == [[1.0, 0.0, 2.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_none_and_forgotten(bad: float) -> None:
    """Neither its run nor its entry is frozen by it, and all others are as if it had never been."""
    lost, spared = start(), start()
    for params, value in ((lost, bad), (spared, 0.0)):
        optimizer = Lion(params, lr=0.01, weight_decay=0.1)
        for step in range(6):
            for param, gradient in zip(params, gradients(step), strict=True):
                if step == 2:
                    gradient[1].view(-1)[-1] = value
                param.grad = gradient
            before = [param.clone() for param in params]
            optimizer.step()
            assert all((a != b).all() for a, b in zip(params, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(lost, spared, strict=True))
