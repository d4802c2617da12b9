"""Symmetry: permutations of hidden units as data; a group that leaves functions as they are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckpt_factory import MLP, ParamSpec, Symmetry

SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple)
SEEDS = st.integers(0, 2**31)
K = 3


def symmetry_of(sizes: tuple[int, ...]) -> Symmetry:
    net = MLP(sizes)
    return Symmetry(ParamSpec.of_module(net), net.axes_to_perm())


def drawn(symmetry: Symmetry, seed: int) -> tuple[torch.Generator, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return rng, torch.randn(K, symmetry.spec.D, generator=rng)


@given(SIZES, SEEDS)
def test_identity_does_nothing(sizes: tuple[int, ...], seed: int) -> None:
    symmetry = symmetry_of(sizes)
    _, theta = drawn(symmetry, seed)
    assert torch.equal(symmetry.apply(theta, symmetry.identity(K)), theta)


@given(SIZES.filter(lambda s: len(s) > 2), SEEDS)
def test_composition_is_the_composition_of_gathers(sizes: tuple[int, ...], seed: int) -> None:
    symmetry = symmetry_of(sizes)
    rng, theta = drawn(symmetry, seed)
    p, q = symmetry.random(K, rng=rng), symmetry.random(K, rng=rng)
    both = {name: p[name].gather(1, q[name]) for name in p}
    assert torch.equal(symmetry.index(both), symmetry.index(p).gather(1, symmetry.index(q)))
    assert torch.equal(symmetry.apply(symmetry.apply(theta, p), q), symmetry.apply(theta, both))


@given(SIZES.filter(lambda s: len(s) > 2), SEEDS)
def test_inverse_is_argsort(sizes: tuple[int, ...], seed: int) -> None:
    symmetry = symmetry_of(sizes)
    rng, theta = drawn(symmetry, seed)
    p = symmetry.random(K, rng=rng)
    inverse = {name: perm.argsort(1) for name, perm in p.items()}
    assert torch.equal(symmetry.apply(symmetry.apply(theta, p), inverse), theta)
    assert torch.equal(symmetry.index(inverse), symmetry.index(p).argsort(1))


def signed_symmetry_of(sizes: tuple[int, ...]) -> Symmetry:
    plain = symmetry_of(sizes)
    return Symmetry(plain.spec, plain.axes_to_perm, tuple(plain.sizes))


@given(SIZES.filter(lambda s: len(s) > 2), SEEDS)
def test_signs_of_units_between_odd_activations_preserve_the_function_and_have_inverses(
    sizes: tuple[int, ...], seed: int
) -> None:
    symmetry = signed_symmetry_of(sizes)
    rng, theta = drawn(symmetry, seed)
    perms = symmetry.random(K, rng=rng)
    moved = symmetry.apply(theta, perms)
    assert torch.equal(moved.abs(), theta.abs().gather(1, symmetry.index(perms)))
    assert torch.equal(symmetry.apply(moved, symmetry.inverse(perms)), theta)
    assert torch.equal(symmetry.apply(theta, symmetry.identity(K)), theta)
    x = torch.randn(7, sizes[0], generator=rng)
    for before, after in zip(theta, moved, strict=True):
        outputs = []
        for each in (before, after):
            net = MLP(sizes)
            net.load_state_dict(symmetry.spec.unflatten(each))
            layers = [
                layer for i in range(net.depth) for layer in (net.get_submodule(f"fc{i + 1}"), nn.Tanh())
            ]
            outputs.append(nn.Sequential(*layers[:-1])(x))
        assert torch.allclose(*outputs, atol=1e-5)  # float32, another order of sums


def test_both_signs_are_drawn_and_permutations_are_those_without() -> None:
    signed, plain = signed_symmetry_of((3, 40, 20, 2)), symmetry_of((3, 40, 20, 2))
    rngs = [torch.Generator().manual_seed(4) for _ in range(2)]
    found, without = signed.random(K, rng=rngs[0]), plain.random(K, rng=rngs[1])
    assert all(torch.equal(found[name], perm) for name, perm in without.items())
    for name in ("P0/sign", "P1/sign"):
        assert set(found[name].unique().tolist()) == {-1, 1}
        assert found[name].float().mean().abs() < 0.5
    assert plain.factor(without) is None


def test_signs_of_unknown_permutations_are_refused() -> None:
    plain = symmetry_of((3, 4, 2))
    with pytest.raises(ValueError, match=r"signed has \['P7'\]; expected some of \['P0'\]"):
        Symmetry(plain.spec, plain.axes_to_perm, ("P7",))


@given(SIZES, SEEDS)
def test_function_is_preserved(sizes: tuple[int, ...], seed: int) -> None:
    symmetry = symmetry_of(sizes)
    rng, theta = drawn(symmetry, seed)
    moved = symmetry.apply(theta, symmetry.random(K, rng=rng))
    x = torch.randn(7, sizes[0], generator=rng)
    for before, after in zip(theta, moved, strict=True):
        net, other = MLP(sizes), MLP(sizes)
        net.load_state_dict(symmetry.spec.unflatten(before))
        other.load_state_dict(symmetry.spec.unflatten(after))
        # the same sums in another order: float32 rounding of up to four layers of five terms
        torch.testing.assert_close(other(x), net(x), rtol=1e-4, atol=1e-4)


def test_unit_i_of_the_result_is_unit_perm_i_of_a_three_layer_net() -> None:
    """The dumb version: every axis of every parameter indexed by hand."""
    symmetry = symmetry_of((4, 5, 3, 2))
    rng, theta = drawn(symmetry, 0)
    perms = symmetry.random(K, rng=rng)
    moved = symmetry.spec.unflatten(symmetry.apply(theta, perms))
    assert not torch.equal(symmetry.apply(theta, perms), theta)
    for k in range(K):
        old = symmetry.spec.unflatten(theta[k])
        p0, p1 = perms["P0"][k], perms["P1"][k]
        assert torch.equal(moved["fc1.weight"][k], old["fc1.weight"][p0])
        assert torch.equal(moved["fc1.bias"][k], old["fc1.bias"][p0])
        assert torch.equal(moved["fc2.weight"][k], old["fc2.weight"][p1][:, p0])
        assert torch.equal(moved["fc2.bias"][k], old["fc2.bias"][p1])
        assert torch.equal(moved["fc3.weight"][k], old["fc3.weight"][:, p1])
        assert torch.equal(moved["fc3.bias"][k], old["fc3.bias"])


def test_index_follows_the_spec_and_not_the_order_in_which_anything_is_named() -> None:
    net = MLP((4, 5, 3, 2))
    spec, axes = ParamSpec.of_module(net), net.axes_to_perm()
    symmetry = Symmetry(spec, axes)
    perms = symmetry.random(K, rng=torch.Generator().manual_seed(0))
    reversed_axes = Symmetry(spec, dict(reversed(list(axes.items()))))
    assert torch.equal(reversed_axes.index(perms), symmetry.index(perms))
    assert torch.equal(symmetry.index(dict(reversed(list(perms.items())))), symmetry.index(perms))


def test_channels_of_a_convolution_are_units() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    axes = {"0.weight": ("P0", None, None, None), "0.bias": ("P0",)}
    axes |= {"2.weight": (None, "P0", None, None), "2.bias": (None,)}
    spec = ParamSpec.of_module(net)
    rng = torch.Generator().manual_seed(0)
    symmetry, theta = Symmetry(spec, axes), torch.randn(1, spec.D, generator=rng)
    x = torch.randn(2, 2, 5, 5, generator=rng)
    net.load_state_dict(spec.unflatten(theta[0]))
    before = net(x)
    moved = symmetry.apply(theta, {"P0": torch.tensor([[2, 0, 3, 1]])})
    net.load_state_dict(spec.unflatten(moved[0]))
    assert not torch.equal(moved, theta)
    # float32 sums of 18 terms in another order
    torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-5)


def test_random_permutations_are_uniform() -> None:
    symmetry = symmetry_of((2, 3, 2))
    perms = symmetry.random(6000, rng=torch.Generator().manual_seed(0))["P0"]
    assert torch.equal(perms.sort(1).values, torch.arange(3).expand(6000, 3))
    counts = torch.bincount((perms * torch.tensor([9, 3, 1])).sum(1))
    # 1000 expected of each of the 6, with a standard deviation of 29: five of them
    assert sorted(counts[counts > 0].tolist())[0] > 850
    assert (counts > 0).sum() == 6


def test_axes_that_do_not_fit_the_spec_are_refused() -> None:
    spec = ParamSpec.of_module(MLP((4, 5, 2)))
    axes = MLP((4, 5, 2)).axes_to_perm()
    with pytest.raises(ValueError, match=r"'fc1.weight'.*one entry each"):
        Symmetry(spec, axes | {"fc1.weight": ("P0",)})
    with pytest.raises(ValueError, match=r"'fc2.bias'.*None"):
        Symmetry(spec, {name: axis for name, axis in axes.items() if name != "fc2.bias"})
    with pytest.raises(ValueError, match=r"P0 permutes 5 units.*'fc2.bias' has 2"):
        Symmetry(spec, axes | {"fc2.bias": ("P0",)})
    with pytest.raises(ValueError, match="one permutation on two axes"):
        Symmetry(ParamSpec(("w",), ((3, 3),)), {"w": ("P0", "P0")})
