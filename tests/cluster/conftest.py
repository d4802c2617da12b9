"""One training that several tests compare with or use, since each costs a start of Ray Train."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from ckpt_factory.zoo import Zoo
from cluster import train
from cluster.runtime import LOOPBACK_ONLY
from cluster.train_config import GeneratorConfig
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.training.train import TrainConfig

from ..conftest import theta_environment
from .processes import descendants, listening_addresses

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
def intruder(ray_cluster: int) -> Iterator[subprocess.Popen[str]]:
    """A process that wants to join with a token of its own: it takes twenty seconds to be turned away."""
    address = ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    environment = theta_environment() | LOOPBACK_ONLY | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()


@pytest.fixture(scope="session")
def watched_training(
    intruder: subprocess.Popen[str], digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, set[str]]:
    """The folder of a training by two workers, and the addresses that Ray listened on meanwhile.

    While it trains the intruder is turned away.
    """
    out = tmp_path_factory.mktemp("generators") / "whole"
    config = GeneratorConfig(zoo=digits_zoo.path, out=out, held_out=0.25, training=TRAINING)
    addresses: set[str] = set()
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train.fit, config)
        while not training.done():
            addresses |= listening_addresses(descendants(os.getpid()))
            wait([training], timeout=0.5)
        training.result()
    return out, addresses


@pytest.fixture(scope="session")
def listened_on(watched_training: tuple[Path, set[str]]) -> set[str]:
    """The addresses, as /proc writes them, that Ray listened on while it trained."""
    return watched_training[1]


@pytest.fixture(scope="session")
def trained(watched_training: tuple[Path, set[str]]) -> Path:
    """A generator trained on `digits_zoo` by two workers without interruption. Copy it before changing it."""
    return watched_training[0]


@pytest.fixture(scope="session")
def measured(ray_cluster: int, digits_zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, with all that is measured after it: calibrated for one step of ddim, and moments."""
    out = tmp_path_factory.mktemp("generators") / "measured"
    how = {"sampling_steps": 1, "sampler": "ddim", "calibrate": 18, "moments": 32}
    train.fit(GeneratorConfig(zoo=digits_zoo.path, out=out, held_out=0.25, training=TRAINING, **how))
    return out
