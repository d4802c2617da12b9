"""Coordinates: squared distances of units are squared distances of what they compute."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry, Task, make
from ckpt_factory.nets import ConvNet
from ckpt_factory.tasks import ConvClassifier, ImageData, MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.model.tokens import NeuronTokens

RANKS = [0, 3, 6]


@pytest.fixture(scope="module")
def cifar_like() -> ConvClassifier:
    """Colour images of 8x8 whose neighbouring pixels are alike, in 4 classes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 192, (60, 3, 4, 4), dtype=np.uint8).repeat(2, 2).repeat(2, 3)
    fine = coarse + rng.integers(0, 64, coarse.shape, dtype=np.uint8)
    images = dict.fromkeys(("train", "validation", "test"), fine)
    labels = {split: rng.integers(0, 4, 60) for split in images}
    data = ImageData(
        images=images, labels=labels, full_scale=255.0, mean=(0.5,) * 3, std=(0.3,) * 3, num_classes=4
    )
    return ConvClassifier(data, augment=False)


def networks(task: Task, num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, task.spec.D, generator=seeded(seed))


def training_images(task: MLPClassifier) -> Tensor:
    pixels = torch.from_numpy(task.data.images["train"].astype(np.float64))
    return ((pixels / task.data.full_scale - task.data.mean) / task.data.std).float()


def unit_coordinates(coordinates: Coordinates, z: Tensor, names: set[str]) -> Tensor:
    """Of each unit, the coordinates of some parameters: (K, n, width)."""
    parts = [
        z[:, index].unflatten(1, (coordinates.tokens.num_units, -1))
        for name, index in coordinates.slots()
        if name in names
    ]
    return torch.cat(parts, 2)


def test_squared_distance_of_units_is_mean_squared_difference_of_their_pre_activations(
    tiny: MLPClassifier,
) -> None:
    """The design's claim, with all directions kept."""
    coordinates = Coordinates.fit(tiny, rank=6, floor=1e-7)
    a, b = networks(tiny, 3), networks(tiny, 3, seed=1)
    x = training_images(tiny)
    fc1 = {"fc1.weight", "fc1.bias"}
    ours = unit_coordinates(coordinates, coordinates.encode(a) - coordinates.encode(b), fc1)
    for k in range(3):
        pa, pb = tiny.spec.unflatten(a[k]), tiny.spec.unflatten(b[k])
        pre_a = x @ pa["fc1.weight"].T + pa["fc1.bias"]
        pre_b = x @ pb["fc1.weight"].T + pb["fc1.bias"]
        expected = (pre_a - pre_b).square().mean(0)
        # the moments are stored as float32
        torch.testing.assert_close(ours[k].square().sum(1), expected, rtol=1e-4, atol=1e-4)


def test_squared_distance_of_channels_is_mean_squared_difference_over_all_patches(
    cifar_like: ConvClassifier,
) -> None:
    """The same of a convolution, which has no bias: over images and places, borders among them."""
    coordinates = Coordinates.fit(cifar_like, rank=27, floor=1e-7)
    a, b = networks(cifar_like, 3), networks(cifar_like, 3, seed=1)
    x = cifar_like.examples("train")[0]
    index = dict(coordinates.slots())["conv1.weight"]
    ours = (coordinates.encode(a) - coordinates.encode(b))[:, index].unflatten(1, (16, -1))
    for k in range(3):
        weights = (cifar_like.spec.unflatten(theta[k])["conv1.weight"] for theta in (a, b))
        pre_a, pre_b = (F.conv2d(x, weight, stride=2, padding=1) for weight in weights)
        expected = (pre_a - pre_b).square().mean((0, 2, 3))
        torch.testing.assert_close(ours[k].square().sum(1), expected, rtol=1e-4, atol=1e-4)
    moved = b + coordinates.decode_update(coordinates.encode(a) - coordinates.encode(b))
    torch.testing.assert_close(moved, a, rtol=1e-3, atol=1e-3)


def test_a_smaller_rank_keeps_the_directions_with_most_variance(tiny: MLPClassifier) -> None:
    """The dumb version: project the images on their principal components, and compare there."""
    coordinates = Coordinates.fit(tiny, rank=2)
    a, b = networks(tiny, 1), networks(tiny, 1, seed=1)
    x = training_images(tiny).double().numpy()
    _, _, components = np.linalg.svd(x - x.mean(0), full_matrices=False)
    projected = x.mean(0) + (x - x.mean(0)) @ components[:2].T @ components[:2]
    difference = tiny.spec.unflatten((a - b)[0].double())
    expected = projected @ difference["fc1.weight"].numpy().T + difference["fc1.bias"].numpy()
    ours = unit_coordinates(
        coordinates, coordinates.encode(a) - coordinates.encode(b), {"fc1.weight", "fc1.bias"}
    )
    assert ours.shape == (1, 4, 3)
    # the moments are stored as float32
    np.testing.assert_allclose(ours[0].square().sum(1), (expected**2).mean(0), rtol=1e-3)


@pytest.mark.parametrize("rank", RANKS)
def test_decode_update_inverts_encode_on_what_is_kept(tiny: MLPClassifier, rank: int) -> None:
    coordinates = Coordinates.fit(tiny, rank=rank)
    theta, dz = networks(tiny, 5), torch.randn(5, coordinates.Z, generator=seeded(2))
    moved = theta + coordinates.decode_update(dz)
    assert not torch.equal(moved, theta)
    # float32, divided and multiplied by standard deviations that differ a hundredfold
    torch.testing.assert_close(
        coordinates.encode(moved) - coordinates.encode(theta), dz, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("rank", [0, 6])
def test_encode_loses_nothing_where_all_directions_are_kept(tiny: MLPClassifier, rank: int) -> None:
    coordinates = Coordinates.fit(tiny, rank=rank, floor=1e-7)
    assert coordinates.Z == tiny.spec.D
    a, b = networks(tiny, 4), networks(tiny, 4, seed=1)
    again = a + coordinates.decode_update(coordinates.encode(b) - coordinates.encode(a))
    # float32, as above
    torch.testing.assert_close(again, b, rtol=1e-3, atol=1e-3)


def test_what_lies_outside_the_kept_directions_stays(tiny: MLPClassifier) -> None:
    coordinates = Coordinates.fit(tiny, rank=2)
    dz = torch.randn(3, coordinates.Z, generator=seeded(0))
    change = tiny.spec.unflatten(coordinates.decode_update(dz))["fc1.weight"]
    x = training_images(tiny).double().numpy()
    _, _, components = np.linalg.svd(x - x.mean(0), full_matrices=False)
    outside = change.double().numpy() @ components[2:].T
    # zero but for float32 rounding of the basis
    assert np.abs(outside).max() < 1e-4 * change.abs().max()


def test_pixels_that_never_change_are_left_out(digits: Task) -> None:
    coordinates = Coordinates.fit(digits, rank=64)
    assert coordinates.Z < digits.spec.D
    assert torch.isfinite(coordinates.decode_update(torch.ones(1, coordinates.Z))).all()


@pytest.mark.parametrize("rank", RANKS)
def test_permuting_units_permutes_tokens(tiny: MLPClassifier, rank: int) -> None:
    coordinates = Coordinates.fit(tiny, rank=rank)
    theta = networks(tiny, 3)
    perms = tiny.symmetry.random(3, rng=seeded(1))
    n, width = coordinates.tokens.num_units, coordinates.tokens.layers[0].width
    z, moved = coordinates.encode(theta), coordinates.encode(tiny.symmetry.apply(theta, perms))
    for k in range(3):
        units = z[k, : n * width].view(n, width)[perms["P0"][k]]
        # sums of six float32 terms; the order of the terms does not change, but products are of another shape
        torch.testing.assert_close(moved[k, : n * width].view(n, width), units, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moved[k, n * width :], z[k, n * width :])


@pytest.mark.parametrize("rank", RANKS)
def test_slots_cover_z_exactly_once(tiny: MLPClassifier, rank: int) -> None:
    coordinates = Coordinates.fit(tiny, rank=rank)
    names, indices = zip(*coordinates.slots(), strict=True)
    assert sorted(names) == sorted(tiny.spec.names)
    assert torch.equal(torch.cat(indices).sort().values, torch.arange(coordinates.Z))


@pytest.mark.parametrize("rank", RANKS)
def test_a_parameter_only_moves_coordinates_of_its_slot(tiny: MLPClassifier, rank: int) -> None:
    coordinates = Coordinates.fit(tiny, rank=rank)
    theta = networks(tiny, 1)
    for name, index in coordinates.slots():
        params = {k: v.clone() for k, v in tiny.spec.unflatten(theta).items()}
        params[name] += 1
        moved = (coordinates.encode(tiny.spec.flatten(params)) - coordinates.encode(theta))[0].abs() > 1e-5
        allowed = torch.zeros(coordinates.Z, dtype=torch.bool)
        allowed[index] = True
        if name == "fc1.weight" and rank:  # w changes b + w mu, too
            allowed[dict(coordinates.slots())["fc1.bias"]] = True
        assert moved.any()
        assert not (moved & ~allowed).any()


def test_tensors_round_trip(tiny: MLPClassifier) -> None:
    coordinates = Coordinates.fit(tiny, rank=3)
    again = Coordinates.from_tensors(tiny.spec, tiny.symmetry, coordinates.tensors())
    theta = networks(tiny, 2)
    assert torch.equal(again.encode(theta), coordinates.encode(theta))


def test_a_task_without_input_moments_keeps_its_parameters_as_they_are() -> None:
    task = make("quadratic-v0")
    coordinates = Coordinates.fit(task, rank=128)
    theta = networks(task, 3)
    assert torch.equal(coordinates.encode(theta), theta)
    assert torch.equal(coordinates.decode_update(theta), theta)


@pytest.fixture(params=["mlp", "convolutions"])
def many_layers(request: pytest.FixtureRequest, deep: MLPClassifier) -> Coordinates:
    """Two hidden layers, with reduced inputs, or with a matrix of nine features and units without a bias."""
    if request.param == "mlp":
        return Coordinates.fit(deep, rank=3)
    net = ConvNet()
    spec = ParamSpec.of_module(net)
    return Coordinates(spec, Symmetry(spec, net.axes_to_perm()), {})


def test_several_hidden_layers_are_units_by_layer_and_matrices(deep: MLPClassifier) -> None:
    tokens = Coordinates.fit(deep, rank=3).tokens
    assert [(layer.num_units, layer.width) for layer in tokens.layers] == [(5, 3 + 1), (4, 1 + 3)]
    assert tokens.rest_width == 3
    assert [(m.name, m.num_units, m.layers, m.width) for m in tokens.matrices] == [
        ("fc2.weight", (4, 5), (1, 0), 1)
    ]
    assert [part.stop - part.start for part in tokens.parts] == [20, 16, 3, 20]


def test_several_layers_round_trip(many_layers: Coordinates) -> None:
    theta = torch.randn(3, many_layers.spec.D, generator=seeded(0))
    dz = torch.randn(3, many_layers.Z, generator=seeded(1))
    moved = theta + many_layers.decode_update(dz)
    # float32, divided and multiplied by standard deviations
    torch.testing.assert_close(
        many_layers.encode(moved) - many_layers.encode(theta), dz, rtol=1e-3, atol=1e-3
    )


def test_permuting_the_units_of_all_layers_permutes_coordinates(many_layers: Coordinates) -> None:
    theta = torch.randn(3, many_layers.spec.D, generator=seeded(0))
    perms = many_layers.symmetry.random(3, rng=seeded(1))
    moved = many_layers.encode(many_layers.symmetry.apply(theta, perms))
    z = many_layers.encode(theta)
    # products of another shape
    torch.testing.assert_close(moved, z.gather(1, many_layers.index(perms)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(moved, z)


def test_slots_of_several_layers_are_their_parameters(many_layers: Coordinates) -> None:
    theta = torch.randn(2, many_layers.spec.D, generator=seeded(0))
    z, params = many_layers.encode(theta), many_layers.spec.unflatten(theta)
    for name, index in many_layers.slots():
        if not name.startswith("fc1"):  # reduced in the one, not there in the other
            assert torch.equal(z[:, index], params[name].flatten(1)), name


def test_a_parameter_of_three_layers_is_refused() -> None:
    spec = ParamSpec(("w",), ((2, 3, 4),))
    with pytest.raises(ValueError, match=r"'w' has 3 axes of hidden units"):
        NeuronTokens.of_network(spec, Symmetry(spec, {"w": ("A", "B", "C")}))


def test_hidden_units_have_no_directions_of_their_inputs(
    deep: MLPClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = deep.input_moments() | {"fc2": (torch.zeros(5), torch.eye(5))}
    monkeypatch.setattr(deep, "input_moments", lambda: moments)
    assert set(Coordinates.fit(deep, rank=3).layers) == {"fc1"}
