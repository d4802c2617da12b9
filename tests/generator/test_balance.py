"""Units between ReLUs may be scaled, a classifier's rows shifted; the canonical form knows nothing of it."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ckpt_factory import ModuleTask, Task
from ckpt_factory.tasks.base import seeded
from ckpt_factory.zoo import Zoo
from generator.audit.balance import Freedom, balanced, freedom_of
from generator.rebasin import AlignedDistance
from tests.generator.test_hidden import Small, data, odd, task_of

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


def shifted(task: Task, theta: Tensor, layer: str) -> Tensor:
    """All rows of a layer by one vector, and its biases by one constant, larger than they are."""
    params, rng = task.spec.unflatten(theta), seeded(3)
    for name in (f"{layer}.weight", f"{layer}.bias"):
        params[name] = params[name] + torch.randn(params[name][:, :1].shape, generator=rng)
    return task.spec.flatten(params)


def regression() -> ModuleTask:
    """As many numbers an example as there would be classes, each with a target."""
    splits = {name: (x, torch.randn(len(x), 4, generator=seeded(4))) for name, (x, _) in data().items()}
    return ModuleTask(Small, splits, loss=F.mse_loss)


@pytest.fixture(scope="module")
def small() -> ModuleTask:
    return task_of()


@pytest.fixture(scope="module")
def theta(small: ModuleTask) -> Tensor:
    return small.init([seeded(i) for i in range(NUM)])


def test_units_between_relus_are_found(small: ModuleTask, digits: Task) -> None:
    assert set(freedom_of(small).scaled) == set(small.symmetry.sizes)
    assert freedom_of(digits).scaled == tuple(digits.symmetry.sizes)
    assert freedom_of(task_of(odd)).scaled == ()
    partly = ModuleTask(mixed, data())
    relu = freedom_of(partly).scaled
    assert [partly.symmetry.sizes[perm] for perm in relu] == [5]


def test_output_layers_of_classifiers_alone_are_shifted(small: ModuleTask, digits: Task) -> None:
    assert freedom_of(small).shifted == ("fc.weight", "fc.bias")
    assert freedom_of(digits).shifted == ("fc2.weight", "fc2.bias")
    assert freedom_of(task_of(odd)).shifted == ("5.weight", "5.bias")
    task = regression()
    freedom, theta = freedom_of(task), task.init([seeded(i) for i in range(NUM)])
    assert (set(freedom.scaled), freedom.shifted) == (set(task.symmetry.sizes), ())
    ours, theirs = (freedom.canonical(task.symmetry, each) for each in (theta, shifted(task, theta, "fc")))
    assert ((theirs - ours).norm(dim=1) > 0.5).all(), "another network"


def test_shifted_networks_become_the_same(small: ModuleTask, theta: Tensor) -> None:
    other = scaled(small, shifted(small, theta, "fc"))
    x, _ = small.examples("test")
    assert float(small.divergence(other, theta, x).abs().max()) < 1e-5
    freedom = freedom_of(small)
    ours, theirs = (freedom.canonical(small.symmetry, each) for each in (theta, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert float(small.divergence(theirs, theta, x).abs().max()) < 1e-5
    unbalanced = Freedom(shifted=freedom.shifted).canonical(small.symmetry, theta)
    assert (unbalanced.norm(dim=1) < theta.norm(dim=1)).all()


def test_other_runs_are_no_nearer_in_canonical_form(digits: Task, digits_zoo: Zoo) -> None:
    """Held-out networks keep their distance to training runs; a shifted checkpoint is at none to its own."""
    freedom, distance = freedom_of(digits), AlignedDistance(digits.spec, digits.symmetry)
    trained, held_out = digits_zoo.read_unit(0).theta[:, -1], digits_zoo.read_unit(2).theta[:, -1]
    queries = torch.cat([held_out, shifted(digits, trained[:1], "fc2")])
    keys = freedom.canonical(digits.symmetry, trained)
    group = torch.arange(len(keys))
    found, _ = distance.nearest_groups(freedom.canonical(digits.symmetry, queries), keys, group)
    share = found[:, 0] / found[:, 1]
    assert (share[:-1] > 0.8).all()
    assert share[-1] < 0.01


def test_balanced_networks_answer_as_before_and_forget_their_scale(small: ModuleTask, theta: Tensor) -> None:
    perms, (x, _) = freedom_of(small).scaled, data()["test"]
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
    params = digits.spec.unflatten(balanced(digits.symmetry, freedom_of(digits).scaled, theta))
    enters = params["fc1.weight"][0].square().sum(1) + params["fc1.bias"][0].square()
    torch.testing.assert_close(enters, params["fc2.weight"][0].square().sum(0))


def test_a_unit_that_says_nothing_stays_as_it_is(digits: Task) -> None:
    params = digits.spec.unflatten(digits.init([seeded(0)]))
    params["fc2.weight"] = params["fc2.weight"].clone()
    params["fc2.weight"][:, :, 2] = 0
    found = digits.spec.unflatten(
        balanced(digits.symmetry, freedom_of(digits).scaled, digits.spec.flatten(params))
    )
    assert torch.equal(found["fc1.weight"][0, 2], params["fc1.weight"][0, 2])
    assert not torch.equal(found["fc1.weight"][0, 1], params["fc1.weight"][0, 1])
