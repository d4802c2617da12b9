"""Behaviour: answers of predicted networks, what a training that minds them reaches, and who has none."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ckpt_factory import MLP, Task, make
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.conditioning import Scaling
from generator.coordinates import Coordinates
from generator.model.dit import DiTConfig
from generator.model.layouts import layout_of
from generator.training.behaviour import WEIGHT, Behaviour, behaviour_of
from generator.training.pairs import Pairs
from generator.training.reading import reservoir_of
from generator.training.train import TrainConfig, train


def networks(task: Task, num: int, seed: int = 0) -> Tensor:
    return task.init([seeded(seed, k) for k in range(num)])


def answers(task: Task, theta: Tensor, x: Tensor) -> Tensor:
    """Of one network, by an ordinary module."""
    net = MLP((64, 16, 10))
    net.load_state_dict(task.spec.unflatten(theta))
    return net(x).detach()


def test_it_is_the_divergence_of_what_ordinary_modules_answer(digits: Task) -> None:
    """All directions kept: coordinates and parameters are the same networks."""
    coordinates = Coordinates.fit(digits, rank=64, floor=0.0)
    behaviour = Behaviour(digits, coordinates, num_examples=200)
    a, b = networks(digits, 3), networks(digits, 3, seed=1) * 3
    found = behaviour.divergence(coordinates.encode(a), coordinates.encode(b), rng=seeded(5))
    x = digits.examples("train")[0]
    x = x[torch.randint(len(x), (200,), generator=seeded(5))]
    for k in range(3):
        p, q = (answers(digits, theta[k], x).log_softmax(1) for theta in (b, a))
        expected = F.kl_div(q, p, log_target=True, reduction="batchmean")
        assert float(found[k]) == pytest.approx(float(expected), rel=2e-3)
        assert expected > 0.1  # they do differ


def test_examples_are_drawn_anew_each_time_and_the_same_by_the_same_generator(digits: Task) -> None:
    coordinates = Coordinates.fit(digits, rank=32)
    behaviour = Behaviour(digits, coordinates, num_examples=16)
    z, goal = (coordinates.encode(networks(digits, 2, seed)) for seed in (0, 1))
    rng = seeded(7)
    first, second = (behaviour.divergence(z, goal, rng=rng) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, behaviour.divergence(z, goal, rng=seeded(7)))


def test_networks_that_only_have_their_units_in_another_order_answer_the_same(digits: Task) -> None:
    coordinates = Coordinates.fit(digits, rank=32)
    theta = networks(digits, 4)
    moved = digits.symmetry.apply(theta, digits.symmetry.random(4, rng=seeded(3)))
    behaviour = Behaviour(digits, coordinates)
    apart = behaviour.divergence(coordinates.encode(theta), coordinates.encode(moved), rng=seeded(0))
    assert float(apart.abs().max()) < 1e-5


def test_who_answers_no_examples_has_none(tiny: Task) -> None:
    quadratic = make("quadratic-v0")
    coordinates = Coordinates.fit(quadratic, rank=8)
    assert behaviour_of(quadratic, coordinates, None, 8) is None
    with pytest.raises(ValueError, match=r"behaviour is 2, but networks of quadratic-v0 .*; expected 0"):
        behaviour_of(quadratic, coordinates, 2.0, 8)
    found = behaviour_of(tiny, Coordinates.fit(tiny, rank=3), None, 8)
    assert found is not None
    assert found.weight == WEIGHT
    assert behaviour_of(tiny, found.coordinates, 0.0, 8) is None


@pytest.fixture(scope="module")
def from_zoo(digits_zoo: Zoo, digits: Task) -> tuple[Coordinates, Scaling, Callable[..., Pairs]]:
    """Coordinates, scales and pairs of a real zoo."""
    coordinates = Coordinates.fit(digits, rank=32)
    runs = reservoir_of(digits_zoo, coordinates, 0, 24, 24)
    pairs = runs.sample(500, rng=seeded(0))
    scaling = Scaling.fit(coordinates, pairs, pairs.prompt)
    return coordinates, scaling, lambda step, num, rng: runs.sample(num, rng=rng)


def test_a_training_that_minds_answers_comes_closer_in_them(
    digits: Task, from_zoo: tuple[Coordinates, Scaling, Callable[..., Pairs]]
) -> None:
    coordinates, scaling, draw = from_zoo

    def divergence(weight: float) -> float:
        """Of predicted networks, after the same number of steps, on the same examples."""
        config = TrainConfig(
            model=DiTConfig(width=32, depth=1, heads=2),
            steps=150,
            batch_size=32,
            warmup_steps=10,
            precision="float32",
            checkpoint_every_s=1e6,
        )
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = layout_of(config.model).make(coordinates, config.model)
        reports = []
        behaviour = Behaviour(digits, coordinates, weight, 64)
        train(
            model,
            draw,
            scaling,
            config,
            report=lambda metrics, _: reports.append(metrics),
            behaviour=behaviour,
        )
        return reports[-1]["divergence"]

    assert divergence(10.0) < 0.8 * divergence(1e-6)
