"""The experiment with wrong labels, and the calibration error it reports."""

import pytest
import torch

from ckpt_factory import RunPlan
from ckpt_factory.bench.label_noise import expected_calibration_error, label_noise_experiment
from ckpt_factory.tasks import MLPClassifier


def test_calibration_error_is_the_mean_gap_over_bins_of_confidence() -> None:
    confidence = torch.tensor([0.95, 0.94, 0.55, 0.52])
    right = torch.tensor([True, False, True, True])
    logits = torch.stack([confidence.logit(), torch.zeros(4)]).unsqueeze(0)  # (1, 2 classes, 4 images)
    labels = torch.where(right, 0, 1)
    # bins of a fifteenth: 0.95 and 0.94 share one, where half is right; 0.55 and 0.52 another, all right
    expected = (2 * abs(0.5 - 0.945) + 2 * abs(1 - 0.535)) / 4
    assert expected_calibration_error(logits, labels).item() == pytest.approx(expected, abs=1e-6)


def test_a_perfect_and_certain_network_has_no_calibration_error() -> None:
    logits = 100 * torch.eye(5).unsqueeze(0)
    assert expected_calibration_error(logits, torch.arange(5)).item() == pytest.approx(0, abs=1e-6)


def test_wrong_labels_cost_accuracy_and_gamma_changes_what_is_learnt(digits: MLPClassifier) -> None:
    plan = RunPlan(num_steps=150)
    clean, noisy, tailr = (
        label_noise_experiment(digits, plan, noise, gamma, 8)
        for noise, gamma in ((0.0, 0.0), (0.4, 0.0), (0.4, 0.3))
    )
    assert clean["test_accuracy"] > noisy["test_accuracy"] + 0.02
    assert noisy["test_ece"] > 3 * clean["test_ece"], "40 % wrong labels make networks doubt what is right"
    # a standard deviation of 0.03 over runs, and a difference of 0.3
    assert tailr["test_ece"] < noisy["test_ece"] / 2, "TaiLr trusts unlikely labels less, and itself more"
