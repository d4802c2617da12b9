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
from generator.artefact import WeightGenerator
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig, TokensName
from generator.sampling.diffusion import add_noise
from generator.training.behaviour import Behaviour

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


def test_noise_is_drawn_where_the_generator_is_and_added_on_the_device() -> None:
    with FakeTensorMode():
        x0, t = torch.zeros(3, 5, device="cuda"), torch.zeros(3, device="cuda")
        assert add_noise(x0, t, rng=seeded(0)).device.type == "cuda"


def test_scales_and_bases_are_moved_as_a_whole(digits: Task, untrained: WeightGenerator) -> None:
    """So that a training does it once and not at every use."""
    scaling, coordinates = untrained.scaling.to("meta"), untrained.coordinates.to("meta")
    assert scaling.views == untrained.scaling.views
    assert coordinates.layers.keys() == untrained.coordinates.layers.keys() > set()
    tensors = [scaling.start_mean, scaling.start_scale, scaling.update_scale]
    tensors += [each for layer in coordinates.layers.values() for each in vars(layer).values()]
    assert {each.device.type for each in tensors} == {"meta"}
    update = torch.zeros(2, coordinates.Z, device="meta")
    assert coordinates.decode_update(scaling.unscale_update(update)).shape == (2, digits.spec.D)
    moved = Behaviour(digits, untrained.coordinates).to("meta")
    assert all(layer.basis.is_meta for layer in moved.coordinates.layers.values())


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
