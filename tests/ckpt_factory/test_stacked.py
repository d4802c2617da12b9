"""Stacked networks: K of them are K plain modules, in float32 exactly and in bfloat16 to its rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ckpt_factory import MLP, ParamSpec, stacked
from tests.conftest import plain_mlp

SIZES = [(9, 3), (9, 6, 3), (9, 7, 5, 3), (9, 8, 6, 4, 3)]


def material(
    sizes: tuple[int, ...], num_runs: int, num_groups: int, batch_size: int = 12
) -> tuple[ParamSpec, Tensor, Tensor, Tensor]:
    """A spec, theta (K, D), images (G, B, I) and labels (G, B)."""
    rng = torch.Generator().manual_seed(len(sizes))
    spec = ParamSpec.of_module(MLP(sizes))
    theta = 0.7 * torch.randn(num_runs, spec.D, generator=rng)
    x = torch.randn(num_groups, batch_size, sizes[0], generator=rng)
    return spec, theta, x, torch.randint(0, sizes[-1], (num_groups, batch_size), generator=rng)


def params_of(spec: ParamSpec, theta: Tensor) -> list[Tensor]:
    return [value.contiguous() for value in spec.unflatten(theta).values()]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_forward_is_that_of_the_plain_modules(sizes: tuple[int, ...], num_groups: int) -> None:
    spec, theta, x, _ = material(sizes, 4, num_groups)
    layers = stacked.forward(params_of(spec, theta), x, torch.float32)
    assert [layer.shape for layer in layers] == [(4, size, 12) for size in sizes[1:]]
    for k in range(4):
        net = plain_mlp(sizes, spec.unflatten(theta[k]))
        # float32 sums of 9 terms in another order
        torch.testing.assert_close(layers[-1][k].T, net(x[k // (4 // num_groups)]), rtol=1e-4, atol=1e-5)
    assert all((layer >= 0).all() for layer in layers[:-1])


def plain_gradients(
    sizes: tuple[int, ...], state: dict[str, Tensor], x: Tensor, labels: Tensor, gamma: float
) -> list[Tensor]:
    """The oracle: autograd through a module and the formula of TaiLr."""
    net = plain_mlp(sizes, state)
    p = net(x).softmax(1)[torch.arange(len(x)), labels]
    loss = (-torch.log(gamma + (1 - gamma) * p) / (1 - gamma)).mean()
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("gamma", [None, [0.0, 0.1, 0.6, 0.95]])
def test_gradients_are_autograds_of_the_plain_modules(
    sizes: tuple[int, ...], num_groups: int, gamma: list[float] | None
) -> None:
    spec, theta, x, labels = material(sizes, 4, num_groups)
    per_run = torch.tensor(gamma) if gamma else None
    found = stacked.gradients(params_of(spec, theta), x, labels, per_run, torch.float32)
    assert [value.shape[1:] for value in found] == list(spec.shapes)
    for k in range(4):
        group = k // (4 // num_groups)
        expected = plain_gradients(
            sizes, spec.unflatten(theta[k]), x[group], labels[group], gamma[k] if gamma else 0.0
        )
        # float32 sums in another order; gradients are of order 0.1
        torch.testing.assert_close([value[k] for value in found], expected, rtol=1e-4, atol=1e-6)


def test_a_bfloat16_product_rounds_its_factors_and_its_sum_and_nothing_between() -> None:
    """Sums in bfloat16 would be off by its 2^-8 at each of 784 terms."""
    spec, theta, x, _ = material((784, 20), 3, 1)
    (logits,) = stacked.forward(params_of(spec, theta), x, torch.bfloat16)
    assert logits.dtype == torch.float32
    weight, bias = (value.double() for value in spec.unflatten(theta).values())
    exact = weight.bfloat16().double() @ x[0].bfloat16().double().T
    product = logits.double() - bias.unsqueeze(-1)
    # rounding of the sum, 2^-8 of it; float32 rounding of 784 terms of order 0.5, and of the bias' addition
    assert ((product - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()
    # what is left without the bias is a bfloat16, but for the addition in float32: the bias was not rounded
    assert ((product - product.bfloat16().double()).abs() <= 1e-5).all()


@pytest.mark.parametrize(
    ("sizes", "tolerance"),
    # Three roundings of 2^-8 forward and three backward: 2.4 % if they all add up. With hidden layers, about
    # one pre-activation in a thousand changes its sign, and the root of that is 3 % of a gradient's norm.
    [((64, 10), 0.024), ((64, 16, 10), 0.08), ((64, 20, 16, 10), 0.08)],
)
@pytest.mark.parametrize("with_gamma", [False, True])
def test_bfloat16_gradients_are_float32s_to_its_rounding(
    sizes: tuple[int, ...], tolerance: float, with_gamma: bool
) -> None:
    spec, theta, x, labels = material(sizes, 4, 2, batch_size=64)
    params, gamma = params_of(spec, 0.3 * theta), torch.tensor([0.0, 0.1, 0.5, 0.9]) if with_gamma else None
    before = [value.clone() for value in params]
    exact = stacked.gradients(params, x, labels, gamma, torch.float32)
    rounded = stacked.gradients(params, x, labels, gamma, torch.bfloat16)
    for value, close in zip(exact, rounded, strict=True):
        assert close.dtype == torch.float32
        assert close.shape == value.shape
        error = (close - value).flatten(1).norm(dim=1) / value.flatten(1).norm(dim=1)
        assert (error < tolerance).all()
        assert (error > 1e-5).all(), "products are bfloat16, not float32"
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def constant_logits(*logits: list[float]) -> list[Tensor]:
    """Networks of one layer with these logits whatever the image."""
    bias = torch.tensor(logits)
    return [torch.zeros(*bias.shape, 2), bias]


def errors(logits: list[float], labels: list[int]) -> float:
    x = torch.ones(1, len(labels), 2)
    _, wrong = stacked.metrics(constant_logits(logits), x, torch.tensor(labels), torch.float32)
    return wrong.item()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("logits", "wrong"),
    [
        ([3.0, 1.0, 2.0], 2),  # labels 1 and 2 of 0, 1, 2
        ([1.0, 1.0, 0.0], 3),  # a tie is wrong for both
        ([0.0, 0.0, 0.0], 3),
        ([2.0, 2.0 + 1e-6, 0.0], 2),  # as near as float32 tells apart
        ([NAN, NAN, NAN], 3),
        ([NAN, 1.0, 2.0], 3),  # 2 does not beat NaN
        ([INF, INF, 0.0], 3),
        ([-INF, -INF, -INF], 3),
    ],
)
def test_right_is_only_what_beats_all_other_classes(logits: list[float], wrong: int) -> None:
    assert errors(logits, [0, 1, 2]) == wrong


@pytest.mark.parametrize("sizes", SIZES)
def test_metrics_are_sums_over_images_of_the_plain_modules(sizes: tuple[int, ...]) -> None:
    spec, theta, x, labels = material(sizes, 5, 1, batch_size=40)
    losses, wrong = stacked.metrics(params_of(spec, theta), x, labels[0], torch.float32)
    for k in range(5):
        logits = plain_mlp(sizes, spec.unflatten(theta[k]))(x[0])
        # float32 sums of 40 terms of order 1
        torch.testing.assert_close(
            losses[k], F.cross_entropy(logits, labels[0], reduction="sum"), rtol=1e-4, atol=1e-4
        )
        assert wrong[k] == (logits.argmax(1) != labels[0]).sum()


def test_one_run_of_nan_does_not_spoil_the_others() -> None:
    spec, theta, x, labels = material((9, 6, 3), 4, 2)
    clean = stacked.gradients(params_of(spec, theta), x, labels, torch.full((4,), 0.3), torch.float32)
    theta[1] = torch.nan
    spoilt = stacked.gradients(params_of(spec, theta), x, labels, torch.full((4,), 0.3), torch.float32)
    for a, b in zip(clean, spoilt, strict=True):
        assert torch.equal(a[[0, 2, 3]], b[[0, 2, 3]])
        assert not b[1].isfinite().all()
