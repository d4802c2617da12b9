"""Memorisation by the number of runs: one generator's audit against its own runs, and what many add up to."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.audit.audit import AuditSettings, audit_networks, subject_of_grid
from generator.audit.memorisation import by_number, memorisation_picture, memorised, middle_half, wilson
from generator.evaluation.evaluate import finished_runs, prompt_alignment, prompt_grid
from generator.medians import median

FEW = AuditSettings(search_runs=0, baseline_networks=2, pool_runs=4)
FIRST, NUM, PROMPTS = 16, 4, 3


def test_a_generator_is_audited_against_its_own_runs_on_starts_and_prompts_that_all_share(
    digits: Task, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    fewer = replace(generator, origin=replace(generator.origin, num_training_runs=5))
    kept = {"num_networks": NUM, "num_prompts": PROMPTS, "settings": FEW}
    found, of_fewer = (
        memorised(each, digits_zoo, digits, first=FIRST, best=0.5, **kept) for each in (generator, fewer)
    )
    assert (found["searched_runs"], of_fewer["searched_runs"]) == (generator.origin.num_training_runs, 5)
    assert found["prompt_alignment"] == of_fewer["prompt_alignment"], "the same model, the same wishes"

    held_out = finished_runs(digits_zoo, FIRST, NUM)
    assert held_out.run_ids.tolist() == [16, 17, 18, 19]
    start = held_out.theta[:, 0]
    grid = prompt_grid(fewer, digits, start, seed=0, num_prompts=PROMPTS, best=0.5)
    assert (grid["prompts"][:, 0] == 0.5).all()
    subject = subject_of_grid(fewer, grid, start, most=NUM, seed=0)
    result, arrays = audit_networks(subject, held_out, digits_zoo, digits, FEW)
    for name in ("distance_ratio", "copy_rate", "overlap_nearest", "outcome", "off_span"):
        assert of_fewer[name] == result[name]
    ratios = arrays["distance_generated"] / median(arrays["distance_held_out"])
    assert of_fewer["distance_ratio_low"] <= float(median(ratios)) <= of_fewer["distance_ratio_high"]
    ends = of_fewer["prompt_alignment_low"], of_fewer["prompt_alignment_high"]
    assert ends == middle_half(prompt_alignment(grid["prompts"], grid["test_loss"]))


def test_a_generator_whose_networks_are_all_broken_is_refused_in_words(
    digits: Task, digits_zoo: Zoo, generator: WeightGenerator
) -> None:
    broken = copy.deepcopy(generator)
    for parameter in broken.model.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"100% of the networks have no finite .* train for longer"):
        memorised(
            broken,
            digits_zoo,
            digits,
            first=FIRST,
            best=0.5,
            num_networks=NUM,
            num_prompts=PROMPTS,
            settings=FEW,
        )


def test_quartiles_are_of_what_is_finite() -> None:
    assert middle_half(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, torch.nan, torch.inf])) == (2.0, 4.0)
    assert all(math.isnan(end) for end in middle_half(torch.tensor([torch.nan])))


@pytest.mark.parametrize(("share", "num"), [(0.0, 8), (0.25, 8), (0.5, 32), (1.0, 32)])
def test_the_interval_of_a_share_is_where_its_score_is_one(share: float, num: int) -> None:
    """An end p is where |share - p| is one standard deviation of a share of p, or the end of all shares."""
    low, high = wilson(share, num)
    assert 0 <= low <= share <= high <= 1
    for p in (low, high):
        if 1e-9 < p < 1 - 1e-9:
            assert abs(share - p) == pytest.approx(math.sqrt(p * (1 - p) / num))
    assert (low < 1e-9) == (share == 0)
    assert (high > 1 - 1e-9) == (share == 1)


def row(number: int, seed: int, ratio: float, copies: float) -> dict:
    spread = {"low": -0.1, "high": 0.1}
    numbers = {"distance_ratio": ratio, "copy_rate": copies, "overlap_nearest": 0.3, "prompt_alignment": 0.9}
    ends = {f"{name}_{end}": value + by for name, value in numbers.items() for end, by in spread.items()}
    held_out = {"copy_rate_held_out": 0.0, "overlap_nearest_held_out": 0.25}
    return {"training_runs": number, "seed": seed, "passes": copies == 0} | numbers | ends | held_out


ROWS = [row(1000, 0, 0.9, 0.0), row(250, 0, 0.4, 0.5), row(250, 1, 0.6, 0.25)]


def test_means_and_spreads_are_over_seeds() -> None:
    found = by_number(ROWS)
    assert list(found) == [250, 1000]
    assert found[250]["seeds"] == 2
    assert (found[250]["passes"], found[1000]["passes"]) == (0, 1)
    assert found[250]["distance_ratio"] == pytest.approx(0.5)
    assert found[250]["distance_ratio_std"] == pytest.approx(math.sqrt(0.02))
    assert found[1000]["distance_ratio_std"] is None


def test_what_is_not_known_of_a_task_is_left_out_of_means_and_drawn_nowhere(tmp_path: Path) -> None:
    unknown = {"overlap_nearest": None, "overlap_nearest_held_out": None}
    unknown |= {"overlap_nearest_low": math.nan, "overlap_nearest_high": math.nan}
    rows = [each | unknown for each in ROWS]
    assert "overlap_nearest" not in by_number(rows)[250]
    for name, given in (("policies", rows), ("classifiers", ROWS)):
        memorisation_picture(given, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "policies.png").read_bytes() != (tmp_path / "classifiers.png").read_bytes()
