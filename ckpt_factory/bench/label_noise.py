"""An experiment: cross-entropy against TaiLr when some of the training labels are wrong."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..plan import RunPlan
from ..tasks.vision import MLPClassifier
from ..train import train_stack


def expected_calibration_error(
    logits: Float[Tensor, "K C B"], labels: Int[Tensor, " B"], num_bins: int = 15
) -> Float[Tensor, " K"]:
    """ECE of each network (Guo et al. 2017, eq. 3): mean |accuracy - confidence| over bins of confidence."""
    confidence, predicted = logits.softmax(1).max(1)  # (K, B)
    gap = (predicted == labels).to(confidence.dtype) - confidence
    bins = (confidence * num_bins).ceil().clamp(1, num_bins).long() - 1
    sums = torch.zeros(len(logits), num_bins, dtype=confidence.dtype).scatter_add_(1, bins, gap)
    return sums.abs().sum(1) / labels.shape[0]


def label_noise_experiment(
    task: MLPClassifier, plan: RunPlan, noise: float, gamma: float, num_runs: int
) -> dict[str, Any]:
    """Test accuracy and ECE of runs with that share of wrong labels, mean and standard deviation over runs.

    Whatever gamma is, runs have the same initialisations, the same wrong labels and the same order; gamma 0
    is cross-entropy. The labels of validation and test are clean.
    """
    recipe = replace(plan, label_noise=(noise, noise), num_checkpoints=2)
    if gamma:
        recipe = replace(recipe, loss=("tailr",), gamma=(gamma, gamma))
    rows = train_stack(task, recipe, recipe.runs(range(num_runs)))
    logits, labels = task.predict(rows.theta[:, -1], "test")
    accuracy = 1 - rows.metrics["test_error"][:, -1]
    ece = expected_calibration_error(logits, labels)
    return {
        "label_noise": noise,
        "gamma": gamma,
        "test_accuracy": float(accuracy.mean()),
        "test_accuracy_std": float(accuracy.std()),
        "test_ece": float(ece.mean()),
        "test_ece_std": float(ece.std()),
        "test_loss": float(rows.metrics["test_loss"][:, -1].mean()),
    }
