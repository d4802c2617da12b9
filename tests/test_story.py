"""The README's first command, in a process of its own, as a newcomer runs it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import theta_environment

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def theta_demo(out: Path, *flags: str, seconds: float) -> tuple[dict[str, Any], str]:
    """Run `theta demo` and return its result.json and what it said on the way."""
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "demo", "--out", out, *flags],
        env=theta_environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((out / "result.json").read_text()), done.stderr


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Folder, result.json and words of the demo that trains for ten seconds."""
    out = tmp_path_factory.mktemp("demo")
    return out, *theta_demo(out, "--preset", "smoke", "--num-networks", "8", seconds=300)


@pytest.mark.ray
def test_demo_goes_from_nothing_to_a_report(smoke: tuple[Path, dict[str, Any], str]) -> None:
    out, result, said = smoke
    assert result["zoo_runs"] == 256
    # How good it gets in so little time depends on the machine: the slow test below holds it to figures.
    assert result["train_pairs"] > 0
    assert result["prompt_alignment"] < 1
    assert result["one_update_test_loss"] < 2.2, "an untrained generator leaves networks at 2.33"
    assert result["retrieval_prompt_alignment"] > 0.95
    assert result["distance_ratio"] > 0
    assert (out / "report.html").stat().st_size > 50_000
    for stage in ("1/4 zoo", "2/4 generator", "3/4 evaluation", "4/4 report"):
        assert stage in said


@pytest.mark.ray
@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_report_shows_in_a_browser(smoke: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    subprocess.run(
        [
            str(BROWSER),
            *flags.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,3000",
            f"--screenshot={tmp_path / 'report.png'}",
            (smoke[0] / "report.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(tmp_path / "report.png") as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=10**6)
    assert colours is not None
    assert len(colours) > 200, "text and plots are drawn, not a blank page or an error"


@pytest.mark.ray
@pytest.mark.slow
def test_demo_reaches_the_figures_of_the_readme(tmp_path: Path) -> None:
    result, _ = theta_demo(tmp_path, seconds=1200)
    assert result["prompt_alignment"] >= 0.97
    assert result["one_update_test_error"] <= 0.07
    assert result["distance_ratio"] > 0.5, "it does not copy"
