"""Tiger for stacks: its author's rules, written out entry by entry, and what follows from them."""

import math

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

from ckpt_factory.optim import Tiger

from .optim_runs import STEPS, K, gradients, run, start

# The same few operations in another order, twelve steps of float32.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
LR, BETA, DECAY = 0.05, 0.9, 0.1


def author_step(param: Tensor, grad: Tensor, m: Tensor, t: int, k: int, centre: float = 0.0) -> None:
    """bojone/tiger, one parameter of one run; t counts from 0."""
    lost = bool(grad.isnan().any())
    b1 = BETA if t % k == 0 and not lost else 1.0
    m.copy_(b1 * m + (1 - BETA) / k * (torch.zeros_like(grad) if lost else grad))
    lr, decay = (LR if (t + 1) % k == 0 else 0.0), DECAY
    if param.ndim < 2:
        lr, decay = 0.5 * lr, 0.0
    else:
        lr *= math.sqrt(sum(x * x for x in param.flatten().tolist()) / param.numel())
    param.copy_((param - centre) * 0.99 + centre if lost else param - lr * (m.sign() + decay * param))


def by_the_author(k: int, run_id: int) -> list[Tensor]:
    params = [param[run_id].clone() for param in start()]
    moments = [torch.zeros_like(param) for param in params]
    for step in range(STEPS):
        for param, gradient, m in zip(params, gradients(step), moments, strict=True):
            author_step(param, gradient[run_id], m, step, k)
    return params


@pytest.mark.parametrize("accumulate", [1, 3])
def test_matrices_and_biases_follow_the_authors_rules_for_each(accumulate: int) -> None:
    params = start()
    run(Tiger(params, LR, BETA, DECAY, accumulate=accumulate), params)
    for k in range(K):
        torch.testing.assert_close([param[k] for param in params], by_the_author(accumulate, k), **TOLERANCE)


def test_it_is_more_than_the_plain_port() -> None:
    params, plain = start(), [torch.nn.Parameter(param) for param in start()]
    run(Tiger(params, LR, BETA, DECAY), params)
    run(pytorch_optimizer.Tiger(plain, lr=LR, beta=BETA, weight_decay=DECAY), plain)
    for param, port in zip(params, (param.detach() for param in plain), strict=True):
        assert float((param - port).abs().mean()) > LR / 2  # no scale, full rate and decay for biases


def test_every_run_has_its_own_settings() -> None:
    lr, decay = torch.tensor([0.01, 0.1, 0.3, 0.0]), torch.tensor([0.0, 0.1, 0.01, 0.5])
    beta = torch.tensor([0.9, 0.5, 0.965, 0.0])
    params = start()
    run(Tiger(params, lr, beta, decay, accumulate=2), params)
    for k in range(K):
        alone = [param[k].clone() for param in start()]
        own = [float(values[k]) for values in (lr, beta, decay)]
        run(Tiger(alone, *own, accumulate=2, stacked=False), alone, part=k)
        torch.testing.assert_close([param[k] for param in params], alone, **TOLERANCE)


def test_accumulating_gradients_equals_one_step_with_their_mean() -> None:
    accumulated, at_once = start(), start()
    run(Tiger(accumulated, LR, BETA, DECAY, accumulate=3), accumulated)
    optimizer = Tiger(at_once, LR, BETA, DECAY)
    for first in range(0, STEPS, 3):
        three = [gradients(step) for step in range(first, first + 3)]
        for param, *parts in zip(at_once, *three, strict=True):
            param.grad = torch.stack(parts).mean(0)
        optimizer.step()
    torch.testing.assert_close(accumulated, at_once, **TOLERANCE)


def test_parameters_move_at_every_kth_gradient_alone() -> None:
    params = start()
    optimizer = Tiger(params, LR, BETA, DECAY, accumulate=3)
    run(optimizer, params, range(2))
    assert all(torch.equal(param, before) for param, before in zip(params, start(), strict=True))
    run(optimizer, params, range(2, 3))
    assert not any(torch.equal(param, before) for param, before in zip(params, start(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_shrinks_its_run_alone_and_leaves_its_moment(
    bad: float, centre: float
) -> None:
    params, moments = start(), start(seed=5)
    optimizer = Tiger(params, LR, BETA, DECAY, centre=centre)
    for param, moment in zip(params, moments, strict=True):
        optimizer.state[param] = {"step": torch.zeros(()), "exp_avg": moment.clone()}
    before = start()
    for param, gradient in zip(params, gradients(0), strict=True):
        param.grad = gradient
        gradient[1].view(-1)[-1] = bad
    optimizer.step()
    for param, old, moment, gradient in zip(params, before, moments, gradients(0), strict=True):
        torch.testing.assert_close(param[1], (old[1] - centre) * 0.99 + centre)
        assert torch.equal(optimizer.state[param]["exp_avg"][1], moment[1])
        for k in (0, 2, 3):
            expected, m = old[k].clone(), moment[k].clone()
            author_step(expected, gradient[k], m, 0, 1)
            torch.testing.assert_close(param[k], expected, **TOLERANCE)
            torch.testing.assert_close(optimizer.state[param]["exp_avg"][k], m, **TOLERANCE)


def test_a_matrix_of_zeros_moves_away_from_zero() -> None:
    """By the floor of its scale at first, and faster as it grows: a generator's output layers begin so."""
    matrix = torch.zeros(K, 3, 2)
    optimizer = Tiger([matrix], LR, BETA, 0.0, floor=1e-3)
    run(optimizer, [matrix], range(1), shapes=((3, 2),))
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, LR * 1e-3))
    for _ in range(200):
        matrix.grad = torch.ones_like(matrix)
        optimizer.step()
    assert float(matrix.amax()) < -0.1


def test_the_default_floor_is_below_the_scale_of_initialisations() -> None:
    """U(-1/sqrt(n), 1/sqrt(n)) of up to 3,000 inputs moves by its own scale; only below counts the floor."""
    wide = (2 * torch.rand(1, 4, 3000, generator=torch.Generator().manual_seed(0)) - 1) / 3000**0.5
    zeros, before = torch.zeros(1, 3, 2), wide.clone()
    wide.grad, zeros.grad = torch.ones_like(wide), torch.ones_like(zeros)
    Tiger([wide, zeros], lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(zeros, torch.full_like(zeros, -0.1 * 0.01))
    # a step of 1e-3 from entries of 1e-2, in float32
    torch.testing.assert_close(
        before - wide, 0.1 * before.square().mean().sqrt().expand_as(wide), rtol=1e-4, atol=0
    )


def test_rows_of_an_embedding_table_have_scales_of_their_own() -> None:
    table = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]])
    table.grad = torch.ones_like(table)
    Tiger([table], lr=0.1, weight_decay=0.0, per_row=True).step()
    step = 0.1 * math.sqrt(12.5)  # the root mean square of 3 and 4
    torch.testing.assert_close(
        table, torch.tensor([[[3 - step, 4 - step], [0.3 - step / 10, 0.4 - step / 10]]])
    )


@pytest.mark.parametrize(
    ("settings", "message"), [({"accumulate": 0}, "is 0"), ({"floor": 0.0}, "floor 0.0")]
)
def test_impossible_settings_say_what_is_expected(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tiger(start(), **settings)
