"""Paired comparisons: the same runs, made in two ways."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def paired_difference(ours: Sequence[float], reference: Sequence[float]) -> dict[str, float | int]:
    """Mean of ours - reference over runs, its 95 % interval by Student's t, the p-value of no difference.

    Raises:
        ValueError: not the same number of runs, or fewer than two.
    """
    if len(ours) != len(reference) or len(ours) < 2:
        raise ValueError(f"got {len(ours)} and {len(reference)} runs; expected the same, two or more")
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    test: Any = stats.ttest_1samp(difference, 0.0)
    low, high = test.confidence_interval(0.95)
    return {
        "runs": len(difference),
        "reference": float(np.mean(reference)),
        "reference_std": float(np.std(reference, ddof=1)),
        "mean_difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "p_value": float(test.pvalue),
    }
