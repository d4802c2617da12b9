"""A sweep's trials: the best rates, the laws that a table supports, and pages that show them."""

import dataclasses
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

from ckpt_factory import Task
from generator.comparison.sweep import Trial, best_rates, cpu_frontier, scaling_laws
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.model.layouts import LAYOUTS
from generator.model.sizes import SIZES, sized
from generator.report.sweep_page import sweep_page, sweep_picture


def trial(size: str, share: float, *, lr: float = 4e-3, seed: int = 0, tokens: str = "units") -> Trial:
    """One whose losses are 0.1 + 20 N^-0.4 + 3 D^-0.5, 1 % off, worse at other rates than 4e-3."""
    width = SIZES[size]
    parameters, runs = 76 * width**2, round(1800 * share)
    off = 1 + 0.01 * math.sin(width + 100 * share + seed) + abs(math.log(lr / 4e-3))
    loss = (0.1 + 20 * parameters**-0.4 + 3 * runs**-0.5) * off
    curve = [{"step": k, "cpu_s": k * width, "held_out_loss": loss * (4 / k) ** 0.3} for k in (1.0, 2.0, 4.0)]
    return Trial(
        name=f"{size}-{share}-{lr}-{seed}-{tokens}",
        size=size,
        tokens=tokens,
        lr=lr,
        share=share,
        seed=seed,
        status="finished",
        width=width,
        base_width=128,
        parameters=parameters,
        training_runs=runs,
        steps=4,
        cpu_s=4.0 * width,
        held_out_loss=loss,
        alignment=1 - loss / 2,
        one_update={"test_loss": loss},
        curve=curve,
    )


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return [
        trial(size, share) for size, share in product(("0.1M", "0.3M", "1M", "3M", "5M"), (0.1, 0.3, 1.0))
    ]


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_what_their_names_say(digits: Task, size: str) -> None:
    coordinates = Coordinates.fit(digits, rank=0)
    with torch.device("meta"):
        model = LAYOUTS["units"].make(coordinates, sized(DiTConfig(base_width=128), size))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(float(size[:-1]) * 1e6, rel=0.3)


def test_of_several_rates_the_best_on_average_over_seeds_is_kept() -> None:
    lucky = dataclasses.replace(trial("1M", 1.0, lr=8e-3, seed=0), held_out_loss=0.01)
    unlucky = dataclasses.replace(trial("1M", 1.0, lr=8e-3, seed=1), held_out_loss=9.0)
    steady = [trial("1M", 1.0, seed=seed) for seed in (0, 1)]
    stopped = dataclasses.replace(trial("1M", 1.0, lr=1e-3), held_out_loss=0.001, status="stopped")
    diverged = dataclasses.replace(trial("1M", 1.0, lr=1e-1), held_out_loss=math.nan)
    other = trial("3M", 1.0, lr=1e-3)
    assert best_rates([lucky, unlucky, *steady, stopped, diverged, other]) == [*steady, other]


def test_the_laws_that_made_the_losses_are_found_again(trials: list[Trial]) -> None:
    laws = scaling_laws(trials)
    assert {name for name in laws if name.startswith("held_out_loss")} == {
        f"held_out_loss/{name}"
        for name in ("parameters", "training_runs", "parameters/training_runs", "cpu_s")
    }
    assert laws["held_out_loss/parameters"].num_points == 5, "of trials with all the data"
    assert laws["held_out_loss/training_runs"].num_points == 3, "of the largest model"
    joint = laws["held_out_loss/parameters/training_runs"]
    assert joint.num_points == 15
    for true, interval in zip((0.4, 0.5), joint.intervals, strict=True):
        assert interval is not None
        assert interval[0] < true < interval[1]
    assert laws["held_out_loss/training_runs"].floor == 0, "three values support no floor"
    assert laws["misalignment/parameters"].exponents[0] > 0


def test_what_rises_is_said_to_rise_rather_than_to_have_reached_a_floor(trials: list[Trial]) -> None:
    worse = [dataclasses.replace(each, alignment=1 - 1e-6 * each.width) for each in trials]
    law = scaling_laws(worse)["misalignment/parameters"]
    assert law.floor == 0
    assert law.exponents[0] < -0.1


def test_kinds_of_tokens_have_laws_of_their_own(trials: list[Trial]) -> None:
    both = [*trials, *(dataclasses.replace(each, tokens="chunks") for each in trials)]
    laws, alone = (scaling_laws(each) for each in (both, trials))
    assert laws["units: held_out_loss/parameters"] == alone["held_out_loss/parameters"]
    assert laws["chunks: held_out_loss/parameters"] == alone["held_out_loss/parameters"]


def test_a_sweep_of_one_size_and_one_share_supports_no_law_but_in_cost() -> None:
    assert set(scaling_laws([trial("1M", 1.0)])) == {"held_out_loss/cpu_s"}
    assert scaling_laws([]) == {}


def test_the_frontier_in_cost_takes_reports_on_the_way_and_of_alignment_ends(trials: list[Trial]) -> None:
    cost, loss = cpu_frontier(trials, "held_out_loss")
    assert cost == sorted(cost)
    assert loss == sorted(loss, reverse=True)
    assert cost[0] == SIZES["0.1M"]
    ends, _ = cpu_frontier(trials, "misalignment")
    assert ends[0] == 4 * SIZES["0.1M"]


def test_picture_and_page_are_whole_and_always_the_same(trials: list[Trial], tmp_path: Path) -> None:
    shown = [*trials, dataclasses.replace(trials[0], status="stopped", alignment=math.nan, name="<lost>")]
    laws = scaling_laws(shown)
    sweep_picture(shown, laws, tmp_path / "scaling.png")
    with Image.open(tmp_path / "scaling.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(2**20) or []) > 50
    page = sweep_page(shown, laws)
    assert page == sweep_page(shown, laws)
    assert "http" not in page
    assert "&lt;lost&gt;" in page
    assert laws["held_out_loss/parameters"].in_words() in page


@pytest.mark.parametrize("chosen", [[], ["one"]])
def test_little_to_show_is_no_error(chosen: list, tmp_path: Path) -> None:
    few = [trial("1M", 1.0) for _ in chosen]
    sweep_picture(few, {}, tmp_path / "scaling.png")
    assert "0.1M" not in sweep_page(few, {})
