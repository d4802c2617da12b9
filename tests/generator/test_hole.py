"""The hole test: what lies in the hole is never learned from, and what is made inside it is counted."""

import dataclasses
import json

import pytest
import torch

from generator.artefact import Origin
from generator.training.hole import check_hole, inside, outside, without_hole
from generator.training.pairs import Reservoir, Runs

HOLE = (0.3, 0.7)


def runs_of(metric: torch.Tensor) -> Runs:
    """Networks whose only coordinate is their metric."""
    return Runs(metric.unsqueeze(-1).clone(), metric.unsqueeze(-1))


def test_no_pair_begins_or_ends_in_the_hole() -> None:
    metric = torch.rand(50, 12, generator=torch.Generator().manual_seed(0)).sort(1, descending=True).values
    reservoir = Reservoir(50)
    reservoir.push(without_hole(runs_of(metric), HOLE))
    pairs = reservoir.sample(5000, rng=torch.Generator().manual_seed(1))
    for values in (pairs.start_metric, pairs.prompt, pairs.start[:, 0], pairs.target[:, 0]):
        assert not inside(values, HOLE).any()
        assert (values <= HOLE[0]).any()
        assert (values >= HOLE[1]).any()
    assert torch.equal(pairs.start, pairs.start_metric)
    assert torch.equal(pairs.target, pairs.prompt)


def test_what_is_left_keeps_its_order_and_spreads_evenly() -> None:
    metric = torch.tensor([[0.9, 0.8, 0.6, 0.5, 0.4, 0.2]])
    found = without_hole(runs_of(metric), HOLE).metric.squeeze(2)
    assert torch.equal(found, torch.tensor([[0.9, 0.9, 0.8, 0.8, 0.2, 0.2]]))
    untouched = torch.tensor([[0.9, 0.8, 0.7, 0.3, 0.2, 0.1]])  # its edges are no part of a hole
    assert torch.equal(without_hole(runs_of(untouched), HOLE).metric.squeeze(2), untouched)


def test_a_run_altogether_in_the_hole_teaches_nothing() -> None:
    metric = torch.tensor([[0.6, 0.5, 0.4], [0.9, 0.5, 0.1]])
    found = without_hole(runs_of(metric), HOLE)
    assert found.metric[0].isnan().all()
    reservoir = Reservoir(2)
    reservoir.push(found)
    assert set(reservoir.sample(99, rng=torch.Generator().manual_seed(0)).prompt[:, 0].tolist()) <= {
        float(torch.tensor(0.9)),
        float(torch.tensor(0.1)),
    }


def test_a_run_that_diverges_is_usable_up_to_there() -> None:
    metric = torch.tensor([[0.9, 0.5, 0.2, torch.nan]])
    found = without_hole(runs_of(metric), HOLE).metric.squeeze(2)
    assert found[0, :3].tolist() == pytest.approx([0.9, 0.9, 0.2])
    assert found[0, 3].isnan()


def test_no_hole_changes_nothing() -> None:
    runs = runs_of(torch.rand(3, 5))
    assert without_hole(runs, None) is runs
    assert outside({"validation_loss": runs.metric[0, :, 0]}, "validation_loss", None).keys() == {
        "validation_loss"
    }


def test_columns_lose_the_checkpoints_in_the_hole() -> None:
    columns = {"validation_loss": torch.tensor([0.1, 0.5, 0.9]), "test_loss": torch.tensor([0.5, 0.2, 0.8])}
    found = outside(columns, "validation_loss", HOLE)
    assert torch.equal(found["test_loss"], torch.tensor([0.5, 0.8]))


@pytest.mark.parametrize("hole", [(2.0, 3.0), (0.0, 0.5), (0.5, 2.0), (0.41, 0.42)])
def test_a_hole_that_is_none_is_refused(hole: tuple[float, float]) -> None:
    metric = torch.tensor([0.1, 0.4, 0.5, 0.9])
    with pytest.raises(ValueError, match=r"of 4 training checkpoints; expected some"):
        check_hole(metric, hole)
    check_hole(metric, (0.2, 0.8))
    check_hole(metric, None)


def test_origin_keeps_the_hole() -> None:
    origin = Origin(
        task="t", prompted="validation_loss", objective="min", zoo_sha256="", num_training_runs=1, hole=HOLE
    )
    fields = json.loads(json.dumps(dataclasses.asdict(origin)))
    assert Origin.from_fields(fields) == origin
    del fields["hole"]
    assert Origin.from_fields(fields).hole is None
