"""The report shows the audit: its verdict on top, the frontier, and every number with its meaning."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ckpt_factory import Task
from generator.audit.baselines import BASELINES
from generator.audit.frontier import Judged, Subjects, frontier_picture
from generator.audit.verdict import conclude
from generator.report.glossary import meaning
from generator.report.report import render_report

from .test_report import Report, changed, material, section, text_of

NUMBERS: dict[str, Any] = {
    "relative_distance": 1.02,
    "near_rate": 0.04,
    "copy_rate": 0.0,
    "copy_rate_held_out": 0.0,
    "prompt_alignment": 0.97,
    "shuffled_prompt_alignment": -0.91,
    "prompt_gain": 1.88,
    "prompt_gain_low": 1.7,
    "networks_given": 32,
    "networks_asked": 32,
    "networks": 32,
    "broken": 0.0,
    "repeated": 0.0,
    "searched_runs": 900,
    "training_runs": 1800,
    "distance_to_start": 4.5,
}


def judged(quality: float, overlap: float, distance: float, num: int = 12) -> Judged:
    rng = torch.Generator().manual_seed(int(1e4 * quality))
    around = [value + 0.01 * torch.randn(num, generator=rng) for value in (quality, distance, overlap)]
    return Judged(*around, torch.full((num,), 0.4), torch.full((num,), 0.6))


def concluded(*, classifies: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Of baselines that lose quality as they become new, and networks that are both."""
    families = {
        name: [(s, judged(0.05 + 0.1 * i, 0.9 - 0.1 * i, 1.0 + i)) for i, s in enumerate(each.settings)]
        for name, each in BASELINES.items()
    }
    subjects = Subjects(judged(0.06, 0.5, 8.0), judged(0.059, 0.45, 8.2), judged(0.04, 0.4, 8.1))
    if not classifies:
        unknown = torch.full((12,), torch.nan)
        subjects = Subjects(*(each._replace(overlap=unknown, overlap_nearest=unknown) for each in subjects))
    return conclude(NUMBERS, subjects, families, ("error", "min"), 0)


@pytest.fixture(scope="module")
def report(digits: Task, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return material(tmp_path_factory.mktemp("audited") / "zoo", digits)


def page_of(report: Report, audited: tuple[dict[str, Any], dict[str, Tensor]]) -> str:
    """The page without the figures of other sections, which take the time."""
    zoo, generator, result, _, _ = report
    numbers = {f"audit_{name}": value for name, value in audited[0].items()}
    return render_report(
        zoo, generator, result | numbers, {f"audit/{n}": a for n, a in audited[1].items()}, []
    )


def test_the_report_shows_verdict_frontiers_and_margins(report: Report) -> None:
    audited = concluded()
    page = page_of(report, audited)
    top, shown = text_of(page[: page.index("<section")]), section(page, "audit")
    assert "The audit passes. Generates: the networks are new" in top
    assert "Searched 900 of 1,800 training runs." in top
    assert shown.count("<svg") == 2
    assert "instead of 0.970" in shown
    for name in BASELINES:
        assert name in text_of(shown)
    noise = audited[0]["margins"]["mistakes"]["noise"]
    assert f"{100 * noise[0]:#.3g}".rstrip(".") in shown
    words = text_of(shown)
    assert "Better than, at equal novelty, points" in words
    assert "held-out SGD, as good" in words
    assert words.count("held-out SGD, at its best") == 3, "in both figures and in the table of margins"
    assert "held-out SGD" not in words.replace("held-out SGD, a", "")
    numbers = section(page, "numbers")
    for name in audited[0]:
        if name not in ("distance_generated", "distance_held_out", "distance_ratio"):
            assert meaning(f"audit_{name}", "SGD"), f"{name} has no meaning"
            assert f"<code>audit_{name}</code>" in numbers


@pytest.mark.parametrize("never", [True, False])
def test_infinity_is_explained_where_it_stands(report: Report, *, never: bool) -> None:
    result, arrays = concluded()
    for margins in (result["margins"], result["margins_held_out"]):
        for of_axis in margins.values():
            of_axis["noise"] = [None] * 3 if never else [0.1, 0.05, 0.2]
            for name in set(of_axis) - {"noise"}:
                of_axis[name] = [0.1, 0.05, 0.2]
    words = text_of(section(page_of(report, (result, arrays)), "audit"))
    assert ("Where it never is, the number is ∞." in words) == never
    assert ("∞" in words) == never


def test_a_policys_novelty_is_in_its_weights_alone(report: Report) -> None:
    shown = section(page_of(report, concluded(classifies=False)), "audit")
    assert shown.count("<svg") == 1
    assert "distance to the nearest training network" in shown
    assert "nan" not in shown.lower()


def test_an_evaluation_without_audit_has_no_such_section(report: Report) -> None:
    assert '<section id="audit">' not in changed(report, prompt_alignment=0.5)


def test_the_same_audit_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        frontier_picture(tmp_path / name, *concluded())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 2 * picture.height, "two frontiers side by side"
