"""One training that several tests compare with or use, since each costs a start of Ray Train."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckpt_factory.zoo import Zoo
from cluster import train
from cluster.train_config import GeneratorConfig
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig

TRAINING = TrainConfig(
    model=DiTConfig(width=32, depth=1),
    steps=240,
    batch_size=32,
    warmup_steps=10,
    report_every=20,
    checkpoint_every=40,
    precision="float32",
)


def mirror_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on eigenvectors have the other sign, as they may have on another processor."""
    fit = Coordinates.fit

    def mirrored(*given: Any, **more: Any) -> Coordinates:
        made = fit(*given, **more)
        layers = {name: replace(layer, basis=-layer.basis) for name, layer in made.layers.items()}
        return replace(made, layers=layers)

    monkeypatch.setattr(Coordinates, "fit", mirrored)


@pytest.fixture(scope="session")
def trained(ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator trained on `digits_zoo` by two workers without interruption. Copy it before changing it."""
    out = tmp_path_factory.mktemp("generators") / "whole"
    train.fit(GeneratorConfig(zoo=digits_zoo.path, out=out, held_out=0.25, training=TRAINING))
    return out


@pytest.fixture(scope="session")
def measured(ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, with all that is measured after it: calibrated for one step of ddim, and moments."""
    out = tmp_path_factory.mktemp("generators") / "measured"
    how = {"sampling_steps": 1, "sampler": "ddim", "calibrate": 18, "moments": 32}
    train.fit(GeneratorConfig(zoo=digits_zoo.path, out=out, held_out=0.25, training=TRAINING, **how))
    return out
