"""Scaling: updates of unit size, metrics that the denoiser can tell apart, fitted on what it is given."""

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.training.pairs import PART_NUMBERS, Pairs, Reservoir, Runs
from generator.training.scales import STD_CHECKPOINTS, TARGET_STD, single_scale


def pairs_of(z: int, num: int = 400) -> Pairs:
    rng = seeded(0)
    start = 3 + 2 * torch.randn(num, z, generator=rng)
    update = 0.05 * torch.randn(num, z, generator=rng)
    metric = torch.rand(2, num, 1, generator=rng) + 0.1
    return Pairs(start, metric[0], start + update, metric[1])


def fitted(tiny: Task) -> tuple[Coordinates, Pairs, Scaling]:
    coordinates = Coordinates.fit(tiny, rank=3)
    pairs = pairs_of(coordinates.Z)
    return coordinates, pairs, Scaling.fit(coordinates, pairs, pairs.prompt)


def test_updates_have_unit_size_and_scale_back(tiny: Task) -> None:
    _, pairs, scaling = fitted(tiny)
    u = scaling.update(pairs.start, pairs.target)
    assert abs(float(u.square().mean()) - 1) < 1e-4  # float32 mean of 16,000 squares
    # a difference of float32 numbers of size 3, forty times smaller than they are
    torch.testing.assert_close(scaling.unscale_update(u), pairs.target - pairs.start, rtol=1e-4, atol=1e-6)


def test_start_networks_are_standardised(tiny: Task) -> None:
    coordinates, pairs, scaling = fitted(tiny)
    start = scaling.start(pairs.start)
    for name, index in coordinates.slots():
        # with 1,200 draws and more, float32
        assert abs(float(start[:, index].mean())) < 0.2, name
        assert abs(float(start[:, index].std()) - 1) < 0.2, name


def test_units_are_all_scaled_alike(tiny: Task) -> None:
    """Else permuting units would not permute what the denoiser sees."""
    coordinates, _, scaling = fitted(tiny)
    n, width = coordinates.tokens.num_units, coordinates.tokens.layers[0].width
    for scale in (scaling.start_mean, scaling.start_scale, scaling.update_scale):
        units = scale[: n * width].view(n, width)
        assert torch.equal(units, units[:1].expand(n, width))


def test_range_is_that_of_the_targets(tiny: Task) -> None:
    _, pairs, scaling = fitted(tiny)
    assert scaling.metric_range == (float(pairs.prompt.min()), float(pairs.prompt.max()))


def test_metric_features_are_finite_and_rise_with_the_metric(tiny: Task) -> None:
    _, _, scaling = fitted(tiny)
    assert scaling.views[0].log
    features = scaling.views[0].features(torch.tensor([0.05, 0.1, 0.5, 1.0, 50.0]))
    assert (features.diff(dim=0) > 0).all()
    assert (
        scaling.views[0].features(torch.tensor([-1.0, 0.0, 1e-30])).isfinite().all()
    )  # prompts that nobody can reach


def test_metrics_that_may_be_negative_have_no_logarithm(tiny: Task) -> None:
    """Returns, for example."""
    coordinates = Coordinates.fit(tiny, rank=3)
    pairs = pairs_of(coordinates.Z)
    shifted = pairs._replace(prompt=pairs.prompt - 5)
    scaling = Scaling.fit(coordinates, shifted, shifted.prompt)
    assert not scaling.views[0].log
    features = scaling.views[0].features(torch.tensor([-5.0, 0.0, 1.0]))
    assert features.isfinite().all()
    assert (features[:, 0].diff() > 0).all()


def test_parameters_that_never_change_do_not_divide_by_zero(tiny: Task) -> None:
    coordinates = Coordinates.fit(tiny, rank=3)
    pairs = pairs_of(coordinates.Z)
    still = pairs._replace(start=torch.ones_like(pairs.start), target=torch.ones_like(pairs.start))
    scaling = Scaling.fit(coordinates, still, still.prompt)
    assert scaling.start(still.start).isfinite().all()
    assert scaling.update(still.start, still.target).isfinite().all()


def test_scales_of_parts_are_those_of_the_whole_sample(tiny: Task) -> None:
    """And those that tensors of numbers say, a start network's far from 0."""
    coordinates = Coordinates.fit(tiny, rank=3)
    pairs = pairs_of(coordinates.Z)
    whole = Scaling.fit(coordinates, pairs, pairs.prompt)
    parts = (Pairs(*each) for each in zip(*(tensor.split(70) for tensor in pairs), strict=True))
    found = Scaling.fit_parts(coordinates, parts, pairs.prompt)
    assert found.views == whole.views
    for name in ("start_mean", "start_scale", "update_scale"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    fc2 = dict(coordinates.slots())["fc2.weight"]  # in no function-space coordinates: a scale of its own
    start, update = pairs.start[:, fc2], (pairs.target - pairs.start)[:, fc2]
    torch.testing.assert_close(found.start_mean[fc2[0]], start.mean())
    torch.testing.assert_close(found.start_scale[fc2[0]], start.std())
    torch.testing.assert_close(found.update_scale[fc2[0]], update.square().mean().sqrt())


def test_the_published_scale_is_of_all_numbers_of_checkpoints() -> None:
    rng = seeded(0)
    reservoir = Reservoir(20)
    z = 0.3 + 0.1 * torch.randn(20, 6, 400, generator=rng)
    reservoir.push(Runs(z, torch.rand(20, 6, 1, generator=rng)))
    drawn = list(reservoir.checkpoints(STD_CHECKPOINTS, rng=seeded(1)))
    assert max(part.numel() for part in drawn) <= PART_NUMBERS < STD_CHECKPOINTS * 400
    expected = float(torch.cat(drawn).double().std()) / TARGET_STD
    assert single_scale(reservoir, rng=seeded(1)) == pytest.approx(expected, rel=1e-9)
