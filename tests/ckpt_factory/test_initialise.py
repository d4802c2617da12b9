"""Initialisations: every rule has the variance, shape and zeros of its paper."""

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from ckpt_factory import MLP, ParamSpec
from ckpt_factory.initialise import initialise
from ckpt_factory.tasks.base import seeded

DENSE = ParamSpec.of_module(MLP((200, 50, 100)))
CONV = ParamSpec(("conv.weight", "conv.bias"), ((32, 16, 3, 3), (32,)))
RULES = ["kaiming", "xavier", "orthogonal"]


def made(spec: ParamSpec, rule: str) -> dict[str, Tensor]:
    return spec.unflatten(initialise(torch.ones(spec.D), spec, rule, rng=seeded(0)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spec", [DENSE, CONV])
def test_biases_are_zero_and_matrices_are_not(spec: ParamSpec, rule: str) -> None:
    for name, value in made(spec, rule).items():
        assert (value == 0).all() == name.endswith("bias"), name


@pytest.mark.parametrize(
    ("spec", "name", "fan_in"),
    [(DENSE, "fc1.weight", 200), (DENSE, "fc2.weight", 50), (CONV, "conv.weight", 16 * 9)],
)
def test_kaiming_is_normal_with_variance_2_over_fan_in(spec: ParamSpec, name: str, fan_in: int) -> None:
    values = made(spec, "kaiming")[name].flatten() * (fan_in / 2) ** 0.5
    assert kstest(values.numpy(), "norm").pvalue > 1e-3  # one fixed sample: not a matter of luck
    # of n = 4608 values and more, a standard deviation is known to 1 / sqrt(2 n) = 1 %
    assert abs(values.std() - 1) < 0.03


@pytest.mark.parametrize(
    ("spec", "name", "fans"),
    [(DENSE, "fc1.weight", 250), (DENSE, "fc2.weight", 150), (CONV, "conv.weight", (16 + 32) * 9)],
)
def test_xavier_is_uniform_within_the_root_of_6_over_both_fans(spec: ParamSpec, name: str, fans: int) -> None:
    values = made(spec, "xavier")[name].flatten() / (6 / fans) ** 0.5
    assert values.abs().max() <= 1
    assert kstest((values.numpy() + 1) / 2, "uniform").pvalue > 1e-3  # as above


@pytest.mark.parametrize("rule", ["kaiming", "xavier"])
def test_variances_are_those_of_torchs_own_initialisation(rule: str) -> None:
    """An oracle with rules of its own for the fans of a convolution."""
    torch.manual_seed(0)
    ours = made(CONV, rule)["conv.weight"]
    theirs = torch.empty_like(ours)
    if rule == "kaiming":
        nn.init.kaiming_normal_(theirs, nonlinearity="relu")
    else:
        nn.init.xavier_uniform_(theirs)
    assert abs(ours.std() / theirs.std() - 1) < 0.04  # two standard deviations known to 1 % each


@pytest.mark.parametrize(
    ("spec", "name", "shape"),
    [
        (DENSE, "fc1.weight", (50, 200)),
        (DENSE, "fc2.weight", (100, 50)),
        (CONV, "conv.weight", (32, 144)),
        (ParamSpec(("square.weight",), ((6, 6),)), "square.weight", (6, 6)),
    ],
)
def test_orthogonal_has_orthonormal_rows_or_columns_times_sqrt_2(
    spec: ParamSpec, name: str, shape: tuple[int, int]
) -> None:
    matrix = made(spec, "orthogonal")[name].reshape(shape)
    short = matrix if shape[0] <= shape[1] else matrix.T
    # float32 rounding of a QR decomposition of order 200
    torch.testing.assert_close(short @ short.T, 2 * torch.eye(len(short)), rtol=0, atol=1e-5)


def test_orthogonal_prefers_no_direction() -> None:
    """A plain QR decomposition would: its r has a positive or negative diagonal, always."""
    spec = ParamSpec(("weight",), ((3, 3),))
    own = torch.zeros(9)
    matrices = [initialise(own, spec, "orthogonal", rng=seeded(k)).view(3, 3) for k in range(200)]
    diagonal = torch.stack([matrix.diagonal() for matrix in matrices])
    # entries of a random orthonormal 3x3 matrix have variance 1/3, here times 2: their mean is known to 0.06
    assert diagonal.mean(0).abs().max() < 0.25


@pytest.mark.parametrize("rule", RULES)
def test_a_network_is_a_function_of_its_generator(rule: str) -> None:
    first, again, other = (initialise(torch.zeros(DENSE.D), DENSE, rule, rng=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (DENSE.D,)
    assert first.dtype == torch.float32


@pytest.mark.parametrize(("name", "shape"), [("norm.weight", (16,)), ("scale", ()), ("w", (8,))])
def test_what_is_neither_matrix_nor_bias_stays_as_the_task_has_it(name: str, shape: tuple[int, ...]) -> None:
    spec = ParamSpec((name, "fc.weight", "fc.bias"), (shape, (4, 3), (4,)))
    own = torch.randn(spec.D, generator=seeded(3))
    found, before = spec.unflatten(initialise(own, spec, "kaiming", rng=seeded(0))), spec.unflatten(own)
    assert torch.equal(found[name], before[name])
    assert not found["fc.bias"].any()
    alone = ParamSpec(("fc.weight",), ((4, 3),))
    assert torch.equal(
        found["fc.weight"].flatten(), initialise(own[:12], alone, "kaiming", rng=seeded(0))
    )  # what is left out draws nothing


def test_a_rule_without_a_matrix_is_refused() -> None:
    """It would do nothing but put biases to 0."""
    spec = ParamSpec(("scale", "bias"), ((), (3,)))
    with pytest.raises(ValueError, match="init 'xavier' is a rule for matrices; of scale, bias none is one"):
        initialise(torch.ones(4), spec, "xavier", rng=seeded(0))
