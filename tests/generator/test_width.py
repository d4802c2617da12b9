"""Width transfer: activations move as far at every width, and at the base width nothing is changed."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ckpt_factory import Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.coordinates import Coordinates
from generator.gpt.denoiser import GptDenoiser
from generator.model.dit import Denoiser, DiTConfig
from generator.model.layouts import LAYOUTS
from generator.model.width import parameter_groups, transfer
from generator.training.train import TrainConfig, Training

from .conftest import fitted
from .test_dit import inputs

BASE, WIDTHS = 32, (32, 64, 128, 256)


def made(coordinates: Coordinates, width: int, base: int | None, tokens: str = "units") -> Denoiser:
    config = DiTConfig(tokens=tokens, width=width, heads=width // 16, depth=2, base_width=base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LAYOUTS[tokens].make(coordinates, config)
        if base is not None:
            transfer(model, LAYOUTS[tokens].make(coordinates, config.at_base()))
    return model


def moved(model: Denoiser, z: int, *, steps: int, lr: float = 1e-2) -> dict[str, float]:
    """How far what each block and the last layer give has moved after some steps, root mean square."""
    config = TrainConfig(model=model.config, lr=lr, warmup_steps=0, steps=1000, precision="float32")
    seen: dict[str, Tensor] = {}
    blocks = model.gpt.decoder.blocks if isinstance(model, GptDenoiser) else model.blocks
    for name, layer in {**dict(blocks.named_children()), "out": model}.items():
        layer.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1].detach()}))
    given, target = inputs(z, 8), torch.randn(8, z, generator=seeded(1))
    training = Training(model, config, 0)
    with torch.no_grad():
        model(*given)
    before = dict(seen)
    for _ in range(steps):
        training.update((model(*given) - target).square().mean(), 0.0)
    with torch.no_grad():
        model(*given)
    return {name: float((seen[name] - value).square().mean().sqrt()) for name, value in before.items()}


def growth(by_width: list[float]) -> float:
    """The exponent of a quantity in the width: 0 where it does not change, 1 where it grows alike."""
    x = torch.tensor(WIDTHS, dtype=torch.float64).log()
    y = torch.tensor(by_width, dtype=torch.float64).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize(
    ("task", "tokens"), [("tiny", "units"), ("deep", "units"), ("deep", "chunks"), ("deep", "gpt")]
)
def test_activations_move_as_far_at_every_width_with_transfer_and_not_without(
    task: str, tokens: str, request: pytest.FixtureRequest
) -> None:
    """The coordinate check of Yang et al. 2022, appendix D."""
    coordinates = Coordinates.fit(request.getfixturevalue(task), rank=3)
    slopes = {}
    for base in (BASE, None):
        moves = [moved(made(coordinates, width, base, tokens), coordinates.Z, steps=4) for width in WIDTHS]
        slopes[base] = {name: growth([each[name] for each in moves]) for name in moves[0]}
    assert max(map(abs, slopes[BASE].values())) < 0.15  # .05 measured
    # .27 and more measured, of what is between the first and the last layer
    assert min(slope for name, slope in slopes[None].items() if name != "out") > 0.2


@pytest.mark.parametrize("tokens", ["units", "chunks", "gpt"])
def test_at_the_base_width_nothing_changes(deep: Task, tokens: str) -> None:
    coordinates = Coordinates.fit(deep, rank=3)
    plain, same = (made(coordinates, BASE, base, tokens) for base in (None, BASE))
    torch.testing.assert_close(same.state_dict(), plain.state_dict(), rtol=0, atol=0)
    for model in (plain, same):
        groups = parameter_groups(model, 0.3)
        assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.3, 1.0), (0.0, 1.0)]


def test_wide_matrices_learn_and_decay_as_their_inputs_have_grown(deep: Task) -> None:
    """And vectors, and matrices of what the network has, as ever."""
    model = made(Coordinates.fit(deep, rank=3), 4 * BASE, BASE)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    training = Training(model, TrainConfig(model=model.config, lr=1e-2, weight_decay=0.3, warmup_steps=0), 0)
    training.update(model(*inputs(model.tokens.Z, 4)).sum(), 0.0)
    found = {
        named[id(p)]: (group["lr"] / 1e-2, group["lr"] * group["weight_decay"])
        for group in training.optimizer.param_groups
        for p in group["params"]
    }
    assert found.keys() == set(named.values())
    for name, (scale, decay) in found.items():
        matrix = name.endswith("weight")
        hidden = matrix and not name.startswith(("ins.", "mixes.", "time.mlp.0", "metrics.mlp.0"))
        assert scale == pytest.approx(0.25 if hidden else 1.0), name
        assert decay == pytest.approx(3e-3 if matrix else 0.0), name


def test_initial_sizes_are_those_of_the_base_scaled_by_what_grows(deep: Task) -> None:
    coordinates = Coordinates.fit(deep, rank=3)
    small, wide = (dict(made(coordinates, width, BASE).named_parameters()) for width in (BASE, 16 * BASE))
    expected = {
        "ins.0.weight": 1.0,  # from a fixed number of inputs
        "blocks.1.mlp.2.weight": 16**-0.5,  # hidden
        "columns.0.weight": 1 / 16,  # to a fixed number of outputs
        "columns.0.bias": 1.0,
        "outs.0.weight": math.nan,  # zeros remain zeros
    }
    for name, ratio in expected.items():
        a, b = (float(each[name].detach().square().mean().sqrt()) for each in (small, wide))
        assert b / a == pytest.approx(ratio, rel=0.15) if a else b == 0, name  # of 250 draws and more


def test_the_published_transformer_is_scaled_from_its_own_initial_size(deep: Task) -> None:
    """It begins with N(0, .02^2) everywhere, whatever the width."""
    model = made(Coordinates.fit(deep, rank=3), 4 * BASE, BASE, "gpt")
    for name, parameter in model.named_parameters():
        if not name.endswith("weight") or ".ln" in name or "output_parameter" in name:
            continue
        expected = 0.02 if "input_parameter" in name else 0.01  # from a fixed number of inputs; hidden
        # relative standard error of a root mean square of n draws, (2 n)^(-1/2): five of them
        rel = 5 * (2 * parameter.numel()) ** -0.5
        assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(expected, rel=rel), name


def test_a_generator_is_initialised_for_its_base_width_and_keeps_it(digits: Task, digits_zoo: Zoo) -> None:
    config = DiTConfig(width=64, depth=1, heads=4, base_width=16)
    generator = fitted(digits, digits_zoo, config)
    again = type(generator).from_parts(*generator.to_parts())
    assert again.model.config == config.resolved()
    assert again.model.lr_scales == generator.model.lr_scales
    assert set(generator.model.lr_scales.values()) == {1.0, 0.25}
    plain = fitted(digits, digits_zoo, replace(config, base_width=None)).model
    assert not torch.equal(plain.unit_in.weight, generator.model.unit_in.weight)


def test_what_does_not_transfer_is_refused() -> None:
    with pytest.raises(ValueError, match="base_width is 48 with heads of width 32; expected a multiple"):
        DiTConfig(width=128, base_width=48)
    with pytest.raises(ValueError, match=r"base_width is 32 with optimizer 'amos'.* one of adamw, lion"):
        TrainConfig(model=DiTConfig(base_width=32), optimizer="amos")
