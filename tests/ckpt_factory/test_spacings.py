"""Checkpoints at random steps and spread over the metric: the steps claimed, and the range covered."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import Rows, RunPlan, train_stack
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.train import spread_over_metric

EVERY = RunPlan(
    seed=3, num_steps=60, num_checkpoints=61, spacing="uniform", lr=(0.01, 0.3), label_noise=(0.0, 0.4)
)
NUM = 8


@pytest.fixture(scope="module")
def every_step(digits: MLPClassifier) -> Rows:
    """All 61 networks of each run: what any spacing chooses from."""
    return train_stack(digits, EVERY, EVERY.runs(range(6)))


def of(rows: Rows, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """theta and metrics of each run at some of the steps 0, 1, ..., 60."""
    which = torch.arange(len(chosen)).unsqueeze(1)
    return rows.theta[which, chosen], {
        name: values.gather(1, chosen) for name, values in rows.metrics.items()
    }


@pytest.mark.parametrize("spacing", ["random", "metric", "log"])
def test_checkpoints_are_those_of_the_steps_claimed(
    digits: MLPClassifier, every_step: Rows, spacing: str
) -> None:
    plan = replace(EVERY, spacing=spacing, num_checkpoints=NUM)
    rows = train_stack(digits, plan, plan.runs(range(6)))
    assert rows.theta.shape == (6, NUM, digits.spec.D)
    theta, metrics = of(every_step, rows.steps)
    assert torch.equal(rows.theta, theta)
    for name, values in metrics.items():
        assert torch.equal(rows.metrics[name], values), name
    assert (rows.steps.diff(dim=1) > 0).all()
    assert (rows.steps[:, 0] == 0).all()
    assert (rows.steps[:, -1] == 60).all()
    assert (len(set(map(tuple, rows.steps.tolist()))) > 1) == (spacing != "log"), "chosen for each run"


def test_random_steps_are_saved_as_the_plan_says_in_a_stack_of_groups(digits: MLPClassifier) -> None:
    plan = replace(EVERY, spacing="random", num_checkpoints=NUM, group_size=3)
    rows = train_stack(digits, plan, plan.runs(range(3, 9)))
    assert rows.steps.tolist() == [plan.steps(run_id) for run_id in range(3, 9)]


def largest_gap(rows: Rows) -> Tensor:
    """Of each run: the widest part of its metric's range without a checkpoint, as a share of that range."""
    values = rows.metrics["validation_loss"].sort(1).values
    return values.diff(dim=1).amax(1) / (values[:, -1] - values[:, 0])


def test_metric_spacing_covers_the_metrics_range_better_than_log_spacing(digits: MLPClassifier) -> None:
    plans = [replace(EVERY, spacing=spacing, num_checkpoints=NUM) for spacing in ("metric", "log")]
    metric, log = (largest_gap(train_stack(digits, plan, plan.runs(range(6)))) for plan in plans)
    # even spacing would leave 1/7; single steps of SGD are wider here and there
    assert metric.mean() < 0.75 * log.mean()
    assert (metric <= log + 1e-6).all()


def test_metric_spacing_is_of_the_metric_that_is_prompted(digits: MLPClassifier) -> None:
    """Here the error, whose even levels are other steps than those of the loss."""

    class ByError(MLPClassifier):
        metric = "error"

    plan = replace(EVERY, spacing="metric", num_checkpoints=NUM)
    by_loss = train_stack(digits, plan, plan.runs(range(6)))
    by_error = train_stack(ByError(digits.data, digits.sizes), plan, plan.runs(range(6)))
    assert not torch.equal(by_loss.steps, by_error.steps)
    assert torch.equal(by_loss.theta[:, -1], by_error.theta[:, -1])


def rows_of(values: list[list[float]]) -> Rows:
    """Runs with this metric at the steps 0, 10, 20, ...; theta says which checkpoint it is."""
    metric = torch.tensor(values)
    num_runs, num_steps = metric.shape
    steps = (10 * torch.arange(num_steps)).expand(num_runs, -1)
    theta = torch.arange(num_runs * num_steps, dtype=torch.float32).view(num_runs, num_steps, 1)
    return Rows(torch.arange(num_runs), steps, theta, {"validation_loss": metric, "test_loss": -metric})


def spread(values: list[list[float]], count: int) -> Rows:
    return spread_over_metric(rows_of(values), "validation_loss", count)


def test_levels_take_their_nearest_checkpoints() -> None:
    falling = [8.0, 7.9, 7.8, 5.9, 5.8, 4.1, 3.9, 2.2, 1.0, 0.1, 0.0]
    found = spread([falling, falling[::-1]], 5)
    # levels 2, 4 and 6 between the ends 8 and 0; of 3.9 and 4.1 the first, as near
    assert found.steps[0].tolist() == [0, 30, 50, 70, 100]
    assert found.steps[1].tolist() == [0, 30, 40, 70, 100]
    assert found.theta.squeeze(-1).tolist() == [[0, 3, 5, 7, 10], [11, 14, 15, 18, 21]]
    assert torch.equal(found.metrics["test_loss"], -found.metrics["validation_loss"])
    assert found.metrics["validation_loss"][0].tolist() == pytest.approx([8.0, 5.9, 4.1, 2.2, 0.0])


def test_the_range_is_that_of_the_whole_run_not_of_its_ends() -> None:
    """A run whose best network is in the middle: levels from 0 to 4."""
    found = spread([[4.0, 3.1, 2.0, 1.1, 0.0, 1.2, 2.1]], 5)
    assert found.steps[0].tolist() == [0, 10, 20, 30, 60]
    assert spread([[2.0, 4.0, 0.0, 3.0, 1.0]], 3).steps[0].tolist() in ([0, 30, 40], [0, 10, 40], [0, 20, 40])


def test_no_checkpoint_is_taken_twice() -> None:
    rng = np.random.default_rng(0)
    runs = [[1.0] * 12, [1.0] + [0.0] * 11, rng.random(12).tolist(), [0.0] * 6 + [1.0] * 6]
    for count in range(2, 13):
        found = spread(runs, count)
        assert found.steps.shape == (4, count)
        assert (found.steps.diff(dim=1) > 0).all()
        assert (found.steps[:, 0] == 0).all()
        assert (found.steps[:, -1] == 110).all()


@pytest.mark.parametrize("lost", [torch.nan, torch.inf])
def test_diverged_runs_keep_every_nth_and_disturb_no_other(lost: float) -> None:
    falling = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    found = spread([falling, falling[:4] + [float(lost)] * 5], 5)
    assert found.steps.tolist() == [[0, 20, 40, 60, 80], [0, 20, 40, 60, 80]]
    assert torch.equal(found.steps[:1], spread([falling], 5).steps)
    assert found.finite().tolist() == [True, False]
