"""The further parts of an evaluation, each for real, and their sections of the report."""

import html
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.evaluation import finetune, rivals, suite
from generator.evaluation.amortise import Spent, amortised
from generator.evaluation.evaluate import held_out_runs, prompt_grid, training_checkpoints
from generator.evaluation.suite import Material, SuiteConfig, parts_of, run_part
from generator.report import suite_plots
from generator.report.report import render_report

from .conftest import TRAINING_RUNS
from .test_report import Tags, section, text_of

CONFIG = SuiteConfig(beyond=3, rivals=2, fine_tune=(0, 1), fine_tune_networks=3, walk=6)
SECTIONS = {"rivals": 1, "beyond": 1, "hole": 1, "finetune": 2, "cost": 1, "walk": 2}
"""Sections and their figures."""


@pytest.fixture(scope="module")
def material(generator: WeightGenerator, digits: Task, digits_zoo: Zoo) -> Material:
    """A generator that was, let us say, trained with a hole."""
    seen = training_checkpoints(digits_zoo, TRAINING_RUNS)["validation_loss"].sort().values
    origin = replace(generator.origin, hole=(float(seen[30]), float(seen[50])))
    holed = replace(generator, origin=origin)
    held_out = held_out_runs(digits_zoo, holed, 4)
    return Material(holed, digits_zoo, digits, held_out, holed.best_metric)


@pytest.fixture(scope="module")
def found(material: Material) -> tuple[dict[str, Any], dict[str, Tensor]]:
    numbers: dict[str, Any] = {"best_prompt": material.best}
    arrays: dict[str, Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rivals, "RATES", (0.3, 3.0))  # fewer, for the time's sake
        patch.setattr(finetune, "RATES", (1.0,))
        patch.setattr(suite, "TRAINING_STARTS", 2)
        for part in parts_of(CONFIG, material.generator):
            more_numbers, more_arrays = run_part(material, CONFIG, part)
            assert not numbers.keys() & more_numbers.keys(), part
            numbers |= more_numbers
            arrays |= more_arrays
    grid = prompt_grid(material.generator, material.task, material.starts, seed=0, num_prompts=3)
    clocks = {"cost_sampling_s": 1e-3, "cost_step_stacked_s": 1e-5, "cost_step_alone_s": 2e-4}
    spent = Spent(zoo_s=20.0, training_s=300.0, run_s=0.01)
    held_out = material.held_out
    paid = amortised(held_out, [grid], "test_loss", "min", spent, clocks, num_steps=60)
    return numbers | paid[0], arrays | paid[1]


@pytest.fixture(scope="module")
def page(material: Material, found: tuple[dict[str, Any], dict[str, Tensor]]) -> str:
    return render_report(material.zoo, material.generator, *found, [])


def test_made_are_the_networks_of_the_first_seed(material: Material) -> None:
    grid = prompt_grid(
        material.generator, material.task, material.starts, seed=0, num_prompts=3, best=material.best
    )
    assert torch.equal(material.made(material.starts).theta, grid["theta"][:, 0])


def test_parts_are_those_that_were_asked_for(material: Material) -> None:
    names = [name for name, _ in parts_of(CONFIG, material.generator)]
    assert names.count("rival") == 5
    assert names.count("tuned") == 4
    whole = replace(material.generator, origin=replace(material.generator.origin, hole=None))
    assert parts_of(SuiteConfig(), whole) == [("beyond", "")]
    assert parts_of(SuiteConfig(beyond=0), whole) == []
    assert parts_of(SuiteConfig(beyond=0, amortise=True), whole) == [("clocks", "")]


@pytest.mark.parametrize(
    ("field", "value"),
    [("beyond", 1), ("rivals", -1), ("walk", 3), ("fine_tune", (1, 0)), ("fine_tune", (-1,)),
     ("fine_tune_networks", 0)],
)  # fmt: skip
def test_bad_parts_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        SuiteConfig(**{field: value})


def test_starts_that_are_tuned_are_what_they_are_called(material: Material, found: Any) -> None:
    arrays = found[1]
    made = material.made(material.starts)
    torch.testing.assert_close(
        arrays["finetune_generated_test_loss"][:, 0], made.achieved[-1]["test_loss"][:3]
    )
    start = material.held_out.metrics["test_loss"][:3, 0]
    torch.testing.assert_close(arrays["finetune_random_test_loss"][:, 0], start)
    assert arrays["finetune_retrieved_test_loss"][0, 0] < start.min()
    assert arrays["finetune_trained_test_loss"].shape == (3, 2)


def test_what_is_retrieved_was_learned_from(material: Material, digits: Task, digits_zoo: Zoo) -> None:
    seen = training_checkpoints(digits_zoo, TRAINING_RUNS)["validation_loss"].sort().values
    hole = (0.0, float(seen[50]))  # all that is best
    generator = replace(material.generator, origin=replace(material.generator.origin, hole=hole))
    config = replace(CONFIG, fine_tune=(0,))
    _, arrays = run_part(replace(material, generator=generator), config, ("tuned", "retrieved"))
    expected = finetune.nearest_of_runs(digits_zoo, TRAINING_RUNS, material.best, 3, hole)
    torch.testing.assert_close(
        arrays["finetune_retrieved_test_loss"][:, 0], digits.metrics_of(expected)["test_loss"]
    )


def test_sections_hold_their_figures(page: str) -> None:
    assert {name: section(page, name).count("<svg") for name in SECTIONS} == SECTIONS
    for name in SECTIONS:
        assert f'<a href="#{name}">' in page
        assert "Left out" not in section(page, name)
    tags = Tags()
    tags.feed(re.sub(r"<img [^>]*>", "", page))
    assert tags.open == []
    assert section(page, "walk").count('src="data:image/gif;base64,') == 1
    assert "http" not in page


def test_sections_say_the_numbers(page: str, found: Any) -> None:
    numbers = found[0]
    rows = {name: text_of(section(page, name)) for name in SECTIONS}
    for name in ("SGD", "AdamW", "Lion", "Tiger", "Amos"):
        assert name in rows["rivals"]
    assert "20 training checkpoints" not in rows["hole"]
    assert f"All {numbers['hole_left_out']} training checkpoints" in rows["hole"]
    assert numbers["hole_left_out"] == 19
    assert "random initialisation" in rows["finetune"]
    assert "pays after (alone)" in rows["cost"]
    assert "sampled by ddim in 10 steps" in rows["walk"]


def test_every_number_has_a_meaning(page: str, found: Any) -> None:
    numbers = section(page, "numbers")
    for name in found[0]:
        row = re.search(rf"<tr><th><code>{name}</code></th><td>.*?</td><td>(.*?)</td></tr>", numbers)
        assert row, name
        assert len(html.unescape(row[1])) > 8, f"{name} has no meaning beside it"


def test_sections_survive_what_is_not_finite(material: Material, found: Any) -> None:
    numbers, arrays = found
    broken = {
        name: torch.full_like(values, torch.nan) if values.is_floating_point() else values
        for name, values in arrays.items()
    }
    nothing = {name: None for name in numbers}
    page = render_report(material.zoo, material.generator, nothing, broken, [])
    for name in SECTIONS:
        assert "<svg" in section(page, name)


def test_the_same_walk_gives_the_same_animation() -> None:
    frames = [torch.randn(9, 7, generator=torch.Generator().manual_seed(k)).numpy() for k in range(3)]
    gif = suite_plots.animation(frames, 1.0)
    assert gif.startswith(b"GIF89a")
    assert gif == suite_plots.animation(frames, 1.0)
    assert gif != suite_plots.animation(frames[::-1], 1.0)
