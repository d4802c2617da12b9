"""Function space of layers that read hidden units: their squared errors are those of what units compute."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from ckpt_factory import ModuleTask, Task
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.hidden import hidden_layers


class Small(nn.Module):
    """Three hidden channels and three hidden units; the second layers read them."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, 3, 2, padding=1, stride=2, bias=bias)
        self.fc = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(h.mean((2, 3)))


def odd() -> nn.Module:
    """Of which units may change their sign, too."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(50, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 4)
    )


def without_bias() -> nn.Module:
    return Small(bias=False)


def data() -> dict[str, tuple[Tensor, Tensor]]:
    x = torch.randn(40, 2, 5, 5, generator=seeded(5))
    return dict.fromkeys(("train", "validation", "test"), (x, torch.arange(40) % 4))


def task_of(network: Callable[[], nn.Module] = Small) -> ModuleTask:
    return ModuleTask(network, data())


def networks(task: Task, num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, task.spec.D, generator=seeded(seed))


def in_every_order(task: Task, theta: Tensor) -> Tensor:
    """Each network with its units in every order: moments over these know no unit by its name."""
    made = []
    for orders in torch.cartesian_prod(torch.arange(6), torch.arange(6)):
        every = torch.tensor(list(permutations(range(3))))
        perms = {
            name: every[i].expand(len(theta), 3) for name, i in zip(task.symmetry.sizes, orders, strict=True)
        }
        made.append(task.symmetry.apply(theta, perms))
    return torch.cat(made)


def pre_activations(task: Task, theta: Tensor, name: str, change: dict[str, Tensor]) -> Tensor:
    """What a layer with changed weights would say to its own inputs, in each network: (N, ...)."""
    found = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        arguments = (inputs[0], change[f"{name}.weight"], change.get(f"{name}.bias"))
        if isinstance(layer, nn.Conv2d):
            found.append(nn.functional.conv2d(*arguments, layer.stride, layer.padding))
        else:
            found.append(nn.functional.linear(*arguments))

    module = task.module()
    module.get_submodule(name).register_forward_pre_hook(hook)
    x, _ = task.examples("train")
    with torch.no_grad():
        for each in theta:
            module.load_state_dict(task.spec.unflatten(each))
            module(x)
    return torch.stack(found)


@pytest.mark.parametrize("network", [Small, without_bias])
@pytest.mark.parametrize("name", ["conv2", "fc"])
def test_squared_errors_are_those_of_pre_activations_in_the_mean_over_networks(
    network: Callable[[], nn.Module], name: str
) -> None:
    task = task_of(network)
    assert set(task.symmetry.sizes.values()) == {3}
    zoo = in_every_order(task, networks(task, 3))
    layers = hidden_layers(task, zoo, num_examples=4000)  # drawn with replacement: nearly all alike
    assert set(layers) == {"conv2", "fc"}
    coordinates = Coordinates(task.spec, task.symmetry, {}, layers)
    change = networks(task, 1, seed=1)
    plain, z = task.spec.unflatten(change[0]), coordinates.encode(change)[0]
    ours = sum(
        z[index].square().sum()
        for parameter, index in coordinates.slots()
        if parameter.rpartition(".")[0] == name
    )
    said = pre_activations(task, zoo, name, plain)
    channel = 2  # (N, B, channels, ...)
    theirs = said.square().mean([axis for axis in range(said.ndim) if axis != channel]).sum()
    assert float(ours) == pytest.approx(float(theirs), rel=0.05)
    raw = sum(plain[each].square().sum() for each in plain if each.rpartition(".")[0] == name)
    assert abs(float(raw) / float(theirs) - 1) > 0.3, "errors of parameters as they are say something else"


def test_coordinates_and_back() -> None:
    task = task_of()
    coordinates = Coordinates.fit(task, rank=0, networks=networks(task, 5))
    assert set(coordinates.hidden) == {"conv2", "fc"}
    assert not coordinates.layers
    a, b = networks(task, 4, seed=1), networks(task, 4, seed=2)
    change = coordinates.encode(a) - coordinates.encode(b)
    torch.testing.assert_close(coordinates.decode_update(change), a - b, rtol=1e-3, atol=1e-4)
    stored = Coordinates.from_tensors(task.spec, task.symmetry, coordinates.tensors())
    torch.testing.assert_close(stored.encode(a), coordinates.encode(a), rtol=0, atol=0)
    assert (coordinates.encode(a) - Coordinates(task.spec, task.symmetry, {}).encode(a)).abs().max() > 0.1


@pytest.mark.parametrize("network", [Small, odd])
def test_permuting_units_is_permuting_coordinates(network: Callable[[], nn.Module]) -> None:
    task = task_of(network)
    if network is odd:
        task.symmetry = replace(task.symmetry, signed=("P0", "P1"))
    coordinates = Coordinates.fit(task, rank=0, networks=networks(task, 5))
    assert len(coordinates.hidden) == 2
    theta = networks(task, 4, seed=1)
    perms = task.symmetry.random(4, rng=seeded(3))
    moved = coordinates.encode(task.symmetry.apply(theta, perms))
    z = coordinates.encode(theta).gather(1, coordinates.index(perms))
    factor = task.symmetry.factor(perms)
    assert (factor is None) == (network is Small)
    if factor is not None:
        z = z * factor[:, coordinates.order.argsort()]
    torch.testing.assert_close(moved, z, rtol=1e-4, atol=1e-4)


def test_a_layer_that_hears_nothing_is_left_as_it_is() -> None:
    task = task_of()
    silent = torch.zeros(2, task.spec.D)
    for layer in hidden_layers(task, silent).values():
        torch.testing.assert_close(layer.rest, torch.eye(len(layer.rest)))
        assert not layer.mean.any()
