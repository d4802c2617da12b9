"""WeightDiT: nothing before training, and equivariant to the permutation of units whatever its weights."""

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task, make
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.dit import DiTConfig, WeightDiT

from .conftest import randomise

CONFIG = DiTConfig(width=16, depth=2, heads=2)


def inputs(z: int, num: int = 3) -> list[Tensor]:
    """u_t, t, start, metrics."""
    rng = seeded(0)
    shapes = ((num, z), (num,), (num, z), (num, 4))
    u, t, start, metrics = (torch.randn(shape, generator=rng) for shape in shapes)
    return [u, t.sigmoid(), start, metrics]


def model_of(task: Task, rank: int = 3) -> tuple[Coordinates, WeightDiT]:
    coordinates = Coordinates.fit(task, rank=rank)
    return coordinates, WeightDiT(coordinates.tokens, CONFIG)


def test_an_untrained_model_returns_no_update(tiny: Task) -> None:
    coordinates, model = model_of(tiny)
    assert torch.equal(model(*inputs(coordinates.Z)), torch.zeros(3, coordinates.Z))


@pytest.mark.parametrize("rank", [0, 3])
def test_permuting_units_permutes_the_update(tiny: Task, rank: int) -> None:
    coordinates, model = model_of(tiny, rank)
    randomise(model)
    u, t, start, metrics = inputs(coordinates.Z)
    n, width = coordinates.tokens.num_units, coordinates.tokens.unit_width

    def permuted(z: Tensor) -> Tensor:
        units = z[:, : n * width].view(len(z), n, width)
        return torch.cat([units[:, [2, 0, 3, 1]].flatten(1), z[:, n * width :]], 1)

    out = model(u, t, start, metrics)
    assert (permuted(out) - out).abs().max() > 0.01
    # attention sums over tokens in another order: float32 rounding
    torch.testing.assert_close(
        model(permuted(u), t, permuted(start), metrics), permuted(out), rtol=1e-4, atol=1e-4
    )


def test_every_input_matters(tiny: Task) -> None:
    coordinates, model = model_of(tiny)
    randomise(model)
    given = inputs(coordinates.Z)
    out = model(*given)
    for i in range(4):
        changed = [value + 0.3 if i == j else value for j, value in enumerate(given)]
        assert (model(*changed) - out).abs().max() > 1e-3, i
    for column in range(4):
        metrics = given[3].clone()
        metrics[:, column] += 0.3
        assert (model(*given[:3], metrics) - out).abs().max() > 1e-3, column


def test_networks_of_a_batch_do_not_see_one_another(tiny: Task) -> None:
    coordinates, model = model_of(tiny)
    randomise(model)
    given = inputs(coordinates.Z)
    out = model(*given)
    for k in range(3):
        alone = model(*(value[k : k + 1] for value in given))
        # products of another shape: float32 rounding
        torch.testing.assert_close(alone, out[k : k + 1], rtol=1e-4, atol=1e-4)


def test_every_parameter_is_used(tiny: Task) -> None:
    coordinates, model = model_of(tiny)
    randomise(model)
    model(*inputs(coordinates.Z)).square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_a_network_without_hidden_units_is_one_token() -> None:
    coordinates, model = model_of(make("quadratic-v0"))
    randomise(model)
    assert coordinates.tokens.num_units == 0
    assert model(*inputs(8)).shape == (3, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"depth": 0}, "depth is 0"), ({"width": 10, "heads": 4}, "even multiple of heads = 4")],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)
