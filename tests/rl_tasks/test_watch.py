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
from rl_tasks.watch import CAPTION, PANEL, compose, play, write_film


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
