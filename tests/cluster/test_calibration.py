"""theta calibrate: a generator calibrated after its training, as another folder."""

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_factory import RunPlan, Task
from ckpt_factory.zoo import Zoo
from cluster.calibration import COMMAND, CalibrateConfig, calibrate_again
from cluster.moments import COMMAND as MOMENTS
from cluster.moments import MomentsConfig
from generator.artefact import CONFIG, MODEL, WeightGenerator
from generator.calibration import calibrate
from generator.evaluation.evaluate import training_starts
from generator.sampling.samplers import Sampling, SamplingChange
from tests.conftest import write_zoo

pytestmark = pytest.mark.ray


def test_it_is_calibrated_as_in_this_process_and_nothing_else_changes(
    trained: Path, digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    before = (trained / MODEL).read_bytes()
    config = CalibrateConfig(
        generator=trained,
        zoo=digits_zoo.path,
        out=tmp_path,
        starts=4,
        sampling=SamplingChange(steps=1, sampler="ddim"),
        seed=3,
    )
    found = calibrate_again(config)
    made, plain = WeightGenerator.load(tmp_path), WeightGenerator.load(trained)
    assert (made.sampling, plain.calibration) == (Sampling(steps=1, sampler="ddim"), None)
    assert (tmp_path / MODEL).read_bytes() == (trained / MODEL).read_bytes() == before
    starts = training_starts(digits_zoo, plain.origin.num_training_runs, 4)
    expected = calibrate(made, digits, starts, rng=torch.Generator().manual_seed(3))
    assert expected is not None
    assert made.calibration is not None
    torch.testing.assert_close(made.calibration.got, expected.got)
    assert found["stretch"] == made.calibration.stretch == expected.stretch
    assert found["best"] == float(expected.got[0])


def test_what_does_not_belong_together_is_refused(
    trained: Path, digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    other = write_zoo(
        tmp_path / "zoo", digits, RunPlan(num_steps=20, num_checkpoints=4), num_runs=4, stack_size=4
    )
    assert COMMAND.check is not None
    with pytest.raises(ValueError, match="trained on another zoo"):
        COMMAND.check(CalibrateConfig(generator=trained, zoo=other.path, out=tmp_path / "out"))
    shutil.copytree(trained, tmp_path / "another")
    of = (tmp_path / "another" / CONFIG).read_text()
    (tmp_path / "another" / CONFIG).write_text(of.replace('"pairs": ', '"pairs": 1'))
    for odd, command, config in (
        ("{", COMMAND, CalibrateConfig(generator=trained, zoo=digits_zoo.path, out=tmp_path / "another")),
        ("[]", MOMENTS, MomentsConfig(generator=trained, zoo=digits_zoo.path, out=tmp_path / "another")),
    ):
        with pytest.raises(ValueError, match="another holds a generator of another training than"):
            command.check(config)
        (tmp_path / "another" / CONFIG).write_text(of)
        command.check(config)
        (tmp_path / "another" / CONFIG).write_text(odd)
    by = SamplingChange(sampler="extended-ddpm")
    with pytest.raises(ValueError, match="needs to know how uncertain"):
        COMMAND.check(CalibrateConfig(generator=trained, zoo=other.path, sampling=by))
    with pytest.raises(ValueError, match="starts is 0"):
        CalibrateConfig(starts=0)
