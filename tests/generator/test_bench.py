"""The bench of training steps: what it counts and what it makes of its samples."""

import pytest
import torch
from torch import nn

from ckpt_factory import Task
from ckpt_factory.zoo import Zoo
from generator.artefact import WeightGenerator
from generator.comparison.bench import Loop, ProductTimer, figures, measure_steps
from generator.model.dit import DiTConfig
from generator.training.reading import reservoir_of
from generator.training.train import TrainConfig

from .conftest import TRAINING_RUNS, fitted

CONFIG = DiTConfig(width=16, depth=2, heads=2)
BATCH = 8


@pytest.fixture
def loop(digits: Task, digits_zoo: Zoo) -> Loop:
    generator = fitted(digits, digits_zoo, CONFIG)
    runs = reservoir_of(digits_zoo, generator.coordinates, 0, TRAINING_RUNS, TRAINING_RUNS)
    return Loop(generator, runs, "float32", BATCH)


def flop_by_hand(generator: WeightGenerator) -> int:
    """Three products of 2 rows x in x out a layer, two where nothing is learned before it; and attention."""
    rows: dict[nn.Module, int] = {}
    model = generator.model
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, made: rows.update({layer: made[..., 0].numel()}))
    Z = generator.coordinates.Z
    model(torch.zeros(BATCH, Z), torch.zeros(BATCH), torch.zeros(BATCH, Z), torch.zeros(BATCH, 4))
    first = [model.get_submodule(name) for name in ("unit_in", "rest_in", "time.mlp.0", "metrics.mlp.0")]
    linear = sum(
        2 * rows[each] * each.in_features * each.out_features * (2 if each in first else 3) for each in layers
    )
    tokens = generator.coordinates.tokens.num_units + 1
    return linear + CONFIG.depth * 2 * 3 * 2 * BATCH * tokens**2 * CONFIG.width


def test_the_work_of_a_step_is_counted_as_by_hand(loop: Loop) -> None:
    counted = loop.gflop()
    assert counted == pytest.approx(flop_by_hand(loop.generator) / 1e9, rel=1e-9)


def test_steps_are_those_of_training_and_the_first_does_not_count(loop: Loop) -> None:
    before = {name: value.clone() for name, value in loop.generator.model.state_dict().items()}
    steps = loop.run(4)
    assert len(steps) == 3
    assert all(step > 0 for step in steps)
    assert any((before[name] != value).any() for name, value in loop.generator.model.state_dict().items())


def test_the_default_step_minds_what_networks_answer(digits: Task, loop: Loop) -> None:
    """More than without it by three products of both layers at least, and two for the networks of the zoo."""
    found = measure_steps({"a": loop.generator}, loop.runs, digits, repeats=1, seconds=1e-4, batch_size=BATCH)
    hidden, classes = 64 * 16, 16 * 10  # multiplications of a layer, an example
    products = 2 * (hidden + classes) + hidden + 2 * classes  # both ways; of the inputs there is no gradient
    added = found["models"]["a"]["gflop_per_step"] - flop_by_hand(loop.generator) / 1e9
    assert added >= 2 * BATCH * TrainConfig.behaviour_examples * products / 1e9


def test_products_of_backward_passes_count_and_nothing_else() -> None:
    with ProductTimer() as without:
        torch.randn(1000, 1000).exp().sum()
    assert without.cpu_s == 0
    a, b = (torch.randn(256, 256, requires_grad=True) for _ in range(2))
    with ProductTimer() as forward:
        c = a @ b
    with ProductTimer() as backward:
        c.sum().backward()
    assert forward.cpu_s > 0
    assert backward.cpu_s > 0


def test_shares_follow_from_medians(loop: Loop) -> None:
    found = {
        ("peak", "float32", ""): 100.0,
        ("peak", "bfloat16", ""): 200.0,
        ("a", "float32", "step_s"): 0.5,
        ("a", "float32", "products_s"): 0.4,
        ("a", "bfloat16", "step_s"): 0.25,
        ("a", "bfloat16", "products_s"): 0.2,
        ("a", "", "drawing_s"): 0.01,
    }
    result = figures({"a": loop.generator}, {"a": 20.0}, 100, found)
    assert result["models"]["a"]["fastest"] == "bfloat16"
    assert result["steps"]["a bfloat16"] == {
        "cpu_s_per_step": 0.25,
        "pairs_per_cpu_s": 400.0,
        "gflop_per_cpu_s": 80.0,
        "share_of_peak": 0.4,
        "products_share_of_step": 0.8,
        "products_share_of_peak": 0.5,
        "drawing_share_of_step": 0.04,
    }
    assert result["steps"]["a float32"]["share_of_peak"] == 0.4


def test_everything_is_measured_in_every_round(digits: Task, loop: Loop) -> None:
    found = measure_steps({"a": loop.generator}, loop.runs, digits, repeats=2, seconds=1e-4, batch_size=BATCH)
    kinds = ("float32 step_s", "float32 products_s", "bfloat16 step_s", "bfloat16 products_s", "drawing_s")
    names = {f"a {kind}" for kind in kinds} | {"peak float32", "peak bfloat16"}
    assert set(found["samples"]) == names
    assert all(len(values) == 2 and min(values) > 0 for values in found["samples"].values())
