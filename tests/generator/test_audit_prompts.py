"""Who is deaf to prompts gains nothing from them, whatever it makes; who obeys, or nearly, does."""

import pytest
import torch
from torch import Tensor

from ckpt_factory.tasks.base import seeded
from generator.audit.prompts import hearing
from generator.audit.verdict import is_deaf


def prompts_of(num: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.linspace(0, 1, 8).repeat(num, 1)


@pytest.mark.parametrize(("low", "high"), [(0.1, 2.0), (500.0, 20.0)], ids=["losses", "returns"])
def test_networks_that_are_all_alike_or_at_random_are_of_a_deaf_generator(low: float, high: float) -> None:
    prompts = prompts_of(32, low, high)
    best = torch.full_like(prompts, low)
    found = hearing(prompts, best, seed=0)
    assert found["prompt_alignment"] == pytest.approx(found["shuffled_prompt_alignment"], abs=1e-4)
    assert is_deaf(found)
    taken = 0
    for seed in range(40):
        anything = prompts.mean() + 3 * prompts.std() * torch.randn(prompts.shape, generator=seeded(seed))
        taken += is_deaf(hearing(prompts, anything, seed=0))
    assert taken >= 36, "by chance one in forty seems to hear"


@pytest.mark.parametrize(("low", "high"), [(0.1, 2.0), (500.0, 20.0)], ids=["losses", "returns"])
def test_who_follows_prompts_part_of_the_way_or_noisily_is_not_deaf(low: float, high: float) -> None:
    prompts = prompts_of(32, low, high)
    obedient = hearing(prompts, prompts, seed=0)
    assert obedient["prompt_gain"] == pytest.approx(2 * 8 / 7)
    assert not is_deaf(obedient)
    some = prompts.mean() + 0.4 * (prompts - prompts.mean())
    noisy = some + 0.5 * prompts.std() * torch.randn(prompts.shape, generator=seeded(0))
    assert not is_deaf(hearing(prompts, noisy, seed=0))
    other_way = prompts.flip(1)
    assert is_deaf(hearing(prompts, other_way, seed=0))


def test_networks_without_a_metric_hear_nothing() -> None:
    prompts = prompts_of(5, 0.1, 2.0)
    observed = prompts.clone()
    observed[:2, 0] = torch.nan
    assert not is_deaf(hearing(prompts, observed, seed=0) | {"prompt_gain_low": 1.0})
    observed[2, 0] = torch.inf
    assert hearing(prompts, observed, seed=0)["prompt_gain"] == 0
