"""The picture of a zoo: logarithmic axes for losses that fall, and no other; endings that can be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ckpt_factory import RunPlan, Task, make
from ckpt_factory.plots import coverage, zoo_picture
from ckpt_factory.zoo import Zoo
from tests.conftest import write_zoo


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of the pictures that are drawn, in their order."""
    drawn: list[Axes] = []
    save = Figure.savefig

    def savefig(self: Figure, *given: object, **named: object) -> None:
        drawn.extend(self.axes)
        save(self, *given, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def of_objective(zoo: Zoo, objective: str) -> Zoo:
    return Zoo(zoo.path, replace(zoo.header, objective=objective))


def test_only_what_is_minimised_is_on_logarithmic_axes(
    digits_zoo: Zoo, panels: list[Axes], tmp_path: Path
) -> None:
    for objective in ("min", "max"):
        zoo_picture(of_objective(digits_zoo, objective), tmp_path / "picture.png")
    low, high = panels[:3], panels[3:]
    assert (low[0].get_xscale(), low[1].get_yscale()) == ("log", "log")
    assert [ax.get_xscale() for ax in (high[0], high[2])] == ["linear", "linear"]
    assert high[1].get_yscale() == "linear"
    ratios = np.diff(np.log(coverage(digits_zoo)[0]))
    assert ratios == pytest.approx(ratios[0])
    widths = np.diff(coverage(of_objective(digits_zoo, "max"))[0])
    assert widths == pytest.approx(widths[0])


def test_a_loss_that_hardly_falls_is_on_a_linear_axis(
    digits: Task, panels: list[Axes], tmp_path: Path
) -> None:
    plan = RunPlan(num_steps=4, num_checkpoints=3, lr=(1e-4, 1e-3))
    zoo_picture(write_zoo(tmp_path / "zoo", digits, plan, num_runs=3, stack_size=3), tmp_path / "picture.png")
    assert (panels[0].get_xscale(), panels[1].get_yscale()) == ("linear", "linear")
    assert (panels[2].get_xscale(), panels[2].get_yscale()) == ("log", "linear")  # learning rates are


def test_endings_of_one_learning_rate_are_a_histogram_of_all_runs(
    digits_zoo: Zoo, panels: list[Axes], tmp_path: Path
) -> None:
    zoo_picture(digits_zoo, tmp_path / "picture.png")
    endings = panels[2]
    assert endings.get_xlabel() == "last validation loss"
    assert not endings.collections  # no points
    assert 20 <= sum(bar.get_height() for bar in endings.patches) <= 24  # runs, but the outermost


def test_a_zoo_whose_runs_all_diverged_has_a_picture_too(panels: list[Axes], tmp_path: Path) -> None:
    plan = RunPlan(num_steps=400, num_checkpoints=3, lr=(90.0, 90.0))
    zoo = write_zoo(tmp_path / "zoo", make("quadratic-v0"), plan, num_runs=2, stack_size=2)
    zoo_picture(zoo, tmp_path / "picture.png")
    assert panels[2].get_title("left") == "Endings: 0 runs, 2 diverged"
