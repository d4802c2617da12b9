"""Networks of unusual shapes: branches that share no matrix, layers that own no number of their own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ckpt_factory import ModuleTask, RunPlan
from ckpt_factory.tasks.base import seeded
from generator.artefact import WeightGenerator
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.origin import Origin
from generator.rebasin import AlignedDistance, align
from generator.training.reading import reservoir_of
from generator.training.train import TrainConfig, train
from tests.conftest import unchecked, write_zoo

CONFIG = DiTConfig(width=16, depth=1, heads=2)


class Branches(nn.Module):
    """b relu(a x) + d relu(c x): two hidden layers with no matrix between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 4), nn.Linear(6, 5)
        self.b, self.d = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + self.d(self.c(x).relu())


def biasless() -> nn.Module:
    """Three hidden layers; all numbers of the middle one's units stand in matrices between units."""
    layers = [nn.Linear(m, n, bias=False) for m, n in ((6, 5), (5, 4), (4, 5), (5, 3))]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def task_of(network: Callable[[], nn.Module]) -> ModuleTask:
    rng = torch.Generator().manual_seed(0)
    data = {
        split: (torch.randn(40, 6, generator=rng), torch.randint(3, (40,), generator=rng))
        for split in ("train", "validation", "test")
    }
    task = ModuleTask(network, data)
    task.id = f"{network.__name__}-v0"
    return task


def trained(task: ModuleTask, config: DiTConfig, folder: Path) -> WeightGenerator:
    """A generator after a few steps on a zoo of four runs."""
    plan = RunPlan(num_steps=12, batch_size=(8,), num_checkpoints=4)
    zoo = write_zoo(folder / "zoo", task, plan, num_runs=4, stack_size=4)
    coordinates = Coordinates.fit(task, rank=3)
    reservoir = reservoir_of(zoo, coordinates, 0, 4, 4)
    pairs = reservoir.sample(100, rng=seeded(0))
    scaling = Scaling.fit(coordinates, pairs, pairs.prompt)
    reference = reservoir.best("min")
    made = WeightGenerator.untrained(Origin.of_zoo(zoo, 4), coordinates, scaling, config, 0, reference)
    ema = train(
        made.model,
        lambda step, num, rng: made.arrange(reservoir.sample(num, rng=rng), rng=rng),
        scaling,
        TrainConfig(model=config, steps=5, batch_size=8, warmup_steps=1, precision="float32"),
        report=lambda metrics, state: None,
    )
    assert isinstance(ema, type(made.model))
    return replace(made, model=ema)


@pytest.mark.parametrize("tokens", ["units", "canonical"])
@pytest.mark.parametrize("network", [unchecked(Branches), biasless])
def test_networks_of_any_shape_are_learned_and_updated(
    network: Callable[[], nn.Module], tokens: str, tmp_path: Path
) -> None:
    task = task_of(network)
    made = trained(task, replace(CONFIG, tokens=tokens), tmp_path)
    assert len(made.coordinates.tokens.layers) == len(task.symmetry.sizes) > 1
    theta = task.init([seeded(1, k) for k in range(3)])
    metric = task.evaluate(theta, "validation")["loss"]
    updated = made.update(theta, metric, 0.9, rng=seeded(2))
    assert updated.isfinite().all()
    assert (updated - theta).abs().max() > 1e-4
    assert torch.equal(made.update(theta, metric, 0.9, rng=seeded(2)), updated)


def test_units_whose_numbers_are_all_in_matrices_are_aligned() -> None:
    task = task_of(biasless)
    assert [layer.width for layer in Coordinates(task.spec, task.symmetry, {}).tokens.layers] == [6, 0, 3]
    theta = torch.randn(4, task.spec.D, generator=seeded(0))
    moved = task.symmetry.apply(theta, task.symmetry.random(4, rng=seeded(3)))
    assert (moved - theta).norm(dim=1).min() > 1
    assert torch.equal(align(task.spec, task.symmetry, theta, moved), theta)  # it only moves
    distance = AlignedDistance(task.spec, task.symmetry)
    assert distance.nearest(theta, moved).max() == 0
    found, place = distance.nearest_groups(theta, moved, torch.arange(4))
    assert found[:, 0].max() == 0
    assert found[:, 1].min() > 1
    assert place[:, 0].tolist() == [0, 1, 2, 3]
