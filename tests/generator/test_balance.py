"""Units between ReLUs may be scaled; what is balanced does not know how they were."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ckpt_factory import ModuleTask, Task
from ckpt_factory.tasks.base import seeded
from generator.audit.balance import balanced, scaled_units
from tests.generator.test_hidden import data, odd, task_of

NUM = 3


def mixed() -> nn.Module:
    """Only what lies between ReLUs may be scaled."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(50, 4), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)
    )


def scaled(task: Task, theta: Tensor) -> Tensor:
    """Every unit by a factor of its own, written out for the layers of `Small`."""
    params = {name: value.clone() for name, value in task.spec.unflatten(theta).items()}
    first, second = (torch.rand(NUM, 3, generator=seeded(i)) * 4 + 0.2 for i in (1, 2))
    params["conv1.weight"] *= first[:, :, None, None, None]
    params["conv1.bias"] *= first
    params["conv2.weight"] *= second[:, :, None, None, None] / first[:, None, :, None, None]
    params["conv2.bias"] *= second
    params["fc.weight"] /= second[:, None, :]
    return task.spec.flatten(params)


@pytest.fixture(scope="module")
def small() -> ModuleTask:
    return task_of()


@pytest.fixture(scope="module")
def theta(small: ModuleTask) -> Tensor:
    return small.init([seeded(i) for i in range(NUM)])


def test_units_between_relus_are_found(small: ModuleTask, digits: Task) -> None:
    assert set(scaled_units(small)) == set(small.symmetry.sizes)
    assert scaled_units(digits) == tuple(digits.symmetry.sizes)
    assert scaled_units(task_of(odd)) == ()
    partly = ModuleTask(mixed, data())
    relu = scaled_units(partly)
    assert [partly.symmetry.sizes[perm] for perm in relu] == [5]


def test_balanced_networks_answer_as_before_and_forget_their_scale(small: ModuleTask, theta: Tensor) -> None:
    perms, (x, _) = scaled_units(small), data()["test"]
    other = scaled(small, theta)
    assert not torch.allclose(other, theta, atol=0.1)
    ours, theirs = (balanced(small.symmetry, perms, each) for each in (theta, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    net = small.module()
    for row, same in zip(theta, theirs, strict=True):
        answers = [functional_call(net, small.spec.unflatten(each), (x,)) for each in (row, same)]
        torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)


def test_what_enters_a_unit_is_as_large_as_what_leaves_it(digits: Task) -> None:
    theta = digits.init([seeded(0)]) + 0.3
    params = digits.spec.unflatten(balanced(digits.symmetry, scaled_units(digits), theta))
    enters = params["fc1.weight"][0].square().sum(1) + params["fc1.bias"][0].square()
    torch.testing.assert_close(enters, params["fc2.weight"][0].square().sum(0))


def test_a_unit_that_says_nothing_stays_as_it_is(digits: Task) -> None:
    params = digits.spec.unflatten(digits.init([seeded(0)]))
    params["fc2.weight"] = params["fc2.weight"].clone()
    params["fc2.weight"][:, :, 2] = 0
    found = digits.spec.unflatten(
        balanced(digits.symmetry, scaled_units(digits), digits.spec.flatten(params))
    )
    assert torch.equal(found["fc1.weight"][0, 2], params["fc1.weight"][0, 2])
    assert not torch.equal(found["fc1.weight"][0, 1], params["fc1.weight"][0, 1])
