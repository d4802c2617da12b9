"""Trajectories: which K times to evaluate the denoiser at, even or the best by what its predictions miss."""

import torch
from jaxtyping import Float
from torch import Tensor

from .analytic import Moments
from .diffusion import Times, alpha_sigma

GRID = 256
"""Times that an optimal trajectory is chosen from, evenly spaced on the path."""
LEAST = 1e-12
"""Variances below count as this one: no step is free."""


def optimal_trajectory(
    moments: Moments, steps: int, path: Times | None = None
) -> Float[Tensor, " {steps}+1"]:
    """The `steps` + 1 times down to 0 of the largest bound on the likelihood (Bao et al. 2022, sec. 4.3).

    Ancestral sampling with the best variances is meant, which the held-out errors give; the other samplers
    may follow it.

    Args:
        path: whose sampling times it is made of; default the cosine one.

    Raises:
        ValueError: more steps than there are times to choose from.
    """
    if not 1 <= steps <= GRID:
        raise ValueError(
            f"an optimal trajectory of {steps} steps; expected 1 to {GRID}: of more, take the even one"
        )
    times = (path or Times()).sampling(GRID).to(moments.times)[:-1]
    covariance = moments.covariance("extended", times)
    to, end = step_costs(times, covariance, moments.sizes.to(times) / moments.sizes.sum())
    return torch.cat([times[cheapest_path(to, end, steps)], times.new_zeros(1)])


def step_costs(
    times: Float[Tensor, " N"], covariance: Float[Tensor, "N G"], weights: Float[Tensor, " G"]
) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    """What each step costs of the bound on the log likelihood, in nats a coordinate.

    Args:
        times: falling, the last one above 0.
        covariance: variances of x_0 given x_t in G groups of coordinates.
        weights: share of the coordinates in each group.

    Returns:
        The cost of steps from time i to time j > i, log(sigma*^2 / lambda^2) / 2, infinite for others; and of
        the last step, from each time to the data, log(2 pi e Cov) / 2.
    """
    alpha, sigma = (each.double() for each in alpha_sigma(times.double()))
    covariance, weights = covariance.double().clamp_min(LEAST), weights.double()
    ratio = alpha.unsqueeze(1) / alpha  # alpha_t / alpha_s
    lam2 = (sigma / sigma.unsqueeze(1)) ** 2 * (1 - ratio**2)
    forward = torch.ones_like(lam2).triu(1).bool()
    lam2 = lam2.where(forward, 1.0)
    # for ancestral sampling the factor of what is missed is alpha_s beta_{t|s} / sigma_t^2
    missed = (alpha * (1 - ratio**2) / sigma.unsqueeze(1) ** 2) ** 2
    cost = 0.5 * torch.log1p((missed / lam2).unsqueeze(-1) * covariance.unsqueeze(1)) @ weights
    end = 0.5 * (2 * torch.pi * torch.e * covariance).log() @ weights
    return cost.where(forward, torch.inf), end


def cheapest_path(cost: Float[Tensor, "N N"], end: Float[Tensor, " N"], steps: int) -> list[int]:
    """Dynamic programming: the `steps` places, from 0 on, whose steps and whose end cost least in sum."""
    best = torch.full_like(end, torch.inf)
    best[0] = 0.0
    came: list[Tensor] = []
    for _ in range(steps - 1):
        best, before = (best.unsqueeze(1) + cost).min(0)
        came.append(before)
    path = [int((best + end).argmin())]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return path[::-1]
