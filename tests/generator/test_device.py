"""Generators follow the device of networks: a real GPU where there is one, torch's fake one everywhere."""

import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ckpt_factory import Task
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.coordinates import Coordinates
from generator.dit import DiTConfig, TokensName

from .conftest import fitted, randomise

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_orders_of_units_stay_on_the_device(deep: MLPClassifier) -> None:
    coordinates = Coordinates.fit(deep, rank=3)
    assert coordinates.order.device.type == "cpu"  # made once, wherever networks are
    with FakeTensorMode(allow_non_fake_inputs=True):
        perms = {
            name: torch.zeros(3, n, dtype=torch.long, device="cuda")
            for name, n in coordinates.symmetry.sizes.items()
        }
        index = coordinates.index(perms)
    assert index.shape == (3, coordinates.Z)
    assert index.device.type == "cuda"


@NEEDS_GPU
@pytest.mark.parametrize("tokens", ["units", "canonical"])
def test_a_gpu_makes_the_updates_of_the_cpu(tokens: TokensName, digits: Task, digits_zoo: Zoo) -> None:
    """Metrics, prompts and the random generator may be on the CPU still."""
    made = fitted(digits, digits_zoo, DiTConfig(tokens=tokens, width=16, depth=1, heads=2))
    randomise(made.model)
    theta, metric = digits.init([seeded(5, k) for k in range(3)]), torch.full((3,), 2.3)
    expected = made.update(theta, metric, 0.5, rng=seeded(1))
    on_gpu = replace(made, model=copy.deepcopy(made.model).cuda())
    found = on_gpu.update(theta.cuda(), metric, 0.5, rng=seeded(1))
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)  # sums in another order
    drawn = on_gpu.update(theta.cuda(), metric, 0.5, rng=torch.Generator("cuda").manual_seed(1))
    assert drawn.isfinite().all()
