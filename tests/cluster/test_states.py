"""A training goes on from the newest of its saved states that is not damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ckpt_factory.zoo import Zoo
from cluster import train
from cluster.states import NOTE, RAY_FOLDER, RUN, STATE, is_state_saved, last_sound_step, name_of_step

from .test_train import config, model_of


def state_of(out: Path, step: int) -> Path:
    return out / RAY_FOLDER / RUN / name_of_step(step) / STATE


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """As Ray Train leaves it after two states, as far as anything looks at it."""
    for step in (150, 200):
        state_of(tmp_path, step).parent.mkdir(parents=True)
        torch.save({"step": step, "model": torch.arange(5000.0)}, state_of(tmp_path, step))
    results = [{"checkpoint_dir_name": name_of_step(step), "metrics": {}} for step in (150, 200)]
    note = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (tmp_path / RAY_FOLDER / RUN / NOTE).write_text(json.dumps(note))
    return tmp_path


def test_of_sound_states_the_newest_is_gone_on_from(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (saved / RAY_FOLDER / RUN / NOTE).read_bytes()
    assert last_sound_step(saved) == 200
    assert (saved / RAY_FOLDER / RUN / NOTE).read_bytes() == before
    (saved / RAY_FOLDER / RUN / NOTE).unlink()
    assert last_sound_step(saved) is None, "without a note Ray Train begins"
    assert last_sound_step(saved / "none") is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["truncated", "emptied", "gone", "overwritten"])
def test_a_damaged_state_is_named_and_the_one_before_it_gone_on_from(
    how: str, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = state_of(saved, 200)
    if how == "gone":
        shutil.rmtree(path.parent)
    elif how == "overwritten":  # it loads, with other numbers
        written = path.read_bytes()
        at = written.index(torch.arange(4000.0, 4010.0).numpy().tobytes())
        path.write_bytes(written[:at] + bytes(40) + written[at + 40 :])
        torch.load(path, weights_only=True)
    else:
        truncate(path, 2000 if how == "truncated" else 0)
    assert last_sound_step(saved) == 150
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is damaged (" in line
    assert line.endswith("); going on from step 150")
    assert last_sound_step(saved) == 150
    assert capsys.readouterr().err == "", "that is said once"
    truncate(state_of(saved, 150), 2000)
    assert last_sound_step(saved) is None
    assert capsys.readouterr().err.endswith("); going on from the beginning\n")


def test_a_state_that_is_gone_is_taken_out_of_the_note(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray Train refuses a note of states of which any is missing."""
    shutil.rmtree(state_of(saved, 150).parent)
    assert last_sound_step(saved) == 200
    assert "step-00000150/state.pt is damaged (it is gone); going on from step 200" in capsys.readouterr().err
    note = json.loads((saved / RAY_FOLDER / RUN / NOTE).read_text())
    assert [each["checkpoint_dir_name"] for each in note["checkpoint_results"]] == [name_of_step(200)]


def test_whether_a_state_is_saved_is_known(saved: Path) -> None:
    assert is_state_saved(saved)
    for step in (150, 200):
        shutil.rmtree(state_of(saved, step).parent)
    assert last_sound_step(saved) is None
    assert not is_state_saved(saved)
    assert not is_state_saved(saved / "none")


def test_a_torn_note_is_written_anew(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = saved / RAY_FOLDER / RUN / NOTE
    truncate(note, 40)
    assert last_sound_step(saved) == 200
    assert f"{note} is damaged" in capsys.readouterr().err
    written = json.loads(note.read_text())
    assert written["latest_checkpoint_result"]["checkpoint_dir_name"] == name_of_step(200)
    assert (written["current_report_index"], written["checkpoint_report_indices"]) == (2, [0, 1])
    assert last_sound_step(saved) == 200
    assert capsys.readouterr().err == ""


@pytest.mark.ray
@pytest.mark.slow
def test_training_goes_on_from_the_state_before_a_damaged_one(
    trained: Path,
    digits_zoo: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_completed", killed)  # when the last state is saved, and the generator not yet
        with pytest.raises(KeyboardInterrupt):
            train.fit(config(digits_zoo, tmp_path))
    note = tmp_path / RAY_FOLDER / RUN / NOTE
    before = note.read_bytes()
    assert last_sound_step(tmp_path) == 240
    assert note.read_bytes() == before
    truncate(state_of(tmp_path, 240), 2000)
    capsys.readouterr()
    train.fit(config(digits_zoo, tmp_path))
    said = capsys.readouterr().err
    assert f"{state_of(tmp_path, 240)} is damaged" in said
    assert "from step 200" in said
    torch.testing.assert_close(model_of(tmp_path), model_of(trained), rtol=0, atol=0)
    steps = [entry["step"] for entry in train.read_log(tmp_path / train.LOG)]
    assert steps == list(range(20, 241, 20))
    assert not (tmp_path / RAY_FOLDER).exists()
