"""The published diffusion: 1,000 steps of a linear schedule, as times of the path that all denoisers share.

Every variance-preserving path runs through the same points (alpha, sigma); a schedule only says where on it
one stands. The published step k is the time t_k with alpha(t_k)^2 = alpha_bar_k, so that noise is added as
anywhere else, at times drawn from a thousand.
"""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUM_STEPS, BETA_FIRST, BETA_LAST = 1000, 1e-4, 2e-2


@cache
def alpha_bar() -> Float[Tensor, " 1000"]:
    """Products of 1 - beta, linear betas (Ho et al. 2020), float64."""
    return (1 - torch.linspace(BETA_FIRST, BETA_LAST, NUM_STEPS, dtype=torch.float64)).cumprod(0)


@cache
def step_times() -> Float[Tensor, " 1000"]:
    """The time t_k of every step, ascending, float64."""
    return torch.atan2((1 - alpha_bar()).sqrt(), alpha_bar().sqrt()) * (2 / torch.pi)


def step_of(t: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The step whose time is nearest."""
    times = step_times().to(t.device)
    return torch.searchsorted((times[1:] + times[:-1]) / 2, t.double().contiguous())


def draw_step_times(num: int, *, rng: torch.Generator, shift: float = 1.0) -> Float[Tensor, " num"]:
    """Times of uniformly drawn steps, as published for training; shifted towards the last ones by more than
    1."""
    share = (torch.randint(NUM_STEPS, (num,), generator=rng) + 0.5) / NUM_STEPS
    step = (NUM_STEPS * shift * share / (1 + (shift - 1) * share)).long()
    return step_times()[step].float()


def respaced(num: int) -> Float[Tensor, " {num}+1"]:
    """`num` of the steps, evenly spaced from the last to the first, and 0: times to sample along, float64.

    One step is the last, from which nearly nothing is known; all 1,000 are what is published.
    """
    if not 1 <= num <= NUM_STEPS:
        raise ValueError(f"sampling steps: got {num}, expected 1 to {NUM_STEPS}, the steps of the schedule")
    steps = torch.linspace(NUM_STEPS - 1, 0, num, dtype=torch.float64).round().long()
    return torch.cat([step_times()[steps], torch.zeros(1, dtype=torch.float64)])
