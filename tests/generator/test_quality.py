"""Quality of samplers: distances of weights know shift, spread and dependence, and no order of units."""

import math
from dataclasses import replace

import pytest
import torch

from ckpt_factory import ParamSpec, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.conditioning import Calibration
from generator.evaluation.evaluate import held_out_runs, prompt_alignment, prompt_grid
from generator.sampling.quality import sampler_quality, sliced_wasserstein, weight_distances
from generator.sampling.samplers import Sampling, SamplingChange
from generator.sampling.uncertainty import measure_moments

SPEC = ParamSpec(("weight", "bias"), ((4, 3), (4,)))


def normal(num: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(num, size, generator=seeded(seed))


def test_the_distance_of_shifted_and_of_widened_gaussians_is_the_closed_form() -> None:
    x = normal(4000, 1, 0)
    # W_1 of N(m, 1) and N(0, 1) is m; of N(0, s^2) and N(0, 1) it is (s - 1) E |x|
    assert sliced_wasserstein(x + 0.5, x, rng=seeded(1)) == pytest.approx(0.5 / float(x.std()), rel=1e-4)
    expected = 2 * float(x.abs().mean()) / float(x.std())
    assert sliced_wasserstein(3 * x, x, rng=seeded(1)) == pytest.approx(expected, rel=1e-4)
    # of two samples of one distribution about 1 / sqrt(N)
    assert sliced_wasserstein(normal(4000, 1, 2), x, rng=seeded(1)) < 3 / math.sqrt(4000)


def test_directions_see_what_coordinates_one_by_one_do_not() -> None:
    x = normal(4000, 2, 0)
    together = x[:, :1].expand(-1, 2)  # each coordinate is as before, but both are the same
    assert sliced_wasserstein(together, x, rng=seeded(1)) > 0.2
    assert sliced_wasserstein(normal(4000, 2, 3), x, rng=seeded(1)) < 3 / math.sqrt(4000)


def test_distances_are_those_of_the_tensors_whatever_the_order_of_their_rows() -> None:
    trained = normal(500, SPEC.D, 0)
    params = SPEC.unflatten(normal(500, SPEC.D, 1))
    wide = SPEC.flatten({"weight": params["weight"], "bias": 2 * params["bias"]})
    found = weight_distances(SPEC, wide, trained)
    assert found["weight"]["wasserstein"] < 0.1
    assert found["bias"]["wasserstein"] > 0.5
    assert found["weight"]["variance"] == pytest.approx(1, abs=0.1)
    assert found["bias"]["variance"] == pytest.approx(4, abs=0.5)
    turned = SPEC.flatten({"weight": params["weight"].flip(1), "bias": 2 * params["bias"].flip(1)})
    for name, each in weight_distances(SPEC, turned, trained).items():
        assert each == pytest.approx(found[name], rel=1e-4)  # sums in another order


def test_every_sampling_is_measured_on_held_out_starts(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo
) -> None:
    moments = measure_moments(generator, digits_zoo, num_pairs=16, seed=0, num_times=4)
    knowing = replace(generator, moments=moments)
    held_out = held_out_runs(digits_zoo, knowing, 3)
    samplings = [
        Sampling(steps=1, sampler="ddim"),
        Sampling(steps=2, sampler="extended-ddpm", trajectory="optimal"),
    ]
    flat = Calibration(torch.tensor([0.5, 0.6]), torch.tensor([1.0, 2.0]))  # all prompts would be one
    calibrated = replace(knowing.with_sampling(samplings[0]), calibration=flat)
    first, second = sampler_quality(calibrated, digits, held_out, samplings, num_prompts=4)
    assert (first["sampler"], first["evaluations"], first["broken"]) == ("ddim", 1, 0)
    assert (second["trajectory"], second["evaluations"]) == ("optimal", 2)
    one_step = knowing.with_sampling(SamplingChange(steps=1, sampler="ddim"))
    grid = prompt_grid(one_step, digits, held_out.theta[:, 0], seed=0, num_prompts=4)
    alignment = prompt_alignment(grid["prompts"], grid["test_loss"])
    assert first["prompt_alignment"] == pytest.approx(float(alignment.mean()))
    assert set(first["tensors"]) == set(digits.spec.names)
    mean = sum(each["wasserstein"] for each in first["tensors"].values()) / 4
    assert first["wasserstein"] == pytest.approx(mean)
    assert first["networks_per_s"] > 0


def test_held_out_networks_themselves_are_at_no_distance(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And networks that are broken are counted, and compared with nothing."""
    held_out = held_out_runs(digits_zoo, generator, 3)
    metrics = {name: values[:, [7, 3]].clone() for name, values in held_out.metrics.items()}
    theta = held_out.theta[:, [7, 3]].clone()
    metrics["validation_loss"][2, 1], theta[2, 1] = torch.nan, torch.nan
    grid = metrics | {"theta": theta, "prompts": metrics["test_loss"], "networks_per_s": 1.0}
    monkeypatch.setattr("generator.sampling.quality.prompt_grid", lambda *given, **more: grid)
    (found,) = sampler_quality(generator, digits, held_out, [Sampling()], num_prompts=2)
    assert found["wasserstein"] == 0
    assert found["broken"] == 1
    assert {each["variance"] for each in found["tensors"].values()} == {1.0}
