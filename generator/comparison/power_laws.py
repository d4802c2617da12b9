"""Power laws: how a loss falls with parameters, data or compute, with an interval for every exponent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student_t

Floats = NDArray[np.float64]
CONFIDENCE = 0.9
STEEPEST = 5.0
"""Exponents are sought up to this one."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """loss = floor + sum_i scale_i x_i^-exponent_i (Hoffmann et al. 2022, equation 2, with two terms)."""

    names: tuple[str, ...]
    """What the terms are in."""
    floor: float
    scales: tuple[float, ...]
    exponents: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]
    """Of each exponent at 90 % confidence."""
    spread: float
    """Of the points around the law, as a standard deviation of ln(loss)."""
    num_points: int

    def __call__(self, *x: Sequence[float] | Floats) -> Floats:
        terms = (_column(each) ** -b * a for each, a, b in zip(x, self.scales, self.exponents, strict=True))
        return self.floor + np.sum(list(terms), axis=0)

    def in_words(self) -> str:
        """Exponents with their intervals, "0.31 (0.27 to 0.36)"."""
        words = (
            f"{value:.2f} ({low:.2f} to {high:.2f})"
            for value, (low, high) in zip(self.exponents, self.intervals, strict=True)
        )
        return ", ".join(words) + (f", floor {self.floor:.2g}" if self.floor else "")


def fit_power_law(
    points: Mapping[str, Sequence[float] | Floats], loss: Sequence[float] | Floats, *, floor: bool
) -> PowerLaw | None:
    """A power law through points, by least squares of ln(loss); None where they do not say what it is.

    They are too few: no more points than numbers to find, so that none is left to tell how sure these are, or
    fewer different values of a term than a line needs (with a floor, a curve). Or an exponent has no end.
    Points that are no positive, finite numbers are left out. Intervals are those of Student's t with the
    covariance of the fit: exact for a line with normal errors of ln(loss), else to first order.

    Args:
        points: the values of each term, by its name.
        floor: whether the loss may end at a level above 0.
    """
    x = np.stack([_column(values) for values in points.values()])  # (terms, points)
    y = _column(loss)
    good = (np.isfinite(x) & (x > 0)).all(0) & np.isfinite(y) & (y > 0)
    x, y = x[:, good], y[good]
    free = floor + 2 * len(x)
    if len(y) <= free or any(len(np.unique(row)) < 2 + floor for row in x):
        return None
    law = _Law(x, floor)
    found = law.fit(np.log(y))
    exponents = law.exponents(found).tolist()
    if max(exponents) > 0.99 * STEEPEST:
        return None
    residual, spare = np.log(y) - law.log_loss(found), len(y) - free
    spread = math.sqrt(residual.dot(residual) / spare)
    wide = float(student_t.ppf((1 + CONFIDENCE) / 2, spare)) * spread
    errors = law.exponents(np.sqrt(np.diag(law.covariance(found)))).tolist()
    intervals = [(b - wide * error, b + wide * error) for b, error in zip(exponents, errors, strict=True)]
    return PowerLaw(
        names=tuple(points),
        floor=law.floor_of(found),
        scales=tuple(law.scales(found).tolist()),
        exponents=tuple(exponents),
        intervals=tuple(intervals),
        spread=spread,
        num_points=len(y),
    )


class _Law:
    """ln(loss) as a function of ln(scale_i at the middle of x_i), exponent_i and ln(floor), for fixed points.

    Scales are taken in the middle of the points, where they are hardly entangled with exponents.
    """

    def __init__(self, x: Floats, floor: bool):
        self.middle = np.log(x).mean(1)
        self.log_x = np.log(x) - self.middle[:, None]  # (terms, points)
        self.floor = floor

    def log_loss(self, p: Floats) -> Floats:
        return np.logaddexp.reduce(self._terms(p), axis=0)

    def _terms(self, p: Floats) -> Floats:
        k = len(self.log_x)
        terms = p[:k, None] - p[k : 2 * k, None] * self.log_x
        return np.vstack([terms, np.full((1, terms.shape[1]), p[-1])]) if self.floor else terms

    def _jacobian(self, p: Floats) -> Floats:
        terms, k = self._terms(p), len(self.log_x)
        weights = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
        return np.vstack([weights[:k], -weights[:k] * self.log_x, weights[k:]]).T

    def covariance(self, p: Floats) -> Floats:
        """Of what was found, for errors of ln(loss) of unit size."""
        jacobian = self._jacobian(p)
        return np.linalg.pinv(jacobian.T @ jacobian).astype(np.float64)

    def fit(self, log_y: Floats) -> Floats:
        """The best of some beginnings, the floor from almost none to almost all of the lowest loss."""
        k = len(self.log_x)
        if k == 1 and not self.floor:  # a line, which may also rise
            slope = self.log_x[0].dot(log_y) / self.log_x[0].dot(self.log_x[0])
            return np.array([log_y.mean(), -slope])
        low, least = float(log_y.min()), float(log_y.min()) - 12
        lower = [-np.inf] * k + [0.0] * k + [least] * self.floor
        upper = [np.inf] * k + [STEEPEST] * k + [low] * self.floor
        starts = []
        for share in (0.02, 0.5, 0.9) if self.floor else (0.02,):
            for exponent in (0.1, 0.6):
                middle = math.log((1 - share * self.floor) / k) + float(log_y.mean())
                starts.append(np.array([middle] * k + [exponent] * k + [low + math.log(share)] * self.floor))
        found = [
            least_squares(
                lambda p: self.log_loss(p) - log_y,
                each,
                jac=self._jacobian,  # pyright: ignore[reportArgumentType]
                bounds=(lower, upper),
            )
            for each in starts
        ]
        return min(found, key=lambda result: result.cost).x

    def exponents(self, p: Floats) -> Floats:
        k = len(self.log_x)
        return p[k : 2 * k]

    def scales(self, p: Floats) -> Floats:
        return np.exp(p[: len(self.log_x)] + self.exponents(p) * self.middle)

    def floor_of(self, p: Floats) -> float:
        return float(np.exp(p[-1])) if self.floor else 0.0


def frontier(cost: Sequence[float], loss: Sequence[float]) -> list[int]:
    """The points that no other one beats: cheaper than all that are as good; by rising cost."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], loss[i]))
    kept: list[int] = []
    for i in order:
        if math.isfinite(loss[i]) and (not kept or loss[i] < loss[kept[-1]]):
            kept.append(i)
    return kept


def _column(values: Sequence[float] | Floats) -> Floats:
    return np.asarray(values, dtype=np.float64)
