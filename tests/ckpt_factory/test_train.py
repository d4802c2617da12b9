"""train_stack: K runs in lock-step are K ordinary trainings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import RunPlan, RunSettings, make, train_stack
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import Sampler, Variation, seeded
from ckpt_factory.train import Rows

from .plain import plain_training

PLAN = RunPlan(
    seed=3,
    num_steps=40,
    batch_size=(32,),
    lr=(0.03, 0.3),
    weight_decay=(1e-4, 1e-2),
    init_scale=(0.5, 2.0),
    num_checkpoints=6,
)


def runs_of(plan: RunPlan, num: int) -> list[RunSettings]:
    return [plan.run(i) for i in range(num)]


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_stack_equals_plain_pytorch_trainings(digits: MLPClassifier, group_size: int) -> None:
    plan = replace(PLAN, group_size=group_size)
    runs = runs_of(plan, 4)
    assert len({run.lr for run in runs}) == 4
    rows = train_stack(digits, plan, runs)
    assert rows.run_ids.tolist() == [0, 1, 2, 3]
    assert rows.steps.tolist() == [plan.steps()] * 4
    for k, run in enumerate(runs):
        # float32 rounding, amplified along 40 steps; an update moves parameters by 1e-2
        torch.testing.assert_close(rows.theta[k], plain_training(digits, plan, run), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("batch_size", [400, 1077])
def test_a_second_epoch_equals_plain_pytorch_too(digits: MLPClassifier, batch_size: int) -> None:
    plan = RunPlan(num_steps=6, batch_size=(batch_size,), num_checkpoints=7)
    rows = train_stack(digits, plan, runs_of(plan, 2))
    for k, run in enumerate(runs_of(plan, 2)):
        # float32 rounding along 6 steps
        torch.testing.assert_close(rows.theta[k], plain_training(digits, plan, run), rtol=1e-4, atol=1e-5)


def test_a_stack_equals_its_single_runs(digits: MLPClassifier) -> None:
    rows = train_stack(digits, PLAN, runs_of(PLAN, 5))
    for k, run in enumerate(runs_of(PLAN, 5)):
        single = train_stack(digits, PLAN, [run])
        # matrix products of another shape sum in another order: float32 rounding, 40 steps long
        torch.testing.assert_close(rows.theta[k], single.theta[0], rtol=1e-3, atol=2e-4)
        for name, values in rows.metrics.items():
            assert (values[k] - single.metrics[name][0]).abs().max() < 5e-3, name


def test_the_same_stack_is_bit_identical_again(digits: MLPClassifier) -> None:
    first, second = (train_stack(digits, PLAN, runs_of(PLAN, 3)) for _ in range(2))
    assert torch.equal(first.theta, second.theta)
    assert all(torch.equal(values, second.metrics[name]) for name, values in first.metrics.items())


def test_quadratic_has_the_closed_form() -> None:
    plan = replace(PLAN, schedule="constant", momentum=(0.0, 0.0), num_steps=30)
    task, runs = make("quadratic-v0"), runs_of(plan, 4)
    start = task.init(plan.init_rngs(runs)).double().numpy()
    curvature = np.linspace(0.1, 1.0, 8)
    rows = train_stack(task, plan, runs)
    for k, run in enumerate(runs):
        for s, step in enumerate(rows.steps[k].tolist()):
            expected = run.init_scale * start[k] * (1 - run.lr * (curvature + run.weight_decay)) ** step
            # 30 float32 multiplications
            np.testing.assert_allclose(rows.theta[k, s].numpy(), expected, rtol=1e-5, atol=1e-6)
            validation = 0.5 * (curvature * expected**2).sum()
            test = 0.5 * (curvature * (expected - 0.1) ** 2).sum()
            metrics = {name: values[k, s] for name, values in rows.metrics.items()}
            np.testing.assert_allclose(metrics["validation_loss"], validation, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(metrics["test_loss"], test, rtol=1e-4, atol=1e-7)


class SameStart(MLPClassifier):
    """Every run begins at the same network: then only the batches tell runs apart."""

    def init(self, rngs: Sequence[torch.Generator]) -> Tensor:
        return super().init([seeded(7) for _ in rngs])


def test_runs_of_a_group_share_batches_and_groups_do_not(digits: MLPClassifier) -> None:
    task = SameStart(digits.data, digits.sizes)
    plan = RunPlan(num_steps=5, num_checkpoints=2, group_size=3)
    last = train_stack(task, plan, runs_of(plan, 6)).theta[:, -1]
    for k in (1, 2):
        # the same numbers at another place of a matrix product: float32 rounding, five steps long
        torch.testing.assert_close(last[k], last[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(last[3 + k], last[3], rtol=1e-4, atol=1e-6)
    assert (last[3] - last[0]).abs().max() > 1e-3


@pytest.mark.parametrize("chosen", [[0, 1, 2], [1, 2], [0, 2, 1, 3], [0, 3]])
def test_a_stack_is_whole_groups_in_sequence(digits: MLPClassifier, chosen: list[int]) -> None:
    plan = replace(PLAN, group_size=2)
    with pytest.raises(ValueError, match="whole groups of 2 runs"):
        train_stack(digits, plan, [plan.run(i) for i in chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_metrics_are_those_of_the_parameters_as_stored(
    digits: MLPClassifier, dtype: torch.dtype
) -> None:
    runs = runs_of(PLAN, 3)
    full, rows = train_stack(digits, PLAN, runs), train_stack(digits, PLAN, runs, dtype=dtype)
    assert rows.theta.dtype == dtype
    assert torch.equal(rows.theta, full.theta.to(dtype))  # rounding is for storage: training is not affected
    for s in range(PLAN.num_checkpoints):
        for split in ("validation", "test"):
            for name, values in digits.evaluate(rows.theta[:, s].float(), split).items():
                assert torch.equal(rows.metrics[f"{split}_{name}"][:, s], values)
        if dtype != torch.float32:
            name = "validation_loss"
            assert not torch.equal(rows.metrics[name][:, s], full.metrics[name][:, s])


def test_a_diverging_run_stays_non_finite_and_disturbs_no_other(digits: MLPClassifier) -> None:
    runs = runs_of(PLAN, 4)
    bomb = [*runs[:1], replace(runs[1], lr=1e30), *runs[2:]]
    calm, wild = train_stack(digits, PLAN, runs), train_stack(digits, PLAN, bomb)
    finite = (wild.theta[1].isfinite().all(-1) & wild.metrics["test_loss"][1].isfinite()).tolist()
    assert finite[0]
    assert not finite[-1]
    assert finite == sorted(finite, reverse=True)  # once lost, it stays lost
    assert wild.finite().tolist() == [True, False, True, True]
    for k in (0, 2, 3):
        assert torch.equal(calm.theta[k], wild.theta[k])
        assert all(torch.equal(calm.metrics[name][k], wild.metrics[name][k]) for name in calm.metrics)


def test_a_sum_that_overflows_is_looked_at_again() -> None:
    """Finiteness is told from sums; those of large numbers overflow where all of their terms are finite."""
    theta = torch.full((4, 3, 5), 1e38)  # a row sums to 5e38, float32 ends at 3.4e38
    theta[1, 2, 4], theta[2, 0, 0] = torch.nan, torch.inf
    rows = Rows(torch.arange(4), torch.zeros(4, 3, dtype=torch.int64), theta, {"loss": torch.ones(4, 3)})
    rows.metrics["loss"][3, 1] = torch.nan
    assert rows.finite().tolist() == [True, False, False, False]


def test_the_sampler_sees_the_parameters_of_its_step(digits: MLPClassifier) -> None:
    """What a task whose batch is a rollout of the policies needs."""
    seen: list[Tensor] = []

    class Watching(MLPClassifier):
        def sampler(
            self, rngs: Sequence[torch.Generator], batch_size: int, variation: Variation | None = None
        ) -> Sampler:
            inner = super().sampler(rngs, batch_size, variation)

            def next_batch(params: Mapping[str, Tensor]):
                seen.append(self.spec.flatten(params))
                return inner(params)

            return next_batch

    plan = RunPlan(num_steps=4, num_checkpoints=5)
    rows = train_stack(Watching(digits.data, digits.sizes), plan, runs_of(plan, 2))
    assert len(seen) == 4
    for s, theta in enumerate(seen):
        assert torch.equal(rows.theta[:, s], theta)


def test_rows_are_not_overwritten_by_later_steps(digits: MLPClassifier) -> None:
    """Not in the run, whose first row is still its initialisation, and not by the next stack of the task."""
    runs = runs_of(PLAN, 2)
    rows = train_stack(digits, PLAN, runs)
    scale = torch.tensor([[run.init_scale] for run in runs])
    assert torch.equal(rows.theta[:, 0], digits.init(PLAN.init_rngs(runs)) * scale)
    before = rows.theta.clone()
    train_stack(digits, PLAN, runs_of(PLAN, 2)[:1])
    assert torch.equal(rows.theta, before)


def test_training_goes_on_from_given_networks(digits: MLPClassifier) -> None:
    """With a constant rate and without momentum two halves are a whole, but for the batches they see."""
    plan = replace(PLAN, schedule="constant", num_steps=6, num_checkpoints=3, momentum=(0.0, 0.0))
    runs = runs_of(plan, 3)
    first = train_stack(digits, plan, runs)
    again = train_stack(digits, plan, runs, starts=first.theta[:, 0])
    assert torch.equal(again.theta, first.theta)
    further = train_stack(digits, plan, runs, starts=first.theta[:, -1])
    assert torch.equal(further.theta[:, 0], first.theta[:, -1])
    assert not torch.equal(further.theta[:, -1], first.theta[:, -1])
    assert (further.metrics["validation_loss"][:, -1] < first.metrics["validation_loss"][:, 0]).all()


@pytest.mark.parametrize("spacing", ["log", "metric"])
def test_progress_is_told_up_to_the_end_and_changes_nothing(digits: MLPClassifier, spacing: str) -> None:
    plan = replace(PLAN, spacing=spacing, optimizer=("sgd", "lion"), block_size=2)
    told: list[float] = []
    rows, silent = (
        train_stack(digits, plan, runs_of(plan, 4), progress=each) for each in (told.append, None)
    )
    assert len(told) > 2 * PLAN.num_steps
    assert told == sorted(told)
    assert told[0] < 0.01
    assert told[-1] == 1
    assert rows.theta.equal(silent.theta)
    assert all(values.equal(silent.metrics[name]) for name, values in rows.metrics.items())
