"""ParamSpec: the bridge between a state_dict and theta."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from ckpt_factory import MLP, ParamSpec

SIZES = (5, 4, 3)


class Odd(nn.Module):
    """Parameters of every rank: a scalar, a vector, a matrix, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.linear = nn.Linear(3, 2)
        self.conv = nn.Conv2d(2, 4, 3)


@pytest.mark.parametrize("net", [MLP(SIZES), Odd()], ids=["mlp", "odd"])
def test_theta_unflattens_into_a_state_dict_that_the_module_loads(net: nn.Module) -> None:
    spec = ParamSpec.of_module(net)
    state = net.state_dict()
    theta = spec.flatten(state)
    assert theta.shape == (spec.D,) == (sum(p.numel() for p in net.parameters()),)
    dumb = torch.cat([value.reshape(-1) for value in state.values()])
    assert torch.equal(theta, dumb)
    other = type(net)(SIZES) if isinstance(net, MLP) else type(net)()
    other.load_state_dict(spec.unflatten(theta))
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_stack_unflattens_run_by_run() -> None:
    spec = ParamSpec.of_module(Odd())
    theta = torch.randn(3, spec.D, generator=torch.Generator().manual_seed(0))
    stacked = spec.unflatten(theta)
    for k in range(3):
        for name, value in spec.unflatten(theta[k]).items():
            assert torch.equal(stacked[name][k], value)
    assert torch.equal(spec.flatten(stacked), theta)


def test_unflatten_gives_views() -> None:
    spec = ParamSpec.of_module(MLP(SIZES))
    theta = torch.zeros(2, spec.D)
    spec.unflatten(theta)["fc1.bias"][1] = 7
    assert theta[1, 20:24].tolist() == [7] * 4
    assert theta.sum() == 28


def test_slices_tile_theta() -> None:
    spec = ParamSpec.of_module(Odd())
    covered = [i for _, part, _ in spec.slices() for i in range(part.start, part.stop)]
    assert covered == list(range(spec.D))


def test_json_round_trip() -> None:
    spec = ParamSpec.of_module(Odd())
    again = ParamSpec.from_json(spec.to_json())
    assert again == spec
    assert again.id == spec.id
    assert ParamSpec.of_module(MLP(SIZES)).id != spec.id


def test_id_is_the_same_in_a_fresh_process() -> None:
    code = "from ckpt_factory import MLP, ParamSpec; print(ParamSpec.of_module(MLP((5, 4, 3))).id)"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == ParamSpec.of_module(MLP(SIZES)).id


def test_wrong_names_are_named() -> None:
    spec = ParamSpec.of_module(MLP(SIZES))
    state = MLP(SIZES).state_dict()
    state["head.weight"] = state.pop("fc2.weight")
    with pytest.raises(ValueError, match=r"missing \['fc2.weight'\], unknown \['head.weight'\]"):
        spec.flatten(state)


def test_wrong_shapes_are_named() -> None:
    spec = ParamSpec.of_module(MLP(SIZES))
    for shape in [(4, 3), (3, 5), (4,), (15,)]:
        state = MLP(SIZES).state_dict() | {"fc2.weight": torch.zeros(shape)}
        with pytest.raises(ValueError, match=r"'fc2\.weight'") as error:
            spec.flatten(state)
        assert str(tuple(shape)) in str(error.value)
        assert "(3, 4)" in str(error.value)


def test_parameters_that_are_stacked_differently_are_refused() -> None:
    """One tensor with a run axis among others without: no theta has this shape."""
    spec = ParamSpec.of_module(MLP(SIZES))
    state = MLP(SIZES).state_dict()
    state["fc2.bias"] = state["fc2.bias"].expand(2, -1)
    with pytest.raises(ValueError, match=r"'fc2.bias'"):
        spec.flatten(state)


def test_theta_of_another_length_is_refused() -> None:
    spec = ParamSpec.of_module(MLP(SIZES))
    with pytest.raises(ValueError, match=rf"{spec.D + 1} parameters.*{spec.D}"):
        spec.unflatten(torch.zeros(2, spec.D + 1))


def test_names_are_distinct_and_each_has_a_shape() -> None:
    with pytest.raises(ValueError, match="distinct"):
        ParamSpec(("w", "w"), ((1,), (1,)))
    with pytest.raises(ValueError, match="one shape"):
        ParamSpec(("w", "v"), ((1,),))
