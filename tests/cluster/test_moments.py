"""`theta moments` and --moments: what analytic samplers need to know, measured on a real cluster."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from cluster import moments
from cluster.moments import MomentsConfig
from cluster.train_config import GeneratorConfig
from generator.artefact import WeightGenerator
from generator.sampling.uncertainty import measure_moments


@pytest.mark.ray
def test_moments_are_added_to_a_trained_generator_or_measured_after_training(
    trained: Path, measured: Path, digits: Task, digits_zoo: Zoo, tmp_path: Path
) -> None:
    """The same either way, and the same as measured here."""
    added = tmp_path / "added"
    config = MomentsConfig(generator=trained, zoo=digits_zoo.path, out=added, pairs=32)
    found = moments.add_moments(config)
    assert found["evaluations_use_held_out_runs_before"] == 21
    expected = measure_moments(WeightGenerator.load(trained), digits_zoo, num_pairs=32, seed=0)
    theta, metric = digits.init([seeded(0)]), torch.tensor([2.3])
    how = {"steps": 3, "sampler": "extended-ddpm", "trajectory": "optimal"}
    made = []
    for folder in (added, measured):
        generator = WeightGenerator.load(folder)
        assert generator.moments is not None
        # the same numbers in another process
        torch.testing.assert_close(generator.moments.extended, expected.extended, rtol=1e-4, atol=1e-6)
        generator = dataclasses.replace(generator, calibration=None)
        made.append(generator.update(theta, metric, 0.5, rng=seeded(1), **how))
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-5)
    fields = [json.loads((folder / "config.json").read_text())["training"] for folder in (trained, added)]
    assert fields[0] == fields[1], "how it was trained is kept"


def test_a_sampler_that_needs_moments_has_to_have_them_measured(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"sampler analytic-ddim on an even trajectory needs .* --moments 512"
    ):
        GeneratorConfig(sampler="analytic-ddim")
    with pytest.raises(ValueError, match="optimal trajectory needs"):
        GeneratorConfig(trajectory="optimal")
    assert GeneratorConfig(trajectory="optimal", moments=8).sampling.needs_moments
    with pytest.raises(ValueError, match="moments -1; expected neither to be negative"):
        GeneratorConfig(moments=-1)
    with pytest.raises(ValueError, match="pairs is 0"):
        MomentsConfig(pairs=0)
    assert dataclasses.replace(MomentsConfig(), pairs=3).pairs == 3
