"""Losses: TaiLr by hand, its limits, and that its two forms have the same gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ckpt_factory.losses import cross_entropy, kl_divergence, relative_error, tailr, tailr_weight

GAMMAS = [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9]  # the last is 1 in float32


def stack(num_runs: int, *, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits (K, C, B) = (K, 5, 8) and labels."""
    rng = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(num_runs, 5, 8, generator=rng)
    return logits, torch.randint(0, 5, (num_runs, 8), generator=rng)


def with_probability(p: float) -> tuple[Tensor, Tensor]:
    """One image of two classes whose label, 0, has that probability."""
    return torch.tensor([[[math.log(p)], [math.log1p(-p)]]]), torch.tensor([[0]])


def test_cross_entropy_is_torchs() -> None:
    logits, labels = stack(3)
    expected = torch.stack(
        [F.cross_entropy(x.T, y, reduction="none") for x, y in zip(logits, labels, strict=True)]
    )
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


def test_tailr_of_gamma_zero_is_cross_entropy() -> None:
    logits, labels = stack(2, scale=60.0)  # some labels' probabilities underflow
    assert (logits.softmax(1) == 0).any()
    torch.testing.assert_close(tailr(logits, labels, torch.zeros(2)), cross_entropy(logits, labels))
    assert torch.equal(tailr_weight(torch.tensor([[0.0, 1e-30, 0.5, 1.0]]), torch.zeros(1)), torch.ones(1, 4))


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("p", [1e-6, 0.01, 0.5, 0.9, 0.999])
def test_tailr_is_the_published_formula_for_easy_and_hard_examples(p: float, gamma: float) -> None:
    logits, labels = with_probability(p)
    loss = tailr(logits, labels, torch.tensor([gamma]))
    expected = -math.log(gamma + (1 - gamma) * p) / (1 - gamma)
    # float32: 1e-7 of the logarithm, divided by 1 - gamma
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=5e-6)
    weight = tailr_weight(torch.tensor([[p]]), torch.tensor([gamma]))
    assert weight.item() == pytest.approx(p / (gamma + (1 - gamma) * p), rel=1e-5)


def test_tailr_has_a_gamma_for_every_run() -> None:
    logits, labels = stack(len(GAMMAS))
    together = tailr(logits, labels, torch.tensor(GAMMAS))
    for k, gamma in enumerate(GAMMAS):
        alone = tailr(logits[k : k + 1], labels[k : k + 1], torch.tensor([gamma]))
        assert torch.equal(together[k], alone[0])
    p = torch.full((len(GAMMAS), 1), 0.2)
    weights = tailr_weight(p, torch.tensor(GAMMAS)).flatten().tolist()
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1.0
    assert weights[-1] == pytest.approx(0.2, rel=1e-6)  # the error rate's surrogate: the weight is p


@pytest.mark.parametrize("gamma", [0.9999, 0.999999, 1 - 1e-9])
@pytest.mark.parametrize("p", [1e-30, 0.2, 0.999])
def test_near_gamma_one_the_loss_is_its_limit(gamma: float, p: float) -> None:
    logits, labels = with_probability(p)
    loss = tailr(logits, labels, torch.tensor([gamma])).item()
    # the first term left out of the limit is (1 - gamma) (1 - p)^2 / 2; the rest is float32
    assert loss == pytest.approx(1 - p, abs=(1 - gamma) + 1e-6)


def test_unlikely_labels_are_trusted_less() -> None:
    p = torch.linspace(0, 1, 11).unsqueeze(0)
    weight = tailr_weight(p, torch.tensor([0.3]))[0]
    assert (weight.diff() > 0).all()
    assert weight[0] == 0
    assert weight[-1] == 1


@given(st.floats(1e-4, 1 - 1e-4), st.floats(0, 0.99))
def test_tailr_lies_between_the_error_rates_surrogate_and_cross_entropy(p: float, gamma: float) -> None:
    logits, labels = with_probability(p)
    loss = tailr(logits.double(), labels, torch.tensor([gamma], dtype=torch.float64)).item()
    # the logits are rounded to float32
    assert 1 - p - 1e-5 <= loss <= -math.log(p) + 1e-5


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0]


@pytest.mark.parametrize("scale", [0.1, 2.0, 60.0])
def test_both_forms_of_tailr_have_the_same_gradient(scale: float) -> None:
    """Through the loss, and as the weight times cross-entropy's; at scale 60 probabilities underflow."""
    logits, labels = stack(len(GAMMAS), scale=scale)
    assert bool((logits.softmax(1).gather(1, labels.unsqueeze(1)) == 0).any()) == (scale == 60)
    gamma, logits = torch.tensor(GAMMAS), logits.requires_grad_()
    through = gradient(tailr(logits, labels, gamma), logits)
    p = logits.detach().softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    weighted = tailr_weight(p, gamma).unsqueeze(1) * gradient(cross_entropy(logits, labels), logits)
    # gradients are of order 1; exponents of up to 200 are rounded to 1e-5 in float32
    torch.testing.assert_close(through, weighted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gap", [0.0, 50.0, 120.0, 1e4, 1e30])
def test_gradients_are_finite_however_sure_the_network_is(gap: float) -> None:
    for label in (0, 1):
        logits = torch.tensor([[gap], [-gap]]).expand(len(GAMMAS), 2, 1).clone().requires_grad_()
        labels = torch.full((len(GAMMAS), 1), label)
        found = gradient(tailr(logits, labels, torch.tensor(GAMMAS)), logits)
        assert found.isfinite().all()
        assert found.abs().max() <= 1


def test_divergence_of_classes_is_that_of_their_probabilities() -> None:
    """KL((.5, .5) || (.9, .1)) = .5 log(.5 / .9) + .5 log(.5 / .1), half with one of two right."""
    half, most = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    goal, found = torch.stack([half, half]).unsqueeze(0), torch.stack([most, half]).unsqueeze(0) + 3.0
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert kl_divergence(found, goal).tolist() == pytest.approx([expected / 2], rel=1e-5)
    assert kl_divergence(goal, goal).tolist() == pytest.approx([0.0], abs=1e-7)


def test_relative_error_is_a_share_of_the_goals_variance() -> None:
    goal = torch.tensor([[1.0, 3.0], [10.0, 30.0]]).unsqueeze(2)  # variances 1 and 100
    found = goal + torch.tensor([[[0.5], [0.5]], [[5.0], [-5.0]]])
    torch.testing.assert_close(relative_error(found, goal), torch.tensor([0.25, 0.25]))
