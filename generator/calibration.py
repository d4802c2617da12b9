"""Calibration: what a generator has to be asked for, so that its networks do as they are prompted.

A denoiser's guess is a mean over the networks that fit, and falls short of a prompt in a way that is much the
same for all starts: asked for a return of 400, it makes 300. Networks made from training initialisations,
measured on the validation split, say by how much; held-out runs and the test split have no part in it.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

from ckpt_factory import Task

from .artefact import WeightGenerator
from .conditioning import Calibration

BEYOND = 0.25
"""Share of the metric's range that is asked for beyond the best there is."""


def calibrate(
    generator: WeightGenerator,
    task: Task,
    theta: Float[Tensor, "N D"],
    *,
    rng: torch.Generator,
    num_asks: int = 40,
) -> Calibration | None:
    """What the generator, with the sampling that is its own, has to be asked for.

    Every start network in `theta`, a training initialisation, is asked for metrics from the worst of the zoo
    to beyond the best, in even steps of returns or even ratios of losses; the mean that is achieved for each
    is made monotone. None if all networks made are broken, whatever is asked for.
    """
    plain = replace(generator, calibration=None)
    metric = task.evaluate(theta, "validation")[generator.metric]
    asked, got = _asks(generator, num_asks), []
    for ask in asked.tolist():
        made = plain.update(theta, metric, ask, rng=rng)
        achieved = task.evaluate(made, "validation")[generator.metric]
        got.append(float(achieved[achieved.isfinite()].mean()))
    kept = [i for i, value in enumerate(got) if value == value]
    if len(kept) < 2:
        return None
    levels = isotonic_regression([got[i] for i in kept]).x
    return Calibration(asked[kept], torch.from_numpy(levels).float())


def _asks(generator: WeightGenerator, num: int) -> Float[Tensor, " num"]:
    low, high = generator.scaling.metric_range
    if generator.origin.objective == "max":
        return torch.linspace(low, high + BEYOND * (high - low), num)
    if low > 0:
        return (0.5 * low) * (2 * high / low) ** torch.linspace(0, 1, num)
    return torch.linspace(low - BEYOND * (high - low), high, num)
