"""Amos for stacks: its authors' algorithm on matrices, a well-kept port on vectors, and two classics."""

import math

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

from ckpt_factory.optim import Amos

from .optim_runs import STEPS, K, gradients, run, start

# The same operations in float32 in another order, twelve steps.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def tian_and_parikh(param: Tensor, run_id: int, index: int, xi: float, eta: float, beta: float) -> Tensor:
    """Algorithm 1 in double precision, one parameter of one run."""
    theta, v, b = param.double(), 0.0, 0.0
    for t in range(1, STEPS + 1):
        g = gradients(t - 1)[index][run_id].double()
        g2 = float(g.square().mean())
        v = beta * v + (1 - beta) * g2
        v_hat = v / (1 - beta**t)
        c, d = (1 + 0.25 * math.sqrt(xi) * b) ** -0.5, 1 / (1 + 0.25 * math.sqrt(xi * eta) * b)
        gamma = c * xi**2 * g2 / v_hat
        theta = theta - d * (xi * eta * g / math.sqrt(v_hat) + gamma / 2 * theta)
        b = b + gamma * (1 + b)
    return theta


def test_stacked_amos_is_the_algorithm_of_the_paper() -> None:
    lr, beta = torch.tensor([0.01, 0.1, 0.5, 1.0]), 0.99
    params = start()
    run(Amos(params, lr, beta), params)
    for k in range(K):
        for index, (param, eta) in enumerate(zip(start(), (math.sqrt(2 / 2), 0.5, 0.5), strict=True)):
            expected = tian_and_parikh(param[k], k, index, float(lr[k]), eta, beta)
            # twelve steps in float32; rates of 1 make of the first rounding errors a few units more
            torch.testing.assert_close(params[index][k], expected.float(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stacked_amos_equals_the_well_kept_one_on_vectors_state_included(momentum: float) -> None:
    shapes = ((5,), (2,))
    params = start(shapes)
    optimizer = Amos(params, lr=0.3, beta=0.99, momentum=momentum)
    run(optimizer, params, shapes=shapes)
    for k in range(K):
        alone = [torch.nn.Parameter(param[k].clone()) for param in start(shapes)]
        other = pytorch_optimizer.Amos(alone, lr=0.3, beta=0.99, momentum=momentum)
        run(other, alone, part=k, shapes=shapes)
        for param, single in zip(params, alone, strict=True):
            ours, theirs = optimizer.state[param], other.state[single]
            assert set(ours) - {"step"} == set(theirs)
            torch.testing.assert_close(param[k], single.detach(), **TOLERANCE)
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name][k].reshape(value.shape), value, **TOLERANCE)


def test_every_run_has_its_own_settings() -> None:
    lr, momentum = torch.tensor([0.01, 0.1, 0.3, 0.0]), torch.tensor([0.9, 0.5, 0.0, 0.9])
    beta, decay = torch.tensor([0.9, 0.99, 0.95, 0.9]), torch.tensor([0.0, 0.1, 0.01, 0.5])
    params = start()
    run(Amos(params, lr, beta, momentum, decay), params)
    for k in range(K):
        alone = [param[k].clone() for param in start()]
        own = [float(values[k]) for values in (lr, beta, momentum, decay)]
        run(Amos(alone, *own, stacked=False), alone, part=k)
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_the_scale_is_by_shape_unless_it_is_given() -> None:
    """The first step of a fresh Amos is xi * eta * g / rms(g), but for a decay of xi^2 / 2."""
    xi = 1e-3
    for shape, scale, eta in (
        ((5,), None, 0.5),
        ((3, 8), None, math.sqrt(2 / 8)),
        ((3, 2, 2, 2), None, math.sqrt(2 / 8)),
        ((3, 8), math.sqrt(1 / 8), math.sqrt(1 / 8)),
    ):
        param = torch.zeros(K, *shape)
        param.grad = torch.ones_like(param)
        Amos([param], xi, scale=scale).step()
        torch.testing.assert_close(param, torch.full_like(param, -xi * eta))


def test_a_gradient_of_zeros_and_a_tiny_one_leave_finite_numbers() -> None:
    param = torch.ones(2, 3)
    optimizer = Amos([param], lr=0.1)
    for _ in range(3):
        param.grad = torch.tensor([[0.0], [1e-20]]).expand(2, 3).clone()
        optimizer.step()
    assert torch.equal(param[0], torch.ones(3))
    assert bool(param.isfinite().all())


def test_it_solves_a_parabola() -> None:
    target = torch.tensor([[0.3, -0.2, 0.4]]).repeat(K, 1)
    param = torch.zeros_like(target)
    optimizer = Amos([param], lr=torch.tensor([0.03, 0.1, 0.3, 1.0]))
    for _ in range(400):
        param.grad = param - target
        optimizer.step()
    # the rate falls by itself, whatever it began with; the weight decay stays behind a little
    assert float((param - target).abs().amax()) < 0.05


def test_with_clipping_and_momentum_it_solves_rosenbrock() -> None:
    param = torch.tensor([[-1.2, 1.0]], requires_grad=True)
    optimizer = Amos([param], lr=0.1, beta=0.9, momentum=0.9, scale=1.0, clip=1.0)
    value = math.inf
    for _ in range(1000):
        optimizer.zero_grad()
        x, y = param[0]
        loss = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        loss.backward()
        optimizer.step()
        value = loss.item()
    assert value < 0.05  # from 24
