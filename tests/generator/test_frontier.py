"""The frontier: baselines at equal novelty, read off hand-made ones, and the words that follow."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from generator.audit.frontier import Cloud, Margin, margin, quality_at
from generator.audit.verdict import has_same_mistakes, judgement, nearest_baseline, same_mistakes


def at(novelty: list[float], quality: list[float], where: float) -> float:
    return float(
        quality_at([np.array([x]) for x in novelty], [np.array([y]) for y in quality], np.array([where]))[0]
    )


def test_quality_at_equal_novelty_is_read_between_two_settings() -> None:
    novelty, quality = [0.0, 1.0, 2.0], [10.0, 8.0, 2.0]
    assert at(novelty, quality, 0.0) == 10
    assert at(novelty, quality, 0.5) == 9
    assert at(novelty, quality, 1.0) == 8
    assert at(novelty, quality, 1.75) == 3.5
    assert at(novelty, quality, 2.5) == -math.inf, "it is never as new"


def test_what_is_newer_and_better_counts_at_less_novelty_too() -> None:
    assert at([0.0, 1.0, 3.0], [10.0, 2.0, 7.0], 0.5) == 7
    assert at([3.0], [5.0], 1.0) == 5
    assert at([1.0], [5.0], 3.0) == -math.inf


def cloud(novelty: float, quality: float, spread: float, num: int = 40) -> Cloud:
    rng = np.random.default_rng(int(100 * novelty))
    return Cloud(np.full(num, novelty), quality + spread * rng.standard_normal(num))


def test_margins_are_differences_of_means_with_an_interval_that_holds_them() -> None:
    family = [cloud(0, 1.0, 0.1), cloud(1, 0.5, 0.1), cloud(2, 0.0, 0.1)]
    ours = cloud(1.0, 0.8, 0.1)
    found = margin(ours, family, seed=0)
    assert found.value == pytest.approx(ours.quality.mean() - family[1].quality.mean())
    assert found.low < found.value < found.high
    # the standard error of a difference of two means of 40 is 0.1 * sqrt(2 / 40) = 0.022
    assert found.high - found.low == pytest.approx(4 * 0.022, rel=0.4)
    assert margin(ours, family, seed=0) == found


def test_mistakes_in_common_by_chance_are_no_copies() -> None:
    """Of good digits networks 4 % make the mistakes of a training network; of a copier's a quarter more."""
    rng = torch.Generator().manual_seed(0)

    def fail(share: float) -> float:
        ours, theirs = ((torch.rand(400, n, generator=rng) < p) for n, p in ((32, share), (64, 0.04)))
        found = [same_mistakes(*(x.float() for x in pair)) for pair in zip(ours, theirs, strict=True)]
        return sum(map(has_same_mistakes, found)) / 400

    assert fail(0.04) < 0.03
    assert fail(0.29) > 0.85
    assert not has_same_mistakes(same_mistakes(torch.full((4,), torch.nan), torch.zeros(4)))


def test_a_baseline_that_is_never_as_new_is_beaten_by_any_amount() -> None:
    assert margin(cloud(3, 0.1, 0.0), [cloud(0, 1, 0.0), cloud(1, 0.5, 0.0)], seed=0).value == math.inf


NEW: dict[str, Any] = {
    "broken": 0.0,
    "repeated": 0.0,
    "copy_rate": 0.0,
    "copy_rate_held_out": 0.0,
    "same_mistakes_rate": 0.0,
    "same_mistakes_rate_held_out": 0.0,
    "same_mistakes_chance": 1.0,
    "relative_distance": 1.0,
    "off_span": 0.5,
    "off_span_held_out": 0.5,
    "quality_metric": "error",
    "quality_generated": 0.05,
    "nearest_baseline": "averages",
}
SAME = {"same_mistakes_rate": 0.5, "same_mistakes_chance": 1e-6}
AHEAD, BEHIND, UNSURE = Margin(0.1, 0.05, 0.15), Margin(-0.1, -0.2, -0.05), Margin(0.1, -0.1, 0.2)
LEVEL = Margin(0.02, -0.02, 0.05)
OBEYS = {
    "prompt_alignment": 0.6,
    "shuffled_prompt_alignment": -0.9,
    "prompt_gain": 1.4,
    "prompt_gain_low": 0.3,
}


@pytest.mark.parametrize(
    ("numbers", "noise", "own", "outcome", "words"),
    [
        ({}, AHEAD, AHEAD, "generates", "better than every baseline that is as new"),
        ({"relative_distance": 0.6}, AHEAD, AHEAD, "generates", "partly remembered"),
        ({"relative_distance": 1.4}, AHEAD, AHEAD, "generates", "perhaps off the region"),
        ({"relative_distance": 0.39}, AHEAD, AHEAD, "copies", "0.39 times that of held-out runs"),
        ({"copy_rate": 0.06}, AHEAD, AHEAD, "copies", "6% of the networks"),
        ({"copy_rate": 0.06, "copy_rate_held_out": 0.02}, AHEAD, AHEAD, "generates", "copies: 6%"),
        (SAME, AHEAD, AHEAD, "copies", "50% (held-out runs: 0%) make the very mistakes of one"),
        (SAME | {"same_mistakes_chance": 0.03}, AHEAD, AHEAD, "generates", "new"),
        (SAME | {"same_mistakes_rate_held_out": 0.46}, AHEAD, AHEAD, "generates", "new"),
        ({"same_mistakes_rate": None, "off_span": None}, AHEAD, AHEAD, "generates", "new"),
        ({"off_span": 0.12}, AHEAD, AHEAD, "recombines", "an interpolation of what was trained"),
        ({"off_span": 0.13}, AHEAD, AHEAD, "generates", "new"),
        ({"broken": 0.06}, AHEAD, AHEAD, "broken", "6%"),
        ({"broken": 0.04}, AHEAD, AHEAD, "generates", "new"),
        ({"repeated": 0.06}, AHEAD, AHEAD, "repeats itself", "6% of the networks asked for"),
        ({"repeated": 0.04}, AHEAD, AHEAD, "generates", "new"),
        ({}, BEHIND, AHEAD, "no better than noise", "No better than noise on training networks"),
        ({}, LEVEL, AHEAD, "no better than noise", "where held-out networks are better by 0.1"),
        (
            {},
            Margin(-0.02, -0.05, 0.01),
            AHEAD,
            "no better than noise",
            "behind that of noise at equal novelty by 0.02 (-0.01 to 0.05), where held-out",
        ),
        ({}, LEVEL, BEHIND, "generates", "within chance"),
        ({}, LEVEL._replace(value=-0.01), LEVEL, "generates", "which held-out networks are not either"),
        ({}, LEVEL, Margin(0.05, 0.01, 0.09), "generates", "within chance"),
        ({}, LEVEL, Margin(math.inf, 0.2, math.inf), "no better than noise", "better by any amount"),
        (
            {},
            BEHIND,
            LEVEL,
            "no better than noise",
            "behind that of noise at equal novelty by 0.1 (0.05 to",
        ),
        ({}, BEHIND, BEHIND, "no better than noise", "(0.05 to 0.2), beyond chance"),
        (OBEYS, AHEAD, AHEAD, "generates", "better than every baseline"),
        (
            OBEYS | {"prompt_gain": 0.1},
            AHEAD,
            AHEAD,
            "deaf to prompts",
            "with prompts shuffled -0.9; the median network gains 0.1 (0.3 at least)",
        ),
        (OBEYS | {"prompt_gain_low": -0.1}, AHEAD, AHEAD, "deaf to prompts", "one that obeys about 2"),
        ({}, UNSURE, AHEAD, "generates", "within chance"),
    ],
)
def test_the_verdict_follows_from_the_numbers(
    numbers: dict[str, Any], noise: Margin, own: Margin, outcome: str, words: str
) -> None:
    margins = {"noise": noise, "averages": AHEAD}
    found, text = judgement(NEW | numbers, margins, {"noise": own, "averages": AHEAD})
    assert found == outcome
    assert words in text


def test_the_nearest_baseline_is_the_one_that_the_verdict_names() -> None:
    margins = {"noise": BEHIND, "averages": Margin(-0.3, -9.0, math.inf)}
    own = {"noise": AHEAD, "averages": UNSURE}
    assert judgement(NEW, margins, own)[0] == f"no better than {nearest_baseline(margins, own)}"
    assert nearest_baseline(margins, own) == "noise", "of averages nothing is known"
    assert (
        nearest_baseline({"noise": AHEAD, "averages": LEVEL}, {"noise": AHEAD, "averages": LEVEL})
        == "averages"
    )
