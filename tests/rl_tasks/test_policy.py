"""Stacked policies: the plain module's function, gradients by hand, symmetries, initialisation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ckpt_factory.tasks.base import seeded
from rl_tasks.policy import ACTIVATIONS, PolicyNet, backward, for_steps, forward

K, B = 3, 7


def net_of(activation: str = "selu", **changes: object) -> PolicyNet:
    fields = {"observation_size": 4, "hidden": (6, 5), "outputs": 2, "activation": activation} | changes
    return PolicyNet(**fields)


def drawn(net: PolicyNet, seed: int = 0) -> tuple[Tensor, Tensor]:
    """theta (K, D) far from the initialisation, and observations (K, B, O)."""
    rng = seeded(seed)
    return torch.randn(K, net.spec.D, generator=rng), torch.randn(K, B, net.observation_size, generator=rng)


def outputs_of(net: PolicyNet, theta: Tensor, x: Tensor) -> np.ndarray:
    return forward(net.layers(net.params(theta.numpy())), x.numpy(), net.act)[-1]


def module_with(net: PolicyNet, theta: Tensor) -> nn.Module:
    module = net.module()
    module.load_state_dict(net.spec.unflatten(theta))
    return module


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("continuous", [False, True])
def test_a_stack_computes_what_its_modules_compute(activation: str, continuous: bool) -> None:
    net = net_of(activation, continuous=continuous)
    theta, x = drawn(net)
    for k, found in enumerate(outputs_of(net, theta, x)):
        expected = module_with(net, theta[k])(x[k]).detach().numpy()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)  # float32, other order of sums


def test_parameters_are_named_and_ordered_as_published() -> None:
    """1,250 numbers of the published CartPole policy, log_std first (Peebles et al. 2022)."""
    net = PolicyNet(4, (32, 32), 1, "selu", continuous=True)
    matrices = [f"actor.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")]
    assert net.spec.names == ("log_std", *matrices)
    assert net.spec.sizes == (1, 128, 32, 1024, 32, 32, 1)
    assert tuple(net.module().state_dict()) == net.spec.names
    assert PolicyNet(4, (32, 32), 2).spec.sizes == (128, 32, 1024, 32, 64, 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_gradients_by_hand_are_those_of_autograd(activation: str, outputs: int) -> None:
    net = net_of(activation, outputs=outputs)
    theta, x = drawn(net)
    rng = seeded(1)
    delta = torch.randn(K, B, outputs, generator=rng)
    layers = net.layers(net.params(theta.numpy()))
    found = backward(layers, x.numpy(), forward(layers, x.numpy(), net.act), delta.numpy(), net.act)
    flat = np.concatenate([each.reshape(K, -1) for layer in found for each in layer], 1)
    for k in range(K):
        module = module_with(net, theta[k])
        (module(x[k]) * delta[k]).sum().backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        assert flat[k] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-4)  # sums of 7 products in float32


def test_a_row_depends_on_neither_its_neighbours_nor_the_rest_of_the_stack() -> None:
    """To the last bit: returns are functions of one network, whatever it is evaluated with."""
    net = PolicyNet(4, (32, 32), 2)
    rng = seeded(2)
    theta, x = torch.randn(9, net.spec.D, generator=rng), torch.randn(9, 24, 4, generator=rng)
    layers = for_steps(net.layers(net.params(theta.numpy())))
    together = forward(layers, x.numpy(), net.act)[-1]
    assert together == pytest.approx(outputs_of(net, theta, x), rel=1e-4, abs=1e-4)  # float32
    for k in (0, 4, 8):
        alone = [(weight[k : k + 1], bias[k : k + 1]) for weight, bias in layers]
        assert np.array_equal(forward(alone, x[k : k + 1].numpy(), net.act)[-1][0], together[k])
    for rows in (4, 8, 20):
        some = np.ascontiguousarray(x[:, -rows:])
        assert np.array_equal(forward(layers, some, net.act)[-1], together[:, -rows:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_symmetry_preserves_the_function(activation: str) -> None:
    net = net_of(activation, continuous=True)
    theta, x = drawn(net)
    perms = net.symmetry.random(K, rng=seeded(3))
    moved = net.symmetry.apply(theta, perms)
    assert outputs_of(net, moved, x) == pytest.approx(outputs_of(net, theta, x), rel=1e-4, abs=1e-4)
    assert not torch.equal(moved, theta)
    assert ("P0/sign" in perms) == (activation == "tanh")
    back = net.symmetry.apply(moved, net.symmetry.inverse(perms))
    assert torch.equal(back, theta)


def test_initial_policies_are_orthogonal_with_the_published_gains() -> None:
    net = PolicyNet(4, (32, 16), 2, continuous=True)
    theta = net.init([seeded(0, k) for k in range(K)])
    params = net.spec.unflatten(theta)
    assert torch.equal(params["log_std"], torch.zeros(K, 2))
    for layer, gain in zip((0, 2, 4), (2**0.5, 2**0.5, 0.01), strict=True):
        weight = params[f"actor.{layer}.weight"]
        smaller = min(weight.shape[1:])
        square = weight.transpose(1, 2) @ weight if weight.shape[2] == smaller else weight @ weight.mT
        assert torch.allclose(square, gain**2 * torch.eye(smaller), atol=1e-5)  # float32
        bias = params[f"actor.{layer}.bias"]
        bound = net.sizes[layer // 2] ** -0.5
        assert (bias.abs() <= bound).all()
        assert bias.abs().max() > bound / 3
    alone = torch.cat([net.init([seeded(0, k)]) for k in range(K)])
    assert torch.equal(alone, theta)


def test_sizes_say_what_every_layer_maps() -> None:
    net = net_of(hidden=(8,))
    assert list(pairwise(net.sizes)) == [(4, 8), (8, 2)]
    assert net.symmetry.sizes == {"P0": 8}
