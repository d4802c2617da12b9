"""Starts unlike the zoo's: made as they are called, prompted again and again."""

import pytest
import torch

from ckpt_factory import ParamSpec
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.artefact import WeightGenerator
from generator.evaluation.starts import STARTS, recursive_curves
from generator.sampling.samplers import SamplingChange


def start(task: MLPClassifier, kind: str, seed: int = 0) -> dict[str, torch.Tensor]:
    theta = task.init([seeded(3)])[0]
    return task.spec.unflatten(STARTS[kind](task.spec, theta, seeded(seed)))


def test_scaled_starts_are_the_zoos_times_a_factor(deep: MLPClassifier) -> None:
    own = start(deep, "own")
    for kind, factor in (("half", 0.5), ("double", 2.0)):
        for name, value in start(deep, kind).items():
            assert torch.equal(value, factor * own[name])
    assert torch.equal(deep.spec.flatten(own), deep.init([seeded(3)])[0])


def test_orthogonal_starts_have_orthonormal_rows_or_columns(deep: MLPClassifier) -> None:
    params = start(deep, "orthogonal")
    for name in ("fc1.weight", "fc2.weight", "fc3.weight"):
        weight = params[name]
        products = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(products, 2 * torch.eye(len(products)))
    assert not params["fc1.bias"].any()


def test_uniform_starts_fill_glorots_range(deep: MLPClassifier) -> None:
    weights = torch.cat([start(deep, "uniform", seed)["fc1.weight"].flatten() for seed in range(20)])
    bound = (6 / (6 + 5)) ** 0.5
    assert 0.97 * bound < float(weights.abs().max()) <= bound  # of 600 draws
    assert abs(float(weights.square().mean()) / (bound**2 / 3) - 1) < 0.1  # their variance, of 600 draws


def test_parameters_that_are_no_layer_stay() -> None:
    """The log standard deviations of a policy."""
    spec = ParamSpec(("log_std", "fc.weight", "fc.bias"), ((2,), (3, 2), (3,)))
    theta = torch.arange(11.0)
    for kind in ("orthogonal", "uniform"):
        params = spec.unflatten(STARTS[kind](spec, theta, seeded(0)))
        assert params["log_std"].tolist() == [0.0, 1.0]
        assert params["fc.bias"].tolist() == [0.0] * 3
        assert not torch.equal(params["fc.weight"], theta[2:8].view(3, 2))


def test_curves_begin_at_the_start_and_are_measured_after_each_update(
    generator: WeightGenerator, digits: MLPClassifier
) -> None:
    theta = digits.init([seeded(9, k) for k in range(3)])
    one_step = generator.with_sampling(SamplingChange(steps=1))
    curves = recursive_curves(one_step, digits, theta, "half", seed=0, updates=3)
    assert set(curves) == {"test_loss", "test_error"}
    assert curves["test_loss"].shape == (3, 4)
    # another number of networks in the products: float32 rounding
    torch.testing.assert_close(curves["test_loss"][:, 0], digits.evaluate(0.5 * theta, "test")["loss"])
    again, other = (
        recursive_curves(one_step, digits, theta, "half", seed=seed, updates=1)["test_loss"]
        for seed in (0, 1)
    )
    assert torch.equal(again[:, 1], curves["test_loss"][:, 1])
    assert not torch.equal(other[:, 1], again[:, 1])


@pytest.mark.parametrize("kind", STARTS)
def test_every_kind_of_start_is_finite_and_has_a_curve(
    kind: str, generator: WeightGenerator, digits: MLPClassifier
) -> None:
    theta = digits.init([seeded(9)])
    one_step = generator.with_sampling(SamplingChange(steps=1))
    curve = recursive_curves(one_step, digits, theta, kind, seed=0, updates=1)["test_loss"]
    assert curve.isfinite().all()
