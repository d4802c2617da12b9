"""Calibration: what has to be asked for is read off what was got."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator, _digest
from generator.calibration import PATIENCE, STRETCHES, _missed, calibrate
from generator.card import model_card
from generator.conditioning import Calibration
from generator.evaluation.evaluate import training_starts
from generator.model.dit import Denoiser
from generator.sampling.samplers import Sampling, SamplingChange

from .test_artefact import TRAINING


def calibration(asked: list[float], got: list[float]) -> Calibration:
    return Calibration(torch.tensor(asked).float(), torch.tensor(got).float())


@pytest.mark.parametrize(
    ("prompt", "expected"), [(0.0, 0.0), (15.0, 1.5), (30.0, 2.5), (40.0, 3.0), (-9.0, 0.0), (99.0, 3.0)]
)
def test_what_is_asked_for_is_what_got_the_prompt(prompt: float, expected: float) -> None:
    """Of prompts that were never got, the nearest that was."""
    found = calibration([0, 1, 2, 3], [0, 10, 20, 40]).ask(torch.tensor([prompt]))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_where_several_asks_got_the_same_their_mean_is_asked_for() -> None:
    found = calibration([0, 1, 2, 6, 7], [0, 10, 10, 10, 20]).ask(torch.tensor([5.0, 10.0, 15.0]))
    torch.testing.assert_close(found, torch.tensor([1.5, 3.0, 5.0]))
    torch.testing.assert_close(
        calibration([1, 3], [5, 5]).ask(torch.tensor([5.0, 0.0])), torch.full((2,), 2.0)
    )


@pytest.fixture(scope="module")
def starts(digits: Task) -> Tensor:
    return digits.init([seeded(7, k) for k in range(3)])


def made(generator: WeightGenerator, starts: Tensor, prompt: float, **settings) -> Tensor:
    return generator.update(starts, torch.full((3,), 2.3), prompt, rng=seeded(1), **settings)


def test_prompts_are_calibrated_for_the_generators_own_sampling_alone(
    generator: WeightGenerator, starts: Tensor
) -> None:
    own = replace(generator, sampling=Sampling(steps=1, sampler="ddim"))
    asking = replace(own, calibration=calibration([0.2, 0.4, 2.0], [0.1, 0.8, 1.5]))
    assert torch.equal(made(asking, starts, 0.8), made(own, starts, 0.4))
    assert not torch.equal(made(own, starts, 0.8), made(own, starts, 0.4))
    for other in ({"steps": 2}, {"sampler": "ddpm"}):
        assert torch.equal(made(asking, starts, 0.8, **other), made(own, starts, 0.8, **other))
        changed = asking.with_sampling(SamplingChange(**other))
        assert (changed.sampling, changed.calibration) == (replace(own.sampling, **other), None)
        assert torch.equal(made(changed, starts, 0.8), made(own, starts, 0.8, **other))
    for same in (SamplingChange(), SamplingChange(steps=1, sampler="ddim"), own.sampling):
        assert asking.with_sampling(same) is asking


def test_sampling_and_calibration_are_saved(
    generator: WeightGenerator, starts: Tensor, tmp_path: Path
) -> None:
    found = replace(calibration([0.2, 0.4, 2.0], [0.1, 0.8, 1.5]), stretch=1.25)
    before = replace(generator, sampling=Sampling(steps=3, sampler="ddim"), calibration=found)
    before.save(tmp_path, training=TRAINING, card=model_card(before, TRAINING))
    loaded = WeightGenerator.load(tmp_path)
    assert loaded.sampling == before.sampling
    line = "prompts calibrated on training starts, which got 0.1 to 1.5 with updates 1.25 times as"
    assert line in (tmp_path / "README.md").read_text()
    assert torch.equal(made(loaded, starts, 0.8), made(before, starts, 0.8))


def test_a_generator_saved_before_there_was_calibration_samples_as_it_did(
    generator: WeightGenerator, tmp_path: Path
) -> None:
    generator.save(tmp_path, training=TRAINING, card=model_card(generator, TRAINING))
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["sampling"]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"fields_sha256": _digest(fields)}))
    loaded = WeightGenerator.load(tmp_path)
    assert loaded.sampling == Sampling(steps=10, sampler="ddpm")
    assert loaded.calibration is None


def test_what_was_got_is_measured_on_validation_and_made_monotone(
    generator: WeightGenerator, digits: Task, starts: Tensor
) -> None:
    own = replace(generator, sampling=Sampling(steps=1, sampler="ddim"))
    misled = replace(own, calibration=calibration([0.2, 2.0], [0.1, 1.5]))
    found = calibrate(misled, digits, starts, rng=seeded(3), num_asks=6)
    assert found is not None
    assert found.stretch in STRETCHES
    metric = digits.evaluate(starts, "validation")["loss"]
    rng, raw = seeded(3), []
    for ask in found.asked.tolist():
        longer = starts + found.stretch * (own.update(starts, metric, ask, rng=rng) - starts)
        raw.append(digits.evaluate(longer, "validation")["loss"].mean())
    assert (found.got.diff() >= 0).all()
    # pooling adjacent violators keeps the mean, and every level is a mean of neighbours
    torch.testing.assert_close(found.got.mean(), torch.stack(raw).mean())
    assert min(raw) - 1e-5 <= found.got.min() <= found.got.max() <= max(raw) + 1e-5  # rounding
    low, high = generator.scaling.metric_range
    assert metric.mean() < high, "more than starts have is not asked for"
    torch.testing.assert_close(found.asked[[0, -1]], torch.tensor([low / 2, float(metric.mean())]))


class Obedient(Denoiser):
    """Makes of each start the checkpoint of its own run whose metric is nearest to what it is asked for."""

    def __init__(self, generator: WeightGenerator, theta: Tensor, metric: Tensor):
        super().__init__(generator.model.config)
        runs, steps = theta.shape[:2]
        z = generator.coordinates.encode(theta.flatten(0, 1))
        self.starts = generator.scaling.start(z[::steps])
        updates = generator.scaling.update(z[::steps].repeat_interleave(steps, 0), z)
        self.updates = updates.view(runs, steps, -1)
        self.features = generator.scaling.views[0].features(metric.flatten())[:, 1].view(runs, steps)

    def predict(self, u_t: Tensor, t: Tensor, start: Tensor, metrics: Tensor) -> Tensor:
        own = torch.cdist(start, self.starts).argmin(1)
        step = (self.features[own] - metrics[:, 3:]).abs().argmin(1)
        return self.updates[own, step]


def test_who_does_as_asked_already_is_asked_for_what_is_prompted(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, measured = digits.evaluate, []
    monkeypatch.setattr(digits, "evaluate", lambda *args: measured.append(1) or evaluate(*args))
    rows = digits_zoo.read_unit(0)
    model = Obedient(generator, rows.theta.float(), rows.metrics["validation_loss"])
    made = replace(generator, model=model, sampling=Sampling(steps=1, sampler="ddim"))
    found = calibrate(made, digits, rows.theta[:, 0].float(), rng=seeded(3))
    assert found is not None
    assert found.stretch == 1
    assert len(measured) == 1 + (1 + PATIENCE) * 40, "no more lengths are tried than it takes"
    prompts = torch.linspace(generator.best_metric, 2.2, 10)
    assert (found.ask(prompts) - prompts).abs().max() < 0.2, "as near as checkpoints are to one another"


def test_prompts_that_are_left_as_they_are_can_be_saved(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No numbers of a file may be one and the same in memory."""
    same = "generator.calibration._missed"  # prompts as they are shall be best
    monkeypatch.setattr(same, lambda found, *_: 1.0 - torch.equal(found.asked, found.got))
    starts = digits_zoo.read_unit(0).theta[:3, 0].float()
    found = calibrate(generator, digits, starts, rng=seeded(3), num_asks=4)
    assert found is not None
    assert torch.equal(found.asked, found.got)
    replace(generator, calibration=found).save(tmp_path, training=TRAINING, card="")
    loaded = WeightGenerator.load(tmp_path).calibration
    assert loaded is not None
    torch.testing.assert_close(loaded.got, found.got, rtol=0, atol=0)


class PartOfTheWay(Denoiser):
    """Goes towards where each start's own run ended, the further the better the prompt; never quite there."""

    def __init__(self, generator: WeightGenerator, theta: Tensor, ends: Tensor, share: float):
        super().__init__(generator.model.config)
        z = generator.coordinates.encode(theta)
        self.starts = generator.scaling.start(z)
        self.updates = generator.scaling.update(z, generator.coordinates.encode(ends))
        self.best = generator.scaling.views[0].features(torch.tensor([generator.best_metric]))[0, 1]
        self.share = share

    def predict(self, u_t: Tensor, t: Tensor, start: Tensor, metrics: Tensor) -> Tensor:
        own = torch.cdist(start, self.starts).argmin(1)
        far = self.share * torch.exp(2 * (self.best - metrics[:, 3])).clamp_max(1.0)
        return self.updates[own] * far.unsqueeze(1)


@pytest.mark.parametrize(("share", "longer"), [(0.5, True), (1.0, False)])
def test_updates_too_short_for_the_best_prompts_are_made_longer(
    generator: WeightGenerator, digits: Task, digits_zoo: Zoo, share: float, longer: bool
) -> None:
    rows = digits_zoo.read_unit(0)
    theta, ends = rows.theta[:, 0].float(), rows.theta[:, -1].float()
    made = replace(
        generator,
        model=PartOfTheWay(generator, theta, ends, share),
        sampling=Sampling(steps=1, sampler="ddim"),
    )
    found = calibrate(made, digits, theta, rng=seeded(3), num_asks=20)
    assert found is not None
    best = digits.evaluate(ends, "validation")["loss"].mean()
    assert (found.stretch >= 1.5) == longer
    assert found.got.min() < best + 0.1, "prompts for what training reaches are met, or nearly"


def test_a_generator_of_broken_networks_is_not_calibrated(
    generator: WeightGenerator, digits: Task, starts: Tensor
) -> None:
    scaling = replace(
        generator.scaling, update_scale=torch.full_like(generator.scaling.update_scale, torch.nan)
    )
    assert calibrate(replace(generator, scaling=scaling), digits, starts, rng=seeded(3), num_asks=3) is None


def test_in_a_hole_nothing_is_asked_for(generator: WeightGenerator, digits: Task, starts: Tensor) -> None:
    hole = (0.8, 1.6)
    holed = replace(generator, origin=replace(generator.origin, hole=hole))
    asked = [
        found.asked
        for each in (generator, holed)
        if (found := calibrate(each, digits, starts, rng=seeded(0), num_asks=12)) is not None
    ]
    whole, without = (((each > hole[0]) & (each < hole[1])).sum() for each in asked)
    assert int(whole) >= 2
    assert not int(without)
    assert len(asked[1]) == len(asked[0]) - int(whole)


def test_broken_networks_miss_the_whole_range() -> None:
    """A length of updates that breaks nine starts of ten does not win by the tenth."""
    asked = torch.linspace(0, 1, 11)
    exact = asked.unsqueeze(1).expand(-1, 10)
    broken = exact.clone()
    broken[:, 1:] = torch.nan
    found, prompts = Calibration(asked, asked), torch.linspace(0, 1, 20)
    assert _missed(found, asked, exact, prompts) < 1e-6
    assert _missed(found, asked, broken, prompts) == pytest.approx(0.9)
    assert _missed(found, asked, exact - 0.3, prompts) == pytest.approx(0.09)


def test_training_starts_are_initialisations_of_training_runs(digits_zoo: Zoo) -> None:
    first = digits_zoo.read_unit(0).theta[:, 0].float()
    assert torch.equal(training_starts(digits_zoo, 13, 5), first[:5])
    found = training_starts(digits_zoo, 13, 99)
    assert len(found) == 13, "no held-out run is among them"
    assert torch.equal(found[: len(first)], first)
