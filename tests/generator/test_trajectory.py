"""Optimal trajectories: the cost is the bound on the likelihood, and no choice of times costs less."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from generator.sampling.analytic import Moments
from generator.sampling.diffusion import alpha_sigma, timesteps
from generator.sampling.trajectory import GRID, cheapest_path, optimal_trajectory, step_costs

STD = torch.tensor([0.05, 0.4, 1.5], dtype=torch.float64)


def covariance(times: Tensor, std: Tensor = STD) -> Tensor:
    alpha, sigma = (each.unsqueeze(-1) for each in alpha_sigma(times.double()))
    return std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)


def total(cost: Tensor, end: Tensor, path: list[int]) -> float:
    return float(sum(cost[i, j] for i, j in itertools.pairwise(path)) + end[path[-1]])


def blunt(times: Tensor) -> Tensor:
    """Of a model that misses more than a perfect one would, most in the middle."""
    return covariance(times) * (1 + 4 * torch.sin(math.pi * times.double()).unsqueeze(-1))


def test_of_a_gaussian_every_trajectory_costs_the_entropy() -> None:
    """With its true mean and variances the reverse chain is the forward one, however long its steps."""
    times = timesteps(12).double()[:-1]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    cost, end = step_costs(times, covariance(times), weights)
    entropy = float(0.5 * (2 * math.pi * math.e * STD**2).log() @ weights)
    for path in ([0], [0, 11], [0, 5, 6], list(range(12))):
        assert abs(total(cost, end, path) - entropy) < 1e-9  # double precision


def test_the_cost_of_a_step_is_that_of_the_published_form() -> None:
    """log(sigma*^2 / lambda^2) / 2 with the variances of Bao et al. 2022, theorem 1, step by step."""
    times = torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)
    known = blunt(times)[:, :1]
    cost, _ = step_costs(times, known, torch.ones(1, dtype=torch.float64))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        (a, c), (b, d) = (alpha.tolist() for alpha in alpha_sigma(times[[i, j]]))
        lam2 = d**2 / b**2 * (1 - (a / c) ** 2)
        best = lam2 + (c - a * math.sqrt(d**2 - lam2) / b) ** 2 * float(known[i])
        assert math.isclose(float(cost[i, j]), 0.5 * math.log(best / lam2), rel_tol=1e-9)
    assert cost.isinf().sum() == 6


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_no_other_choice_of_times_costs_less(steps: int) -> None:
    times = timesteps(8).double()[:-1]
    cost, end = step_costs(times, blunt(times), torch.full((3,), 1 / 3, dtype=torch.float64))
    found = cheapest_path(cost, end, steps)
    every = ([0, *rest] for rest in itertools.combinations(range(1, 8), steps - 1))
    assert len(found) == steps
    assert found == min(every, key=lambda path: total(cost, end, path))


def two_peaks(times: Tensor, width: float = 0.1) -> Tensor:
    """E Var(x_0 | x_t) of data at 1 and -1, each with a Gaussian spread, by Gauss-Hermite quadrature."""
    points, mass = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(200))
    alpha, sigma = (each.unsqueeze(-1) for each in alpha_sigma(times.double()))
    variance = alpha**2 * width**2 + sigma**2  # of x_t given the peak
    which = 1 - torch.tanh(alpha / variance * (alpha + variance.sqrt() * points)) ** 2 @ (mass / mass.sum())
    return width**2 * sigma**2 / variance + (sigma**2 / variance) ** 2 * which.unsqueeze(-1)


def moments() -> Moments:
    """Of a perfect model of data that are not Gaussian, one tensor's less than the other's."""
    times = torch.linspace(1 / 64, 1, 64)
    clean = torch.cat([two_peaks(times), two_peaks(times, 0.4)], 1)
    values = (clean / alpha_sigma(times.double())[1].unsqueeze(-1) ** 2).float()
    return Moments(times, 0 * values, values, torch.tensor([80, 20]), 0)


def test_an_optimal_trajectory_begins_in_noise_ends_in_data_and_pays_off() -> None:
    known = moments()
    times = timesteps(GRID)[:-1]
    cost, end = step_costs(times, known.covariance("extended", times), known.sizes / 100)
    bounds = []
    for steps in (1, 2, 4, 16):
        found, even = optimal_trajectory(known, steps), timesteps(steps)
        assert (len(found), found[0], found[-1]) == (steps + 1, 1, 0)
        assert (found.diff() < 0).all()
        both = [[round(GRID * (1 - t)) for t in each[:-1].tolist()] for each in (found, even)]
        assert both[0] == cheapest_path(cost, end, steps)
        bounds.append([total(cost, end, path) for path in both])
        assert bounds[-1][0] <= bounds[-1][1]
    best = [bound for bound, _ in bounds]
    assert best == sorted(best, reverse=True), "with more steps it can only gain"
    assert best[1] < bounds[1][1] - 0.01, "and of few steps it is not the even one"


def test_as_many_steps_as_there_are_times_are_the_even_ones() -> None:
    torch.testing.assert_close(optimal_trajectory(moments(), GRID), timesteps(GRID))
    with pytest.raises(ValueError, match=r"an optimal trajectory of 257 steps; expected 1 to 256"):
        optimal_trajectory(moments(), GRID + 1)
