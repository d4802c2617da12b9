"""SGD for stacks: the update of torch.optim.SGD, run by run."""

import copy

import pytest
import torch
from torch import Tensor

from ckpt_factory.optim import SGD

K, STEPS = 4, 12
# The same three fused multiply-adds a step in another order: a few units of float32 rounding, 12 steps long.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def start() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(K, *shape, generator=rng) for shape in ((3, 2), (3,), ())]


def gradients(step: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(100 + step)
    return [torch.randn(K, *shape, generator=rng) for shape in ((3, 2), (3,), ())]


def run_stacked(optimizer: SGD, params: list[Tensor], steps: range) -> None:
    for step in steps:
        for param, gradient in zip(params, gradients(step), strict=True):
            param.grad = gradient
        optimizer.step()


def expected(k: int, **settings: float | bool) -> list[Tensor]:
    """Run k alone, under torch's own optimizer."""
    params = [torch.nn.Parameter(value[k].clone()) for value in start()]
    optimizer = torch.optim.SGD(params, **settings)
    for step in range(STEPS):
        for param, gradient in zip(params, gradients(step), strict=True):
            param.grad = gradient[k]
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, True, 0.1), (0.0, False, 0.1)],
)
def test_stacked_sgd_equals_torch_sgd(momentum: float, nesterov: bool, weight_decay: float) -> None:
    params = start()
    optimizer = SGD(params, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    run_stacked(optimizer, params, range(STEPS))
    for k in range(K):
        alone = expected(k, lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_every_run_has_its_own_lr_momentum_and_weight_decay() -> None:
    lr = torch.tensor([0.01, 0.1, 0.3, 0.0])
    momentum = torch.tensor([0.0, 0.5, 0.9, 0.9])
    weight_decay = torch.tensor([0.0, 0.1, 0.01, 0.5])
    params = start()
    optimizer = SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
    run_stacked(optimizer, params, range(STEPS))
    for k in range(K):
        settings = {"lr": lr[k], "momentum": momentum[k], "weight_decay": weight_decay[k]}
        alone = expected(k, **{name: value.item() for name, value in settings.items()})
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_state_dict_round_trip_mid_run_is_bit_identical() -> None:
    settings = {"lr": torch.tensor([0.01, 0.1, 0.3, 0.2]), "momentum": 0.9, "nesterov": True}
    params = start()
    optimizer = SGD(params, **settings)
    run_stacked(optimizer, params, range(5))
    saved_params = [param.clone() for param in params]
    saved_state = copy.deepcopy(optimizer.state_dict())
    run_stacked(optimizer, params, range(5, STEPS))
    resumed = SGD(saved_params, lr=0.0)
    resumed.load_state_dict(saved_state)
    run_stacked(resumed, saved_params, range(5, STEPS))
    for param, again in zip(params, saved_params, strict=True):
        assert torch.equal(param, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype: torch.dtype) -> None:
    param = torch.ones(K, 3, dtype=dtype)
    param.grad = torch.ones_like(param)
    SGD([param], lr=torch.full((K,), 0.5, dtype=dtype), momentum=0.9, nesterov=True).step()
    assert param.dtype == dtype
    # one step: 1 - 0.5 * (1 + 0.9)
    torch.testing.assert_close(param, torch.full_like(param, 0.05))


def test_parameters_without_gradient_stay() -> None:
    moved, still = torch.ones(K, 2), torch.ones(K, 2)
    moved.grad = torch.ones_like(moved)
    SGD([moved, still], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(K, 2))
    assert not torch.equal(moved, still)


def test_closure_is_called_with_gradients_enabled() -> None:
    param = torch.ones(K, 2, requires_grad=True)
    optimizer = SGD([param], lr=0.5)

    def closure() -> float:
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 8.0
    assert torch.equal(param.detach(), torch.zeros(K, 2))  # 1 - 0.5 * 2
