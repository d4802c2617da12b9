"""What analytic samplers know of a generator: measured on the right runs, kept with it, used by tensor."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.card import how_sampled
from generator.evaluation.evaluate import held_out_runs
from generator.sampling import uncertainty
from generator.sampling.analytic import Moments
from generator.sampling.diffusion import timesteps
from generator.sampling.samplers import SAMPLERS, Sampler, Sampling
from generator.sampling.trajectory import optimal_trajectory
from generator.sampling.uncertainty import measure_moments
from generator.training.pairs import Reservoir, Runs
from generator.training.reading import reservoir_of

from .conftest import TRAINING_RUNS


@pytest.fixture(scope="module")
def measured(generator: WeightGenerator, digits_zoo: Zoo) -> WeightGenerator:
    """The generator with its moments."""
    moments = measure_moments(generator, digits_zoo, num_pairs=64, seed=0, num_times=4)
    return replace(generator, moments=moments)


def test_of_a_model_that_says_nothing_they_are_those_of_the_data(
    untrained: WeightGenerator, digits_zoo: Zoo
) -> None:
    """Its error is the update u_0 itself. The second moments, E v^2 - E v_hat^2, v_hat = alpha x_t / sigma,
    are E u_0^2 (1 - alpha^2 / sigma^2): nothing, where that is below 0."""
    found = measure_moments(untrained, digits_zoo, num_pairs=1000, seed=0, num_times=4)
    assert found.times.tolist() == [0.25, 0.5, 0.75, 1.0]
    # draws of 1,000 pairs, whose squared updates differ by about their mean: 3 % each
    missed = found.covariance("extended", found.times)
    torch.testing.assert_close(missed, missed.mean(0).expand(4, -1), rtol=0.2, atol=0)
    predicted = found.covariance("analytic", found.times)
    assert not predicted[0].any()
    left = 1 - 1 / math.tan(0.5 * math.pi * 0.75) ** 2
    torch.testing.assert_close(predicted[2], left * predicted[3], rtol=0.2, atol=0)
    assert (predicted[1] < 0.2 * predicted[3]).all()
    # scales were fitted so that updates have size 1, over a layer's weight and bias together
    sizes = untrained.coordinates.group.bincount()
    for each in (missed[3], predicted[3]):
        assert abs((each * sizes).sum() / sizes.sum() - 1) < 0.3


def test_nothing_leaves_updates_more_uncertain_than_they_are_at_all(
    untrained: WeightGenerator, digits_zoo: Zoo
) -> None:
    """In pure noise second moments are E u_0^2, of one tensor a fifth more than what varies: its mean's."""
    reservoir = reservoir_of(digits_zoo, untrained.coordinates, 0, TRAINING_RUNS, 99)
    pairs = untrained.arrange(reservoir.sample(4000, rng=seeded(3)), rng=seeded(4))
    group = untrained.coordinates.group
    variance = untrained.scaling.update(pairs.start, pairs.target).var(0)
    expected = torch.zeros(4).index_add_(0, group, variance) / group.bincount()
    found = measure_moments(untrained, digits_zoo, num_pairs=1000, seed=0, num_times=1)
    # samples of 1,000 pairs and of 4,000 differ by some per cent
    torch.testing.assert_close(found.analytic[-1], expected, rtol=0.1, atol=0)


def test_the_plain_form_sees_training_runs_and_the_extended_one_half_of_the_held_out(
    untrained: WeightGenerator, digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(zoo: Zoo, coordinates: object, first: int, end: int, most: int, *more: object):
        seen.append((first, end))
        assert more == ((1.0, 2.0), ("validation_loss",))
        found = reservoir_of(zoo, untrained.coordinates, first, end, most, *more)
        z, metric, whole = found.whole_runs()
        size = 1 if first == 0 else 100  # held-out networks move by a hundred times as much
        scaled = Reservoir(len(whole))
        scaled.push(Runs(size * z[whole], metric[whole]))
        return scaled

    monkeypatch.setattr(uncertainty, "reservoir_of", spy)
    holed = replace(untrained, origin=replace(untrained.origin, hole=(1.0, 2.0)))
    moments = measure_moments(holed, digits_zoo, num_pairs=8, seed=0, num_times=2)
    assert seen == [(0, TRAINING_RUNS), (19, 24)]
    # updates have a size of about 1, and squares are measured
    assert (moments.analytic < 100).all()
    assert (moments.extended > 100).all()
    assert moments.held_out_from == 19
    knowing = replace(untrained, moments=moments)
    assert held_out_runs(digits_zoo, knowing, 99).run_ids == list(range(TRAINING_RUNS, 19))
    assert held_out_runs(digits_zoo, untrained, 99).run_ids == list(range(TRAINING_RUNS, 24))


def test_a_reservoir_holds_the_runs_it_was_asked_for(untrained: WeightGenerator, digits_zoo: Zoo) -> None:
    coordinates = untrained.coordinates
    found = reservoir_of(digits_zoo, coordinates, 5, 11, 100)
    assert len(found) == 6
    assert len(reservoir_of(digits_zoo, coordinates, 0, 24, 6)) == 6
    expected = torch.cat([digits_zoo.read_unit(0).theta[5:], digits_zoo.read_unit(1).theta[:3]])
    pairs = found.sample(200, rng=seeded(0))
    z = coordinates.encode(expected.flatten(0, 1))
    far = torch.cdist(pairs.target, z, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert (far < 1e-4).all()  # encoded in other stacks: the last digits of float32


def test_one_held_out_run_is_too_few(untrained: WeightGenerator, digits_zoo: Zoo) -> None:
    origin = replace(untrained.origin, num_training_runs=23)
    with pytest.raises(ValueError, match="has 1 held-out runs; expected at least two"):
        measure_moments(replace(untrained, origin=origin), digits_zoo, num_pairs=8, seed=0)


def test_the_same_seed_measures_the_same(measured: WeightGenerator, digits_zoo: Zoo) -> None:
    assert measured.moments is not None
    for seed, same in ((0, True), (1, False)):
        again = measure_moments(measured, digits_zoo, num_pairs=64, seed=seed, num_times=4)
        assert torch.equal(again.extended, measured.moments.extended) == same


def test_moments_are_saved_with_the_generator(
    measured: WeightGenerator, generator: WeightGenerator, tmp_path: Path
) -> None:
    measured.save(tmp_path, training={}, card="")
    loaded = WeightGenerator.load(tmp_path).moments
    assert loaded is not None
    assert measured.moments is not None
    assert loaded.held_out_from == 19
    for name, value in measured.moments.tensors().items():
        assert torch.equal(getattr(loaded, name), value) if value.ndim else True
    assert WeightGenerator.from_parts(*generator.to_parts()).moments is None


def fresh(task: Task, num: int) -> dict:
    return {"theta": task.init([seeded(5, k) for k in range(num)]), "metric": torch.full((num,), 2.3)}


@pytest.mark.parametrize("sampling", [{"sampler": "extended-ddim"}, {"trajectory": "optimal"}])
def test_a_generator_without_them_refuses_and_says_what_to_do(
    generator: WeightGenerator, digits: Task, sampling: dict
) -> None:
    words = (
        r"(sampler 'extended-ddim'|an optimal trajectory) needs to know .* measure it with `theta moments`"
    )
    with pytest.raises(ValueError, match=words):
        generator.update(**fresh(digits, 2), prompt=0.5, rng=seeded(0), **sampling)


def test_all_samplers_make_networks_each_its_own(measured: WeightGenerator, digits: Task) -> None:
    made = {}
    for name in SAMPLERS:
        made[name] = measured.update(**fresh(digits, 2), prompt=0.5, rng=seeded(0), steps=4, sampler=name)
        assert made[name].isfinite().all()
    everything = torch.stack(list(made.values())).flatten(1)
    apart = torch.pdist(everything)
    assert (apart > 0).all()


def test_every_tensor_gets_its_own_covariance_in_the_order_of_coordinates(
    measured: WeightGenerator, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def record(denoise, x: Tensor, timesteps: Tensor, *, rng: torch.Generator, covariance) -> Tensor:
        given.update(times=timesteps, covariance=covariance(torch.tensor(0.6)))
        return x

    monkeypatch.setitem(SAMPLERS, "extended-ddim", Sampler(record, "extended"))
    how = {"steps": 3, "sampler": "extended-ddim", "trajectory": "optimal"}
    measured.update(**fresh(digits, 2), prompt=0.5, rng=seeded(0), **how)
    assert measured.moments is not None
    torch.testing.assert_close(given["times"], optimal_trajectory(measured.moments, 3))
    assert not torch.equal(given["times"], timesteps(3))
    expected = measured.moments.covariance("extended", torch.tensor(0.6))
    assert len(expected) == 4
    for (_, index), value in zip(measured.coordinates.slots(), expected.tolist(), strict=True):
        assert (given["covariance"][index] == value).all()


def test_many_networks_are_sampled_a_few_at_a_time(
    measured: WeightGenerator, digits: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    handle = measured.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    given, prompt = fresh(digits, 5), torch.linspace(0.5, 1.5, 5)
    ours = measured.update(**given, prompt=prompt, rng=seeded(1), steps=3, at_once=2)
    handle.remove()
    assert seen == [2] * 6 + [1] * 3
    rng, parts = seeded(1), []
    for k in (slice(0, 2), slice(2, 4), slice(4, 5)):
        some = {name: value[k] for name, value in given.items()}
        parts.append(measured.update(**some, prompt=prompt[k], rng=rng, steps=3))
    assert torch.equal(ours, torch.cat(parts))


def test_the_card_names_an_optimal_trajectory(measured: WeightGenerator) -> None:
    sampling = Sampling(steps=3, sampler="extended-ddpm", trajectory="optimal")
    assert how_sampled(replace(measured, sampling=sampling)).startswith(
        "extended-ddpm, 3 steps on an optimal trajectory"
    )
    assert sampling.needs_moments
    assert not Sampling().needs_moments
    assert isinstance(measured.moments, Moments)
