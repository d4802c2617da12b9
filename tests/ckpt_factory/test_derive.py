"""derive_symmetry: what is derived equals what was written by hand, and a wrong rule cannot slip through."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import weight_norm

from ckpt_factory import MLP, ConvNet, derive
from ckpt_factory.derive import Derivation, derive_symmetry
from tests.conftest import unchecked

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


def permuted_difference(module: nn.Module, derived: Derivation, x: Tensor) -> float:
    """The dumb version: the largest change of outputs, relative to the largest, under random permutations."""
    symmetry, rng = derived.symmetry, torch.Generator().manual_seed(3)
    theta = torch.randn(5, symmetry.spec.D, generator=rng) * 0.5
    moved = symmetry.apply(theta, symmetry.random(5, rng=rng))
    assert not symmetry.sizes or not torch.equal(moved, theta)
    worst = 0.0
    for before, after in zip(theta, moved, strict=True):
        y, z = (functional_call(module, symmetry.spec.unflatten(row), (x,)) for row in (before, after))
        worst = max(worst, float((y - z).abs().max() / y.abs().max()))
    return worst


@pytest.mark.parametrize("sizes", [(6, 2), (6, 5, 2), (6, 5, 4, 3), (6, 1, 2)])
def test_the_symmetry_of_an_mlp_is_the_one_written_by_hand(sizes: tuple[int, ...]) -> None:
    derived = derive_symmetry(unchecked(MLP)(sizes), ROWS)
    assert derived.symmetry.axes_to_perm == MLP(sizes).axes_to_perm()
    assert derived.notes == ()


def test_the_symmetry_of_the_convnet_is_the_one_written_by_hand() -> None:
    derived = derive_symmetry(unchecked(ConvNet)(), IMAGES)
    assert derived.symmetry.axes_to_perm == ConvNet().axes_to_perm()
    assert derived.notes == ()


class Residual(nn.Module):
    """Two branches that meet, a learned scale, a mean over time: three layers that one permutation joins."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5), nn.Linear(5, 8)
        self.scale = nn.Parameter(torch.rand(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(x.size(0), 1, -1))
        h = h + self.scale * self.b(torch.tanh(self.a(h)))
        return self.head(h.mean(dim=1))


class Reused(nn.Module):
    """One layer applied twice: its rows and columns would have to move together, on two axes of one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.again(torch.relu(self.again(self.first(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(2, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(-1, 3, 2))
        h = self.attention(h, h, h)[0]
        return self.head(torch.relu(self.inner(h)).mean(1))


class Branches(nn.Module):
    """A forward that torch.fx cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


class Scaled(nn.Module):
    """The second hidden layer times constants, each unit another; so are the outputs, which stay anyway."""

    def __init__(self, *, hidden: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(5, 2)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        return self.c(h * torch.arange(5.0) if self.hidden else h) * torch.tensor([1.0, 2.0])


class Skipped(nn.Module):
    """Hidden units to which the inputs are added one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x) + x))))


class FunctionalPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2))), 2)
        return self.c(F.adaptive_avg_pool2d(F.adaptive_max_pool2d(h, 2), 1).flatten(1))


def conv_chain(end: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.GELU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.GroupNorm(6, 6), nn.PReLU(6), nn.Dropout(0.5), end,
    )  # fmt: skip


CHAINS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int]]] = {
    "norms and activations": (
        lambda: nn.Sequential(
            nn.Linear(6, 5), nn.LayerNorm(5), nn.SiLU(), nn.Linear(5, 4, bias=False), nn.PReLU(),
            nn.Softmax(1), nn.Linear(4, 2),
        ),
        ROWS,
        {"P0": 5, "P1": 4},
    ),
    "global average pooling": (
        lambda: conv_chain(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))),
        IMAGES,
        {"P0": 4, "P1": 6},
    ),
    "a convolution at the end": (lambda: conv_chain(nn.Conv2d(6, 2, 1)), IMAGES, {"P0": 4, "P1": 6}),
    "functional pooling": (FunctionalPooling, IMAGES, {"P0": 4, "P1": 5}),
    "outputs times constants": (lambda: Scaled(hidden=False), ROWS, {"P0": 4, "P1": 5}),
    "two branches": (Residual, ROWS, {"P0": 8, "P1": 5}),
    "linear layers over a sequence": (
        lambda: nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)), IMAGES, {"P0": 5},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_derived_and_keep_their_function(name: str) -> None:
    make, x, sizes = CHAINS[name]
    module = make().eval()
    derived = derive_symmetry(module, x)
    assert derived.symmetry.sizes == sizes
    assert derived.notes == ()
    # float32 sums in another order, through up to four layers and norms
    assert permuted_difference(module, derived, x) < 1e-4


PARTIAL: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, int], str]] = {
    "flattened channels": (
        lambda: conv_chain(nn.Sequential(nn.Flatten(), nn.Linear(24, 2))), IMAGES, {"P0": 4}, "Flatten '8.0'",
    ),
    "grouped convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        IMAGES, {}, "Conv2d '1'",
    ),
    "norm over groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 2, 1)),
        IMAGES, {"P0": 3}, "GroupNorm '1'",
    ),
    "a layer used twice": (Reused, ROWS, {}, "two axes of again.weight"),
    "parametrised layer": (
        lambda: nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2)),
        ROWS, {}, "Linear '0'",
    ),
    "units times constants": (Scaled, ROWS, {"P0": 4}, "mul of units and a constant or an input"),
    "inputs added to units": (Skipped, ROWS, {"P0": 5}, "add of units and a constant or an input"),
    "attention": (Attention, ROWS, {"P0": 5}, "MultiheadAttention 'attention'"),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTIAL)
def test_what_no_rule_covers_stays_in_order_and_is_said(name: str) -> None:
    make, x, sizes, words = PARTIAL[name]
    module = make().eval()
    derived = derive_symmetry(module, x)
    assert derived.symmetry.sizes == sizes
    assert any(words in note for note in derived.notes)
    assert permuted_difference(module, derived, x) < 1e-4  # as above


@pytest.mark.parametrize(("layer", "x"), [(nn.Linear(6, 2), ROWS), (nn.Conv2d(3, 2, 3), IMAGES)])
def test_a_layer_without_hidden_units_leaves_none_out(layer: nn.Module, x: Tensor) -> None:
    derived = derive_symmetry(layer, x)
    assert derived.symmetry.sizes == {}
    assert derived.notes == ()


def test_a_forward_that_cannot_be_traced_has_no_symmetry_and_says_so() -> None:
    derived = derive_symmetry(Branches(), ROWS)
    assert derived.symmetry.sizes == {}
    assert "torch.fx cannot trace its forward" in derived.notes[0]


def test_deriving_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = conv_chain(nn.Flatten()).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    derive_symmetry(module, IMAGES)
    assert module.training
    assert all(value.dtype == torch.float32 for value in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


class Cumulative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).cumsum(1))


def test_a_wrong_rule_does_not_slip_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no rule for cumsum" in derive_symmetry(Cumulative(), ROWS).notes[0]
    monkeypatch.setattr(derive, "ELEMENTWISE", derive.ELEMENTWISE | {"cumsum"})
    derived = derive_symmetry(Cumulative(), ROWS)
    assert derived.symmetry.sizes == {}
    assert "does not hold" in derived.notes[0]


def test_a_permutation_that_numbers_cannot_confirm_is_not_claimed() -> None:
    """The hidden layer is multiplied by zero: any permutation of it, right or wrong, would pass."""

    class Dead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * 0.0)

    assert derive_symmetry(Dead(), ROWS).symmetry.sizes == {}
