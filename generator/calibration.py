"""Calibration: what a generator has to be asked for, so that its networks do as they are prompted.

A denoiser's guess is a mean over the networks that fit. It falls short of a prompt in a way that is much the
same for all starts, asked for a return of 400 it makes 300, and does not go as far as each of those networks
does. Networks made from training initialisations, measured on the validation split, say by how much; held-out
runs and the test split have no part in it.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from scipy.optimize import isotonic_regression
from torch import Tensor

from ckpt_factory import Task

from .artefact import WeightGenerator
from .conditioning import Calibration
from .training.hole import inside

STRETCHES = (1.0, 1.1, 1.25, 1.5, 1.75, 2.0)
"""Lengths of updates that are tried, one after the other: the mean of the networks that fit is shorter than
each of them."""
PATIENCE = 2
"""Lengths in a row that are no better than a shorter one, after which no longer one is tried."""
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
    """What the generator, with the sampling that is its own, has to be asked for, and how far it has to go.

    Every start network in `theta`, a training initialisation, is asked for metrics from its own loss, or the
    worst return of the zoo, to beyond the best, in even steps of returns or even ratios of losses; the mean
    that is achieved for each is made monotone. That is done for updates of several lengths, and the length is
    kept with which the start networks come closest to prompts once these are calibrated; or prompts are asked
    for as they are, where nothing comes closer. In a hole of the training nothing is asked for. None if all
    networks made are broken, whatever is asked for.
    """
    metric = task.evaluate(theta, "validation")[generator.metric]
    low, high = generator.scaling.metric_range
    worst = min(high, float(metric.mean())) if generator.origin.objective == "min" else low
    asked = _asks(generator, worst, num_asks)
    prompts = torch.linspace(generator.best_metric, worst, 20)
    if (hole := generator.origin.hole) is not None:
        asked, prompts = (each[~inside(each, hole)] for each in (asked, prompts))
    plain = replace(generator, calibration=None)
    made = [plain.update(theta, metric, ask, rng=rng) for ask in asked.tolist()]
    best, least, since = None, float("inf"), 0
    for stretch in STRETCHES:
        networks = (torch.lerp(theta, each, stretch) for each in made)
        got = torch.stack([task.evaluate(each, "validation")[generator.metric] for each in networks])
        candidates = [_monotone(asked, got, stretch)]
        if stretch == 1 and candidates[0] is not None:
            candidates.append(Calibration(asked, asked))
        since += 1
        for found in candidates:
            if found is not None and (missed := _missed(found, asked, got, prompts)) < least:
                best, least, since = found, missed, 0
        if best is not None and since == PATIENCE:
            break
    return best


def _monotone(asked: Tensor, got: Tensor, stretch: float) -> Calibration | None:
    """From what every start (asks, N) got."""
    mean = torch.where(got.isfinite(), got, torch.nan).nanmean(1)
    kept = mean.isfinite()
    if kept.sum() < 2:
        return None
    levels = isotonic_regression(mean[kept].double().numpy()).x
    return Calibration(asked[kept], torch.from_numpy(levels).float(), stretch)


def _missed(found: Calibration, asked: Tensor, got: Tensor, prompts: Tensor) -> float:
    """Mean squared distance of what the starts get to calibrated prompts, between asks interpolated.

    A broken network has missed by the whole range of prompts: a length of updates is no better for breaking
    those that it would not serve.
    """
    ask = found.ask(prompts)
    right = torch.searchsorted(asked, ask).clamp(1, len(asked) - 1)
    share = (ask - asked[right - 1]) / (asked[right] - asked[right - 1])
    achieved = torch.lerp(got[right - 1], got[right], share.unsqueeze(1))
    missed = (achieved - prompts.unsqueeze(1)).square()
    return float(missed.where(missed.isfinite(), (prompts.max() - prompts.min()).square()).mean())


def _asks(generator: WeightGenerator, worst: float, num: int) -> Float[Tensor, " num"]:
    """Of losses none is above those of the starts: hardly any pair of the zoo goes there."""
    low, high = generator.scaling.metric_range
    if generator.origin.objective == "max":
        return torch.linspace(low, high + BEYOND * (high - low), num)
    if low > 0:
        return (0.5 * low) * (2 * worst / low) ** torch.linspace(0, 1, num)
    return torch.linspace(low - BEYOND * (worst - low), worst, num)
