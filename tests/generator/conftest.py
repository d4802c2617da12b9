"""Fixtures of the generator's tests: a tiny network, and a generator that was never trained."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks import ImageData, MLPClassifier
from ckpt_factory.tasks.base import seeded
from ckpt_factory.tasks.data import digits as digits_data
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.origin import Origin
from generator.training.pairs import Reservoir, Runs
from generator.training.reading import metrics_of

TRAINING_RUNS = 13
"""Of the 24 runs of `digits_zoo`; in the middle of its second shard of three."""


@pytest.fixture(scope="session")
def tiny() -> MLPClassifier:
    """A 6-4-3 network over 200 images of correlated pixels."""
    return classifier((6, 4, 3))


@pytest.fixture(scope="session")
def deep() -> MLPClassifier:
    """A 6-5-4-3 network over the same images."""
    return classifier((6, 5, 4, 3))


def classifier(sizes: tuple[int, ...]) -> MLPClassifier:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    images = np.clip(30 * mixed + 100, 0, 255).astype(np.uint8)
    labels = rng.integers(0, 3, 200)
    data = ImageData(
        images={"train": images[:120], "validation": images[120:160], "test": images[160:]},
        labels={"train": labels[:120], "validation": labels[120:160], "test": labels[160:]},
        full_scale=255.0,
        mean=0.4,
        std=0.3,
    )
    task = MLPClassifier(data, sizes)
    task.id = f"tiny-{len(sizes)}-v0"
    return task


class Returns(MLPClassifier):
    """A classifier judged as a policy is: by a return, to be maximised, of which some are negative."""

    objective, metric, prompt_start = "max", "return", 1.0
    metrics: ClassVar[tuple[str, ...]] = (
        "return",
        "return_std",
        "deterministic_return",
        "deterministic_return_std",
        "episodes",
    )

    def evaluate(self, theta: Tensor, split: str) -> dict[str, Tensor]:
        found = super().evaluate(theta, split)
        spread = torch.full_like(found["loss"], 3.0)
        values = (230 - 100 * found["loss"], spread, 100 - 100 * found["error"], spread, spread)
        return dict(zip(self.metrics, values, strict=True))

    def env_steps(self, step: int, batch_size: int) -> int:
        """A rollout of 10 steps for every 4 optimizer steps."""
        return -(-step // 4) * 10 * batch_size


@pytest.fixture(scope="session")
def returns() -> Returns:
    """8x8 digits, two hidden layers."""
    task = Returns(digits_data(), (64, 6, 5, 10))
    task.id = "returns-v0"
    return task


def randomise(module: torch.nn.Module, *, seed: int = 0) -> None:
    """Give every parameter a value, so that no zero of the initialisation hides anything."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))


@pytest.fixture(scope="session")
def untrained(digits: Task, digits_zoo: Zoo) -> WeightGenerator:
    """A generator fitted on the training runs of `digits_zoo`, its model as initialised."""
    return fitted(digits, digits_zoo, DiTConfig(width=16, depth=1, heads=2))


def fitted(digits: Task, digits_zoo: Zoo, config: DiTConfig) -> WeightGenerator:
    coordinates = Coordinates.fit(digits, rank=12)
    reservoir = Reservoir(TRAINING_RUNS)
    for unit in range(2):
        rows = digits_zoo.read_unit(unit)
        kept = rows.run_ids < TRAINING_RUNS
        theta = rows.theta[kept]
        z = coordinates.encode(theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
        reservoir.push(Runs(z, metrics_of(rows, (digits_zoo.header.prompted,))[kept]))
    pairs = reservoir.sample(500, rng=seeded(0))
    scaling = Scaling.fit(coordinates, pairs, pairs.prompt)
    origin = Origin.of_zoo(digits_zoo, TRAINING_RUNS)
    reference = reservoir.best("min")
    return WeightGenerator.untrained(origin, coordinates, scaling, config, 0, reference)


@pytest.fixture(scope="session")
def generator(untrained: WeightGenerator) -> WeightGenerator:
    """The same with random weights everywhere: it changes networks, to no good. Read only."""
    coordinates, scaling, config = untrained.coordinates, untrained.scaling, untrained.model.config
    made = WeightGenerator.untrained(untrained.origin, coordinates, scaling, config, seed=0)
    randomise(made.model)
    return made
