"""Fine-tuning: further training is the zoo's training, at the rate that validates best."""

from dataclasses import replace

import pytest
import torch

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo
from generator.evaluation.finetune import RATES, fine_tune, nearest_of_runs, tuned
from generator.evaluation.recipe import middle_recipe, shortened, train_from

from .conftest import TRAINING_RUNS


def test_an_epoch_further_is_an_epoch_of_the_recipe(
    digits: Task, small_plan: RunPlan, digits_zoo: Zoo
) -> None:
    starts = digits_zoo.read_unit(2).theta[:3, -1]
    metrics, rates = fine_tune(digits, small_plan, starts, (0, 1), first_run=24)
    before = digits.metrics_of(starts)
    torch.testing.assert_close(metrics["test_error"][:, 0], before["test_error"])
    steps, recipe, means, ends = len(digits.examples("train")[1]) // 32, middle_recipe(small_plan, 3), {}, {}
    for rate in RATES:
        lr = 0.1 * rate
        plan = shortened(replace(recipe, lr=(lr, lr)), steps, 2)
        ends[lr] = {k: v[:, -1] for k, v in train_from(digits, plan, starts, 24).metrics.items()}
        means[lr] = float(ends[lr]["validation_loss"].mean())
    best = min(means, key=lambda lr: means[lr])
    assert rates == [None, best]
    assert torch.equal(metrics["test_loss"][:, 1], ends[best]["test_loss"])


def test_numbers_are_means_over_networks(digits: Task, small_plan: RunPlan, digits_zoo: Zoo) -> None:
    starts = digits_zoo.read_unit(2).theta[:3, 4]
    numbers, arrays = tuned("retrieved", digits, small_plan, starts, (0,), 24)
    assert arrays["finetune_epochs"].tolist() == [0]
    assert (
        numbers["finetune_retrieved_test_error"] == arrays["finetune_retrieved_test_error"].mean(0).tolist()
    )
    assert numbers["finetune_retrieved_lrs"] == [None]


@pytest.mark.parametrize("hole", [None, (0.9, 1.2)])
def test_retrieved_are_the_nearest_learned_from_one_of_each_training_run(
    digits_zoo: Zoo, hole: tuple[float, float] | None
) -> None:
    found = nearest_of_runs(digits_zoo, TRAINING_RUNS, 1.0, 4, hole)
    rows = [digits_zoo.read_unit(unit) for unit in digits_zoo.finished_units()]
    nearest = []
    for part in rows:
        for run_id, metric, theta in zip(
            part.run_ids.tolist(), part.metrics["validation_loss"], part.theta, strict=True
        ):
            gap = (metric - 1.0).abs()
            if hole is not None:
                gap[(metric > hole[0]) & (metric < hole[1])] = torch.inf
            moment = int(gap.argmin())
            if run_id < TRAINING_RUNS:
                nearest.append((abs(float(metric[moment]) - 1.0), theta[moment]))
    nearest.sort(key=lambda each: each[0])
    assert torch.equal(found, torch.stack([theta for _, theta in nearest[:4]]))
