"""The report says what the evaluation says, refers to nothing outside, and bears odd values."""

import dataclasses
import html.parser
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ckpt_factory import RunPlan, Task, make, train_stack
from ckpt_factory.zoo import Zoo, ZooHeader
from generator.artefact import Origin, WeightGenerator
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.evaluation.evaluate import HeldOut, held_out_runs, summarise, training_checkpoints
from generator.model.dit import DiTConfig
from generator.report import pictures, plots
from generator.report.report import render_report
from generator.training.pairs import Reservoir, Runs
from generator.training.reading import metrics_of

CURVE: list[dict[str, float | int]] = [
    {"step": s, "loss": 1 / s, "pairs_per_s": 500.0, "data_wait_share": 0.01, "train_s": s / 10}
    for s in (25, 50, 75)
]
Report = tuple[Zoo, WeightGenerator, dict[str, Any], dict[str, Tensor], list[dict[str, float | int]]]


def grid_on_the_way(task: Task, held_out: HeldOut, seed: int, num_prompts: int = 6) -> dict[str, Any]:
    """Stands in for prompting: networks on the straight way from SGD's end to its start, with some noise."""
    rng = torch.Generator().manual_seed(seed)
    start, end = held_out.theta[:, :1], held_out.theta[:, -1:]
    theta = end + (start - end) * torch.linspace(0.1, 0.8, num_prompts).view(1, -1, 1)  # (N, P, D)
    theta += 0.01 * torch.randn(theta.shape, generator=rng)
    metrics = task.metrics_of(theta.flatten(0, 1))
    grid = {name: values.view(-1, num_prompts) for name, values in metrics.items()}
    return grid | {"prompts": grid[f"validation_{task.metric}"] + 0.05, "theta": theta}


def material(path: Path, task: Task, name: str | None = None) -> Report:
    """A zoo of 8 short runs, a generator that has not learned, and an evaluation with two seeds."""
    plan = RunPlan(num_steps=12, num_checkpoints=5, batch_size=(16,))
    header = ZooHeader.of_task(task, plan, num_runs=8, stack_size=4, dtype="float32")
    zoo = Zoo.create(path, dataclasses.replace(header, task=name or task.id))
    for unit in range(2):
        zoo.write_unit(unit, train_stack(task, plan, plan.runs(header.run_ids(unit))))
    coordinates = Coordinates.fit(task, rank=4)
    rows, reservoir = zoo.read_unit(0), Reservoir(4)
    reservoir.push(
        Runs(
            coordinates.encode(rows.theta.flatten(0, 1)).unflatten(0, (4, 5)),
            metrics_of(rows, (zoo.header.prompted,)),
        )
    )
    pairs = reservoir.sample(64, rng=torch.Generator().manual_seed(0))
    size = DiTConfig(width=16, depth=1, heads=2)
    generator = WeightGenerator.untrained(
        Origin.of_zoo(zoo, 4), coordinates, Scaling.fit(coordinates, pairs, pairs.prompt), size, seed=0
    )
    held_out = held_out_runs(zoo, generator, 4)
    grids = [grid_on_the_way(task, held_out, seed) for seed in (0, 1)]
    result, arrays = summarise(
        generator, held_out, grids, training_checkpoints(zoo, generator.origin.num_training_runs), task
    )
    arrays |= {
        "run_ids": torch.tensor(held_out.run_ids),
        "distance_generated": torch.tensor([3.0, 4.0, 5.0, 6.0]),
        "distance_held_out": torch.tensor([2.0, 4.5, 5.5, 7.0]),
    }
    result |= {"distance_generated": 4.5, "distance_held_out": 5.0, "distance_ratio": 0.9}
    result |= {
        "task": zoo.header.task,
        "sampler": "ddim",
        "sampling_steps": 1,
        "num_networks": 4,
        "num_seeds": 2,
    }
    return zoo, generator, result, arrays, CURVE


@pytest.fixture(scope="module")
def digits_report(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return material(tmp_path_factory.mktemp("report") / "zoo", digits)


@pytest.fixture(scope="module")
def page(digits_report: Report) -> str:
    return render_report(*digits_report)


def text_of(page: str) -> str:
    """What a reader sees: no style sheet, no tags, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", body).split()))


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', page, flags=re.DOTALL)
    assert found, name
    return found[0]


def changed(report: Report, **numbers: Any) -> str:
    """The page with other numbers, without its figures, which take the time."""
    zoo, generator, result, _, _ = report
    return render_report(zoo, generator, result | numbers, {}, [])


def test_headline_says_the_numbers_of_the_result(digits_report: Report):
    page = changed(
        digits_report,
        prompt_alignment=0.9712,
        prompt_alignment_std_over_seeds=0.0021,
        one_update_test_error=0.0584,
        sgd_final_test_error=0.0312,
        sgd_equivalent_steps=61.3,
        sgd_total_steps=450,
        distance_ratio=1.02,
        retrieval_prompt_alignment=0.9962,
    )
    top = text_of(page[: page.index("<section")])
    assert "do almost exactly as prompted (alignment 0.971)" in top
    assert "1.02 times as far" in top
    assert "new networks rather than copies" in top
    assert "one update equals 61 of 450 SGD steps" in top
    assert "reaches an alignment of 0.996 without generating anything" in top
    for card in ("0.971 ± 0.002", "5.84 %", "3.12 %", "8 runs", "40 checkpoints of 1,210 parameters"):
        assert card in top


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"prompt_alignment": -0.87}, "do not do as prompted (alignment -0.870)"),
        ({"prompt_alignment": math.nan}, "have no prompt alignment"),
        ({"distance_ratio": 0.01}, "copies of training checkpoints, or nearly so"),
        ({"distance_ratio": 1.5}, "no copies, though perhaps off the region that training visits"),
        ({"distance_ratio": math.nan}, "whether they are new was not measured"),
        ({"sgd_equivalent_steps": math.inf, "sgd_total_steps": 12}, "equals more than 12 SGD steps"),
        ({"sgd_equivalent_steps": 0.0, "sgd_total_steps": 12}, "equals less than 1 of 12 SGD steps"),
        ({"sgd_equivalent_steps": None}, "worth in SGD steps is unknown"),
        ({"sgd_equivalent_steps": math.nan}, "worth in SGD steps is unknown"),
    ],
)
def test_verdict_follows_the_numbers(digits_report: Report, numbers: dict[str, Any], words: str):
    assert words in text_of(changed(digits_report, **numbers))


def test_all_numbers_are_listed_with_their_meaning(digits_report: Report, page: str):
    numbers = section(page, "numbers")
    for name, value in digits_report[2].items():
        row = re.search(rf"<tr><th><code>{name}</code></th><td>(.*?)</td><td>(.*?)</td></tr>", numbers)
        assert row, name
        assert row[1] == plots.show(value)
        assert len(row[2]) > 8, f"{name} has no meaning beside it"
    assert digits_report[1].origin.zoo_sha256 in numbers
    assert f"torch {torch.__version__.split('+')[0]}" in numbers


def test_sections_hold_their_figures_and_tables(page: str):
    figures = {"zoo": 2, "prompts": 2, "sgd": 2, "distances": 1, "weights": 1, "training": 2, "numbers": 0}
    assert {name: section(page, name).count("<svg") for name in figures} == figures
    assert "Left out" not in page
    assert "8 of 8, 0 diverged" in section(page, "zoo")
    assert "4 held-out initialisations with 6 prompts each" in section(page, "prompts")
    assert "1 of 4 generated networks" not in section(page, "distances")
    assert "3 of 4 generated networks" in section(page, "distances")
    assert "75 steps in 7.500 s, last loss 0.01333" in text_of(section(page, "training"))
    for name in figures:
        assert f'<a href="#{name}">' in page


def test_sections_without_arrays_say_so(digits_report: Report):
    zoo, generator, result, arrays, _ = digits_report
    numbers = {k: v for k, v in result.items() if not k.startswith("distance")}
    page = render_report(
        zoo, generator, numbers, {k: v for k, v in arrays.items() if not k.startswith("distance")}, []
    )
    assert "Left out: the evaluation holds no distance_generated, distance_held_out." in section(
        page, "distances"
    )
    assert "<svg" not in section(page, "distances")
    assert "whether they are new was not measured" in page
    assert "There is no training log." in section(page, "training")
    bare = render_report(zoo, generator, {}, {}, [])
    assert bare.count("Left out") == 4
    assert "<svg" not in bare


def test_a_released_model_has_not_learned_from_the_zoo(digits_report: Report, page: str):
    zoo, generator, result, arrays, curve = digits_report
    origin = dataclasses.replace(generator.origin, released="mnist_loss")
    released = render_report(zoo, dataclasses.replace(generator, origin=origin), result, arrays, curve)
    for text in ("the generator that learned from it", "runs, never trained on"):
        assert text in page
        assert text not in released
    for text in ("a released generator judged on it", "whether the authors of mnist_loss did is not known"):
        assert text in released
        assert text not in page
    assert "runs of the authors of mnist_loss" in section(released, "training")


def test_document_refers_to_nothing_outside(page: str):
    assert "http" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    references = re.findall(r'\b(?:src|href|srcset|data|action)="([^"]*)"', page)
    assert references
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in references)
    assert not re.search(r"<(script|link|iframe|object|img)\b", page)
    assert len(page.encode()) < 2_000_000


def test_local_references_are_defined(page: str):
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    defined = re.findall(r'\bid="([\w-]+)"', page)
    assert used
    assert used <= set(defined)
    assert len(defined) == len(set(defined))


class Tags(html.parser.HTMLParser):
    """Asserts that every tag is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tags_are_balanced(page: str):
    tags = Tags()
    tags.feed(page)
    assert tags.open == []


def test_what_comes_from_outside_is_escaped(tmp_path: Path):
    evil = "<b>digits&$x_1$"
    zoo, generator, result, arrays, curve = material(tmp_path / "<i>zoo", make("quadratic-v0"), name=evil)
    page = render_report(zoo, generator, result | {"<u>": ["<u>"]}, arrays, curve)
    for tag in ("<b>digits", "<i>", "<u>"):
        assert tag not in page
    assert page.count("&lt;b&gt;digits&amp;$x_1$") >= 4
    assert "&lt;i&gt;zoo</code>" in page


def test_same_input_gives_the_same_bytes(digits_report: Report, page: str):
    assert render_report(*digits_report) == page


def test_metric_to_be_maximised_without_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """quadratic-v0 has one vector of parameters; as "max" its metric is a negative return."""
    task = make("quadratic-v0")
    kind = type(task)
    monkeypatch.setattr(kind, "objective", "max")
    monkeypatch.setattr(kind, "metric", "return")
    monkeypatch.setattr(kind, "metrics", ("return",))
    evaluate = kind.evaluate
    monkeypatch.setattr(
        kind, "evaluate", lambda self, theta, split: {"return": -evaluate(self, theta, split)["loss"]}
    )
    page = render_report(*material(tmp_path / "zoo", task))
    assert "loss" not in text_of(page).replace("training loss", "").replace("last loss", "").replace(
        "Loss of", ""
    )
    assert "Test return, one update" in text_of(page)
    assert "<code>theta</code> of held-out networks" in section(page, "weights")


def test_broken_values_do_not_break_the_page(digits_report: Report):
    zoo, generator, result, arrays, curve = digits_report
    arrays = {name: value.clone() for name, value in arrays.items()}
    for name in (
        "achieved_test",
        "one_update_test_loss",
        "sgd_test_loss",
        "made_theta",
        "distance_generated",
    ):
        arrays[name].view(-1)[0] = math.nan
        arrays[name].view(-1)[1] = math.inf
    arrays["sgd_steps"][:] = math.inf
    broken = result | {"prompt_alignment": None, "sgd_equivalent_steps": math.inf, "best_prompt": -math.inf}
    page = render_report(
        zoo, generator, broken, arrays, [*curve, {**curve[-1], "step": 99, "loss": math.nan}]
    )
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()
    assert "6 of 6 never were" in section(page, "sgd")
    assert "last loss not a number" in page
    every = {name: torch.full_like(v, math.nan) if v.is_floating_point() else v for name, v in arrays.items()}
    assert "<svg" in render_report(zoo, generator, result, every, curve)


def test_one_seed_has_no_spread(digits_report: Report):
    top = text_of(changed(digits_report, prompt_alignment=0.5, prompt_alignment_std_over_seeds=None))
    assert "Prompt alignment 0.500 4 networks" in top


def test_figures_keep_digits_of_text_and_thin_out_points(page: str):
    rng = torch.Generator().manual_seed(0)
    prompts = torch.rand(3, 500, 20, generator=rng)
    svg = plots.prompted_achieved(prompts, prompts, prompts[0], "test <metric> $")
    assert svg.count("<use") < plots.MOST_POINTS + 50
    assert "achieved test &lt;metric&gt; $</text>" in svg
    digits = np.zeros((2, 2))
    svg, _ = pictures.weights([[("0.064219", digits)], [("1", digits)]], ["start"])
    assert ">0.064219</text>" in svg


def test_bands_of_few_prompts_mix_none(monkeypatch: pytest.MonkeyPatch):
    """Twelve networks achieve six prompts exactly: the bands have no width."""
    widths: list[float] = []
    monkeypatch.setattr(Axes, "fill_between", lambda ax, at, low, high, **kw: widths.extend(high - low))
    prompts = torch.linspace(0.1, 2.0, 6).expand(1, 12, 6)
    plots.prompted_achieved(prompts, prompts, prompts[0], "test loss")
    assert widths == [0.0] * 12


@pytest.mark.parametrize(
    "values", [[0.073, 0.101], [0.011, 0.012], [0.5, 3.0], [1.0, 40.0], [1.0, 1000.0], []]
)
def test_logarithmic_axes_have_numbers_to_read_by(values: list[float]):
    figure = Figure()
    ax = figure.subplots()
    ax.plot(values, values, "o")
    plots.log_x_axis(ax, values)
    low, high = ax.get_xlim()
    inside = [at for at in ax.xaxis.get_majorticklocs() if low <= at <= high]
    words = {ax.xaxis.get_major_formatter()(at, 0) for at in inside}
    assert 2 + bool(values) <= len(words - {""}) <= 12


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [(64, (4 * 9 - 1, 4 * 9 - 1)), (784, (4 * 30 - 2, 4 * 30 - 2)), (50, (16, 50)), (4, (16, 4))],
)
def test_picture_has_rows_as_images_where_inputs_are_square(inputs: int, shape: tuple[int, int]):
    spec = make("digits-mlp-v0").spec
    spec = type(spec)(("fc1.bias", "fc1.weight"), ((16,), (16, inputs)))
    theta = torch.arange(spec.D, dtype=torch.float32)
    image = pictures.picture(spec, theta)
    assert image.shape == shape
    assert image[0, 0] == 16
    assert np.isfinite(image).sum() == 16 * inputs


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234567, "1,234,567"), (0.06421, "0.06421"), (12345.6, "12,346"), (math.inf, "∞"),
     (math.nan, "not a number"), ("<b>", "&lt;b&gt;"), ([1, "<"], "[1, &quot;&lt;&quot;]")],
)  # fmt: skip
def test_values_are_shown_in_plain_words(value: Any, text: str):
    assert plots.show(value) == text
