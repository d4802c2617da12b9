"""The published schedule on the shared path, and the published sampler against its closed form."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from generator.sampling.diffusion import add_noise, alpha_sigma
from generator.sampling.linear_schedule import (
    alpha_bar,
    draw_step_times,
    respaced,
    step_of,
    step_times,
)
from generator.sampling.samplers import sample_published

MEAN, STD = 0.7, 0.4
BETAS = [1e-4 + k * (2e-2 - 1e-4) / 999 for k in range(1000)]


def products() -> list[float]:
    return np.cumprod([1 - beta for beta in BETAS]).tolist()


def optimal(x: Tensor, t: Tensor) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2), in double precision."""
    angle = 0.5 * math.pi * float(t)
    alpha, sigma = math.cos(angle), math.sin(angle)
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def test_the_schedule_is_linear_in_beta() -> None:
    assert len(alpha_bar()) == 1000
    np.testing.assert_allclose(alpha_bar(), products(), rtol=1e-12)
    for k, published in ((100, 0.895), (258, 0.5), (500, 0.078)):  # as known of the released code
        assert round(float(alpha_bar()[k]), 3) == published
    assert round(float(alpha_bar()[999]), 6) == 4.0e-5


def test_steps_are_times_of_the_shared_path() -> None:
    alpha, sigma = alpha_sigma(step_times())
    np.testing.assert_allclose(alpha**2, products(), rtol=1e-9)
    np.testing.assert_allclose(sigma**2, 1 - np.array(products()), rtol=1e-9)


def test_times_know_their_steps_in_float32_too() -> None:
    assert torch.equal(step_of(step_times().float()), torch.arange(1000))
    assert step_of(torch.tensor([0.0, 1.0])).tolist() == [0, 999]  # beyond either end: the nearest


def test_noise_at_a_step_is_what_is_published() -> None:
    step, num = 700, 50_000
    t = step_times()[step].float().expand(num)
    x = add_noise(torch.full((num, 1), 3.0), t, rng=seeded(0))
    kept = products()[step]
    # five standard errors of 50,000 draws of variance below 1
    assert abs(float(x.mean()) - 3 * math.sqrt(kept)) < 5 / math.sqrt(num)
    assert abs(float(x.var()) - (1 - kept)) < 5 * math.sqrt(2 / num)


def test_training_draws_all_steps_alike() -> None:
    steps = step_of(draw_step_times(200_000, rng=seeded(0)))
    count = torch.bincount(steps, minlength=1000)
    assert len(count) == 1000
    # 200 each with a standard deviation of 14; the extremes of a thousand lie within five of them
    assert 130 < int(count.min()) <= int(count.max()) < 270


def test_sampling_visits_evenly_spaced_steps_from_the_last_to_the_first() -> None:
    for num in (2, 7, 50, 1000):
        times = respaced(num)
        assert len(times) == num + 1
        assert times[-1] == 0
        steps = step_of(times[:-1])
        assert torch.equal(times[:-1], step_times()[steps])
        assert (steps[0], steps[-1]) == (999, 0)
        assert int(steps.diff().max() - steps.diff().min()) <= 1
    assert step_of(respaced(1)[:1]).tolist() == [999]
    for num in (0, 1001):
        with pytest.raises(ValueError, match=f"sampling steps: got {num}, expected 1 to 1000"):
            respaced(num)


def recursion(x: list[float]) -> tuple[list[float], float]:
    """The published chain of 1,000 steps over a Gaussian: (means from these noises, variance), step by step.

    mu = sqrt(abar_prev) beta / (1 - abar) x_0 + sqrt(1 - beta) (1 - abar_prev) / (1 - abar) x_t, noise of
    variance beta but for the last step.
    """
    kept, variance = [1.0, *products()], 0.0
    for k in reversed(range(1000)):
        abar, before, beta = kept[k + 1], kept[k], BETAS[k]
        of_x0 = math.sqrt(before) * beta / (1 - abar)
        of_xt = math.sqrt(1 - beta) * (1 - before) / (1 - abar)
        gain = math.sqrt(abar) * STD**2 / (abar * STD**2 + 1 - abar)
        slope, shift = of_xt + of_x0 * gain, of_x0 * MEAN * (1 - gain * math.sqrt(abar))
        x = [slope * value + shift for value in x]
        variance = slope**2 * variance + (beta if k else 0.0)
    return x, variance


def test_the_published_sampler_has_the_mean_and_variance_of_the_published_chain() -> None:
    start, num = [-1.0, 0.0, 2.0], 4000
    means, variance = recursion(start)
    x = torch.tensor(start).unsqueeze(1).expand(3, num).contiguous()
    made = sample_published(optimal, x, respaced(1000), rng=seeded(1)).double()
    # five standard errors of 4,000 draws, and float32
    np.testing.assert_allclose(made.mean(1), means, atol=5 * math.sqrt(variance / num) + 1e-4)
    np.testing.assert_allclose(made.var(1), variance, rtol=5 * math.sqrt(2 / num))
    assert abs(variance / STD**2 - 1) < 0.02  # with a thousand steps, whichever variance, it is the data's


def test_the_last_step_adds_no_noise() -> None:
    x = torch.randn(5, 3, generator=seeded(0))
    rng = seeded(1)
    made = sample_published(optimal, x, respaced(1), rng=rng)
    assert torch.equal(rng.get_state(), seeded(1).get_state())
    torch.testing.assert_close(made, optimal(x, respaced(1)[0]))


def test_the_denoiser_is_asked_once_a_step_at_the_steps_own_times() -> None:
    asked = []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        assert t.ndim == 0
        asked.append(t)
        return optimal(x, t)

    sample_published(denoise, torch.zeros(2, 3), respaced(40), rng=seeded(0))
    assert torch.equal(step_of(torch.stack(asked)), step_of(respaced(40)[:-1]))
    assert len(asked) == 40


def test_randomness_comes_from_rng_alone() -> None:
    x = torch.randn(5, 3, generator=seeded(0))
    first, again, other = (sample_published(optimal, x, respaced(9), rng=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
