"""WeightDiT: nothing before training, and equivariant to the permutation of units whatever its weights."""

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task, make
from ckpt_factory.tasks.base import seeded
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig, WeightDiT
from generator.model.layouts import LAYOUTS

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
    n, width = coordinates.tokens.num_units, coordinates.tokens.layers[0].width

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


def test_one_hidden_layer_is_what_it_was(digits: Task) -> None:
    """Names, shapes, initialisation and results of generators that were saved before there were layouts."""
    coordinates = Coordinates.fit(digits, rank=12)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LAYOUTS["units"].make(coordinates, CONFIG)
    state = model.state_dict()
    block = ("qkv", "proj", "mlp.0", "mlp.2", "modulation")
    layers = ["unit_in", "rest_in", *(f"{s}.mlp.{i}" for s in ("time", "metrics") for i in (0, 2))]
    layers += [
        *(f"blocks.{i}.{name}" for i in (0, 1) for name in block),
        "modulation",
        "unit_out",
        "rest_out",
    ]
    assert list(state) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    # sums of float32 draws of torch's generator
    assert float(state["unit_in.weight"].double().sum()) == pytest.approx(1.924412, abs=1e-4)
    assert float(state["blocks.1.mlp.2.weight"].double().sum()) == pytest.approx(-2.439429, abs=1e-4)
    rng = seeded(0, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    out = model(*inputs(coordinates.Z)).detach().double()
    # measured with the version before, float32
    assert float(out.sum()) == pytest.approx(51.190358, rel=1e-3)
    assert float(out.square().sum()) == pytest.approx(212.558177, rel=1e-3)


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
