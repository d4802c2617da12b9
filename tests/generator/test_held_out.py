"""The held-out loss: 1 for no update, always on the same pairs, in units that do not depend on the model."""

import dataclasses

import pytest
import torch

from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.training.held_out_loss import HeldOutLoss

from .conftest import TRAINING_RUNS


def loss_of(zoo: Zoo, generator: WeightGenerator, **changes: object) -> HeldOutLoss:
    unit = generator.scaling.update_scale
    return dataclasses.replace(HeldOutLoss.of_zoo(zoo, generator, TRAINING_RUNS, 300, unit), **changes)


def test_no_update_costs_the_size_of_the_held_out_updates(
    digits_zoo: Zoo, untrained: WeightGenerator
) -> None:
    loss = loss_of(digits_zoo, untrained)
    u = untrained.scaling.update(loss.pairs.start, loss.pairs.target)
    assert loss(untrained.model) == pytest.approx(float(u.square().mean()), rel=1e-5)  # float32 sums


def test_it_is_the_same_each_time_and_tells_models_apart(
    digits_zoo: Zoo, untrained: WeightGenerator, generator: WeightGenerator
) -> None:
    loss, again = loss_of(digits_zoo, untrained), loss_of(digits_zoo, untrained)
    first = loss(generator.model)
    assert first == loss(generator.model) == again(generator.model)
    assert first > loss(untrained.model), "random updates are worse than none"


def test_its_pairs_are_of_held_out_runs_alone(digits_zoo: Zoo, untrained: WeightGenerator) -> None:
    loss = loss_of(digits_zoo, untrained)
    held_out = torch.cat(
        [
            rows.metrics["validation_loss"][rows.run_ids >= TRAINING_RUNS].flatten()
            for rows in map(digits_zoo.read_unit, range(3))
        ]
    )
    assert torch.isin(loss.pairs.prompt, held_out).all()
    assert torch.isin(loss.pairs.start_metric, held_out).all()


def test_units_twice_as_small_make_it_four_times_as_large(
    digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    loss = loss_of(digits_zoo, generator)
    finer = dataclasses.replace(loss, unit=loss.unit / 2)
    assert finer(generator.model) == pytest.approx(4 * loss(generator.model), rel=1e-5)  # float32 sums


def test_a_zoo_without_held_out_runs_is_refused(digits_zoo: Zoo, untrained: WeightGenerator) -> None:
    with pytest.raises(ValueError, match=r"no finished held-out runs \(ids from 24\)"):
        HeldOutLoss.of_zoo(digits_zoo, untrained, 24, 10, untrained.scaling.update_scale)
