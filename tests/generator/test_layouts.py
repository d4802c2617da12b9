"""Layouts: what every denoiser of networks with several hidden layers keeps to, and who permutes what."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ckpt_factory import ParamSpec, Symmetry
from ckpt_factory.nets import ConvNet
from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.model.dit import Denoiser, DiTConfig
from generator.model.layouts import LAYOUTS, arrange, canonical_index
from generator.training.pairs import Pairs

from .conftest import randomise

Made = tuple[Coordinates, Denoiser]


def made(coordinates: Coordinates, tokens: str, *, random: bool = True) -> Made:
    config = DiTConfig(tokens=tokens, width=16, depth=2, heads=2)
    model = LAYOUTS[tokens].make(coordinates, config)
    if random:
        randomise(model)
    return coordinates, model


def networks(name: str, deep: MLPClassifier) -> Coordinates:
    if name == "mlp":
        return Coordinates.fit(deep, rank=3)
    net = ConvNet()
    spec = ParamSpec.of_module(net)
    return Coordinates(spec, Symmetry(spec, net.axes_to_perm()), {})


@pytest.fixture(params=["units", "chunks"])
def model(request: pytest.FixtureRequest, deep: MLPClassifier) -> Made:
    """canonical has the model of chunks."""
    return made(networks("mlp", deep), request.param)


def inputs(z: int, num: int = 3) -> list[Tensor]:
    """u_t, t, start, metrics."""
    rng = seeded(0)
    shapes = ((num, z), (num,), (num, z), (num, 4))
    u, t, start, metrics = (torch.randn(shape, generator=rng) for shape in shapes)
    return [u, t.sigmoid(), start, metrics]


@pytest.mark.parametrize("network", ["mlp", "convolutions"])
@pytest.mark.parametrize("tokens", LAYOUTS)
def test_an_untrained_model_returns_no_update(network: str, tokens: str, deep: MLPClassifier) -> None:
    coordinates, model = made(networks(network, deep), tokens, random=False)
    assert torch.equal(model(*inputs(coordinates.Z)), torch.zeros(3, coordinates.Z))


@pytest.mark.parametrize("network", ["mlp", "convolutions"])
def test_permuting_the_units_of_all_layers_permutes_the_update(network: str, deep: MLPClassifier) -> None:
    """Units: start and noised update permuted alike, by another permutation for each network of the batch."""
    coordinates, model = made(networks(network, deep), "units")
    u, t, start, metrics = inputs(coordinates.Z)
    index = coordinates.index(coordinates.symmetry.random(3, rng=seeded(5)))
    out = model(u, t, start, metrics)
    moved = model(u.gather(1, index), t, start.gather(1, index), metrics)
    assert (out.gather(1, index) - out).abs().max() > 0.1
    # attention and messages sum over units in another order: float32 rounding of values up to 1e2
    torch.testing.assert_close(moved, out.gather(1, index), rtol=1e-4, atol=1e-3)


def test_chunks_know_their_places(deep: MLPClassifier) -> None:
    """Nothing is equivariant about them: that is why they are shuffled, or sorted."""
    coordinates, model = made(networks("mlp", deep), "chunks")
    u, t, start, metrics = inputs(coordinates.Z)
    index = coordinates.index(coordinates.symmetry.random(3, rng=seeded(5)))
    moved = model(u.gather(1, index), t, start.gather(1, index), metrics)
    assert (moved - model(u, t, start, metrics).gather(1, index)).abs().max() > 0.1


def test_every_coordinate_of_both_networks_matters_everywhere(model: Made) -> None:
    """Every output depends on every input: through attention, or along a matrix and then attention."""
    coordinates, denoise = model
    u, t, start, metrics = inputs(coordinates.Z, 1)
    for k in (0, 2):
        given: list[Tensor] = [u, t, start, metrics]
        z = given[k].clone().requires_grad_()
        given[k] = z
        out = denoise(*given)
        for j in range(0, coordinates.Z, 7):
            (gradient,) = torch.autograd.grad(out[0, j], z, retain_graph=True)
            assert (gradient != 0).all(), (k, j)


def test_metrics_and_time_matter(model: Made) -> None:
    coordinates, denoise = model
    u, t, start, metrics = inputs(coordinates.Z)
    out = denoise(u, t, start, metrics)
    assert (denoise(u, 0.5 * t, start, metrics) - out).abs().max() > 1e-3
    for column in range(4):
        changed = metrics.clone()
        changed[:, column] += 0.3
        assert (denoise(u, t, start, changed) - out).abs().max() > 1e-3, column


def test_networks_of_a_batch_do_not_see_one_another(model: Made) -> None:
    coordinates, denoise = model
    given = inputs(coordinates.Z)
    out = denoise(*given)
    for k in range(3):
        alone = denoise(*(value[k : k + 1] for value in given))
        # products of another shape: float32 rounding
        torch.testing.assert_close(alone, out[k : k + 1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("network", ["mlp", "convolutions"])
@pytest.mark.parametrize("tokens", LAYOUTS)
def test_every_parameter_is_used(network: str, tokens: str, deep: MLPClassifier) -> None:
    coordinates, denoise = made(networks(network, deep), tokens)
    denoise(*inputs(coordinates.Z)).square().sum().backward()
    unused = [name for name, p in denoise.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_chunks_never_cross_parameters(deep: MLPClassifier) -> None:
    config = DiTConfig(tokens="chunks", chunk=8, width=16, depth=1, heads=2)
    model = LAYOUTS["chunks"].make(Coordinates.fit(deep, rank=3), config)
    # fc1 (5, 3 kept), its bias, fc2 (4, 5), its bias, fc3 (3, 4), its bias
    assert model.sizes == [8, 7, 5, 8, 8, 4, 4, 8, 4, 3]


def pairs_of(coordinates: Coordinates, num: int = 6) -> Pairs:
    rng = seeded(3)
    start, update = (torch.randn(num, coordinates.Z, generator=rng) for _ in range(2))
    metric = torch.rand(2, num, 1, generator=rng)
    return Pairs(start, metric[0], start + 0.1 * update, metric[1])


def arranged(coordinates: Coordinates, pairs: Pairs, tokens: str, seed: int = 0) -> Pairs:
    reference = pairs_of(coordinates, 1).target[0]
    return arrange(LAYOUTS[tokens], coordinates, pairs, reference=reference, rng=seeded(seed))


def test_units_leave_pairs_and_random_numbers_alone(deep: MLPClassifier) -> None:
    coordinates, rng = networks("mlp", deep), seeded(0)
    pairs, state = pairs_of(coordinates), rng.get_state()
    assert arrange(LAYOUTS["units"], coordinates, pairs, reference=None, rng=rng) is pairs
    assert torch.equal(rng.get_state(), state)


@pytest.mark.parametrize("tokens", ["chunks", "canonical"])
def test_both_networks_of_a_pair_are_permuted_alike(tokens: str, deep: MLPClassifier) -> None:
    coordinates = networks("mlp", deep)
    pairs = pairs_of(coordinates)
    out = arranged(coordinates, pairs, tokens)
    assert not torch.equal(out.start, pairs.start)
    for before, after in ((pairs.start, out.start), (pairs.target, out.target)):
        assert torch.equal(before.sort(1).values, after.sort(1).values), "the same numbers elsewhere"
    moved = (out.target - out.start).norm(dim=1)
    # a pair's distance is what it was; float32 sums in another order
    torch.testing.assert_close(moved, (pairs.target - pairs.start).norm(dim=1))
    assert torch.equal(out.prompt, pairs.prompt)


def test_chunks_shuffle_anew_and_canonical_never(deep: MLPClassifier) -> None:
    coordinates = networks("mlp", deep)
    pairs = pairs_of(coordinates)
    for tokens, alike in (("chunks", False), ("canonical", True)):
        one, other = (arranged(coordinates, pairs, tokens, seed) for seed in (0, 1))
        assert torch.equal(one.start, other.start) == alike


def test_the_canonical_order_does_not_depend_on_the_order_a_network_comes_in(deep: MLPClassifier) -> None:
    coordinates = networks("mlp", deep)
    z, reference = pairs_of(coordinates).start, pairs_of(coordinates, 1).target[0]
    shuffled = z.gather(1, coordinates.index(coordinates.symmetry.random(len(z), rng=seeded(1))))
    assert not torch.equal(shuffled, z)
    ours, theirs = (x.gather(1, canonical_index(coordinates, x, reference)) for x in (z, shuffled))
    assert torch.equal(ours, theirs)


def test_the_reference_is_in_order(deep: MLPClassifier) -> None:
    coordinates = networks("mlp", deep)
    reference = pairs_of(coordinates, 1).target
    index = coordinates.index(coordinates.symmetry.random(1, rng=seeded(1)))
    shuffled = reference.gather(1, index)
    assert torch.equal(shuffled.gather(1, canonical_index(coordinates, shuffled, reference[0])), reference)


def test_chunk_sizes_are_for_chunks_alone() -> None:
    with pytest.raises(
        ValueError, match="chunk is 8 with tokens 'units'; expected at least 1, and only with"
    ):
        DiTConfig(chunk=8)
    with pytest.raises(ValueError, match="chunk is 0 with tokens 'chunks'"):
        DiTConfig(tokens="chunks", chunk=0)
    assert replace(DiTConfig(), tokens="canonical", chunk=8).chunk == 8
