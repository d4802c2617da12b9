"""Learning curves: the steps are those taken, the returns those of the policies, the picture says both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ckpt_factory import RunPlan, make, train_stack
from rl_tasks import curves
from rl_tasks.curves import Curves, facts, learning_curves, moments_of
from rl_tasks.plots import curves_picture, thousands
from rl_tasks.tasks import PolicyTask

PLAN = RunPlan(
    num_steps=12,
    batch_size=(32,),
    optimizer=("adamw",),
    lr=(0.2, 0.2),
    weight_decay=(0.0, 0.0),
    num_checkpoints=13,
    spacing="uniform",
)
ES = replace(PLAN, batch_size=(8,), num_steps=4, num_checkpoints=5)
CROSSING = Curves(
    env_steps=np.array([[0, 100, 1000], [0, 200, 4000]]),
    returns=np.array([[10.0, 60.0, 80.0], [20.0, 30.0, 70.0]]),
    cpu_s_per_run=0.5,
)


def policies(options: str) -> PolicyTask:
    task = make(f"rl_tasks:cartpole-v0?episodes=4&max_steps=60&{options}")
    assert isinstance(task, PolicyTask)
    return task


def test_ppos_curve_is_of_the_policies_that_a_zoo_would_hold() -> None:
    """At the starts of rollouts: of 64 transitions, each learnt from once, in two minibatches."""
    task = policies("copies=4&rollout=16&epochs=1")
    assert moments_of(task, 12, 32) == [0, 2, 4, 6, 8, 10, 12]
    found = learning_curves(task, PLAN, range(3))
    rows = train_stack(task, PLAN, PLAN.runs(range(3)))
    assert found.returns.tolist() == rows.metrics["test_return"][:, ::2].double().tolist()
    assert found.env_steps.tolist() == [[64 * rollouts for rollouts in range(7)]] * 3
    assert found.cpu_s_per_run > 0


def test_evolutions_curve_counts_the_steps_that_were_taken() -> None:
    task = policies("algorithm=es")
    found = learning_curves(task, ES, range(2))
    assert found.env_steps.shape == (2, 5)
    assert (found.env_steps[:, -1] < task.env_steps(4, 8)).all()
    assert (np.diff(found.env_steps, axis=1) > 0).all()
    rows = train_stack(task, ES, ES.runs(range(2)))
    assert found.returns.tolist() == rows.metrics["test_return"].double().tolist()


def test_moments_are_few_and_end_with_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOMENTS", 6)
    moments = moments_of(policies("algorithm=es"), 1000, 8)
    assert moments == [0, 1, 4, 16, 63, 251, 1000]
    task = policies("copies=4&rollout=16&epochs=3")  # six updates a rollout: the last one is cut short
    assert moments_of(task, 20, 32)[-1] == 20


def test_a_target_is_reached_when_a_run_is_first_seen_there() -> None:
    assert CROSSING.env_steps_to(60.0).tolist() == [100, 4000]
    assert CROSSING.env_steps_to(75.0).tolist() == [1000, np.inf]
    said = facts(CROSSING, 75.0)
    assert (said["runs_that_reached_it"], said["runs"], said["final_return"]) == (1, 2, 75.0)
    assert said["env_steps_to_target"] == np.inf  # half of one and never
    assert facts(CROSSING, 60.0)["env_steps_to_target"] == 2050.0


def test_a_curve_is_the_mean_over_runs_and_says_nothing_of_steps_that_not_all_took() -> None:
    curve = CROSSING.summary()
    assert (curve["env_steps"][0], curve["env_steps"][-1]) == (100, 1000)
    assert curve["mean"][0] == (60.0 + 25.0) / 2  # the second run is half way between its two moments
    at_the_end = 30.0 + 40.0 * 800 / 3800
    assert curve["mean"][-1] == pytest.approx((80.0 + at_the_end) / 2)
    assert (curve["low"] <= curve["mean"]).all()
    assert (curve["mean"] <= curve["high"]).all()
    assert curve["low"][0] == pytest.approx(25.0 + 0.1 * 35.0)


def test_a_picture_has_a_panel_an_environment_and_a_line_an_algorithm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    algorithms = {"PPO": facts(CROSSING, 60.0), "evolution": facts(CROSSING, 75.0)}
    panels = {name: {"target": 60.0, "algorithms": algorithms} for name in ("CartPole-v1", "Pendulum-v1")}
    curves_picture(panels, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1.9 * picture.size[1]
    (figure,) = figures
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["CartPole-v1", "Pendulum-v1"]
    for ax in figure.axes:
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == [
            "PPO: 60 after 2k steps (median), 2 of 2 runs",
            "evolution: 60 not in the median, 1 of 2 runs",
        ]
        assert ax.lines[0].get_ydata().tolist() == algorithms["PPO"]["curve"]["mean"]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(
    ("value", "text"), [(512.0, "512"), (9216.0, "9.2k"), (41e3, "41k"), (1e5, "100k"), (1.3e6, "1.3M")]
)
def test_steps_have_two_figures(value: float, text: str) -> None:
    assert thousands(value) == text
