"""Films show the episodes that policies have, and files appear whole or not at all."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

from ckpt_factory import make
from ckpt_factory.tasks.base import seeded
from rl_tasks.tasks import PolicyTask
from rl_tasks.watch import CAPTION, PANEL, check_drawable, compose, play, write_film


@pytest.fixture(scope="module")
def task() -> PolicyTask:
    found = make("rl_tasks:cartpole-v0")
    assert isinstance(found, PolicyTask)
    return found


def always_left(task: PolicyTask) -> Any:
    """A policy whose last layer's bias decides alone."""
    params = {name: value for name, value in task.spec.unflatten(task.init([seeded(0)])).items()}
    last = task.spec.names[-2:]
    params[last[0]].zero_()
    params[last[1]][:] = params[last[1]].new_tensor([50.0, -50.0])
    return task.spec.flatten(params).numpy()


def test_a_film_is_the_episode_that_the_policy_has(task: PolicyTask) -> None:
    theta = np.concatenate([always_left(task), task.init([seeded(1)]).numpy()])
    moments = list(play(task, theta, every=3, seed=7))
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=7)
    steps, over = 0, False
    while not over:
        _, _, over, _, _ = env.step(0)
        steps += 1
    assert moments[-1].returns[0] == steps
    assert moments[-1].over == [True, True]
    assert moments[0].returns.tolist() == [0, 0]
    assert len(moments) >= moments[-1].returns.max() // 3
    assert (np.asarray(moments[0].pictures[0]) != np.asarray(moments[-1].pictures[0])).any()


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_films_are_written_whole(task: PolicyTask, tmp_path: Path, suffix: str) -> None:
    moments = list(play(task, always_left(task), every=4))
    frames = [compose(moment, [("prompt 50", "achieved 9.3")]) for moment in moments]
    assert frames[0].size == (PANEL[0], PANEL[1] + CAPTION)
    write_film(frames, tmp_path / f"film{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"film{suffix}"]
    if suffix == ".gif":
        with Image.open(tmp_path / "film.gif") as film:
            assert film.n_frames >= len(frames) - 1  # equal neighbours may be joined
    else:
        assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a film is \.gif or \.mp4, got 'film\.avi'"):
        write_film([Image.new("RGB", (4, 4))], tmp_path / "film.avi")
    assert not list(tmp_path.iterdir())


def policies(env: str) -> PolicyTask:
    found = make(f"rl_tasks:gym-v0?env={env}&max_steps=6")
    assert isinstance(found, PolicyTask)
    return found


def test_discrete_observations_are_filmed_as_they_are_learnt_from() -> None:
    task = policies("FrozenLake-v1")
    moments = list(play(task, task.init([seeded(0), seeded(1)]).numpy(), every=2))
    assert moments[0].pictures[0].shape == (PANEL[1], PANEL[0], 3)
    assert all(moments[-1].over), "at the task's own limit at the latest"


def test_an_environment_without_pictures_is_refused() -> None:
    setting = policies("tests.rl_tasks.own_envs:Counting-v0").setting
    with pytest.raises(ValueError, match=r"Counting-v0' cannot be drawn: it has no render mode 'rgb_array'"):
        check_drawable(setting)


@pytest.mark.filterwarnings("ignore:.*(DISPLAY|GLFW|X11)")  # GLFW's own word on it
def test_a_missing_display_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco", reason="pip install '.[mujoco]'")
    setting = policies("InvertedPendulum-v5").setting
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"InvertedPendulum-v5 cannot be drawn .*set MUJOCO_GL=egl") as error:
        check_drawable(setting)
    assert "\n" not in str(error.value)
