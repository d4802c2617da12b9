"""Heads: noise samples what the outputs say, log-probabilities are right, PPO's gradient is its loss's."""

import numpy as np
import pytest
import torch
from scipy import stats

from ckpt_factory.tasks.base import seeded
from rl_tasks.heads import Arrays, Categorical, Gaussian, Head, PolicyBatch, make_head
from rl_tasks.stacked import Spaces

K, B = 3, 50
CONTINUOUS = Spaces(4, 0, (-2.0, -np.inf), (4.0, np.inf))


def heads() -> list[Head]:
    return [Categorical(2), Categorical(5), Gaussian(CONTINUOUS)]


def case(head: Head, entropy: float = 0.0) -> tuple[torch.Tensor, torch.Tensor | None, PolicyBatch]:
    """Outputs and log_std of policies that have moved on, and what their predecessors did."""
    rng = seeded(5)
    outputs = torch.randn(K, B, head.outputs, generator=rng)
    log_std = torch.randn(K, head.outputs, generator=rng) / 3 if head.continuous else None
    np_std = None if log_std is None else log_std.numpy()
    actions = head.act(outputs.numpy(), np_std, head.draw([rng] * K, (B,)))
    before = head.log_prob((outputs + torch.randn(outputs.shape, generator=rng) / 3).numpy(), np_std, actions)
    batch = PolicyBatch(
        torch.zeros(K, B, 4),
        torch.from_numpy(actions),
        torch.from_numpy(before),
        torch.randn(K, B, generator=rng),
        torch.tensor([0.1, 0.2, 0.3]),
        torch.full((K,), entropy),
        torch.full((K,), 0.5),
    )
    return outputs, log_std, batch


@pytest.mark.parametrize("head", heads(), ids=["two", "five", "gaussian"])
@pytest.mark.parametrize("entropy", [0.0, 0.2])
def test_gradient_by_hand_is_that_of_the_loss(head: Head, entropy: float) -> None:
    outputs, log_std, batch = case(head, entropy)
    leaves = [each.requires_grad_() for each in (outputs, log_std) if each is not None]
    expected = torch.autograd.grad(head.loss(outputs, log_std, batch).sum(), leaves)
    arrays = Arrays(*(each.numpy() for each in batch[:6]))
    std = None if log_std is None else log_std.detach().numpy()
    found = [each for each in head.loss_gradient(outputs.detach().numpy(), std, arrays) if each is not None]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs.numpy(), rel=1e-4, abs=1e-6)  # float32


@pytest.mark.parametrize("head", heads(), ids=["two", "five", "gaussian"])
def test_the_loss_is_that_of_the_paper(head: Head) -> None:
    """Schulman et al. 2017, eq. 7, transition by transition; some are clipped on either side."""
    outputs, log_std, batch = case(head)
    clipped = 0
    for k, loss in enumerate(head.loss(outputs, log_std, batch)):
        total, clip = 0.0, float(batch.clip[k])
        for b in range(B):
            if log_std is None:
                distribution = torch.distributions.Categorical(logits=outputs[k, b])
                log_prob = distribution.log_prob(batch.actions[k, b, 0])
            else:
                distribution = torch.distributions.Normal(outputs[k, b], log_std[k].exp())
                log_prob = distribution.log_prob(batch.actions[k, b]).sum()
            ratio, advantage = float((log_prob - batch.log_probs[k, b]).exp()), float(batch.advantages[k, b])
            bounded = min(max(ratio, 1 - clip), 1 + clip)
            clipped += bounded != ratio
            total += min(ratio * advantage, bounded * advantage)
        assert float(loss) == pytest.approx(-total / B, rel=1e-4, abs=1e-6)
    assert 0.1 < clipped / (K * B) < 0.9


def test_gumbel_noise_samples_the_softmax() -> None:
    head, rng = Categorical(3), seeded(7)
    logits = torch.tensor([0.5, -1.0, 0.2])
    outputs = logits.expand(1, 30_000, 3).numpy()
    chosen = head.act(outputs, None, head.draw([rng], (30_000,)))[..., 0].astype(int).ravel()
    counts, expected = np.bincount(chosen, minlength=3), 30_000 * logits.softmax(0).numpy()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01
    uniform = np.random.default_rng(1).random((1, 30_000, 3))
    others = np.bincount(head.act(outputs, None, head.noise(uniform))[..., 0].astype(int).ravel())
    assert stats.chisquare(others, expected * others.sum() / expected.sum()).pvalue > 0.01


def test_gaussian_noise_is_normal() -> None:
    head = Gaussian(CONTINUOUS)
    for noise in (head.draw([seeded(8)], (5000,)), head.noise(np.random.default_rng(1).random((5000, 2)))):
        assert stats.kstest(noise.ravel(), "norm").pvalue > 0.01
        assert noise.dtype == np.float32


def test_extreme_uniform_numbers_give_finite_noise() -> None:
    extreme = np.array([[0.0, 1 - 2.0**-53]])
    for head in heads():
        assert np.isfinite(head.noise(np.resize(extreme, (1, head.outputs)))).all()


@pytest.mark.parametrize("head", heads(), ids=["two", "five", "gaussian"])
def test_no_noise_is_the_likeliest_action(head: Head) -> None:
    outputs, log_std, _ = case(head)
    std = None if log_std is None else log_std.numpy()
    actions = head.act(outputs.numpy(), std, np.zeros(outputs.shape, np.float32))
    expected = outputs if head.continuous else outputs.argmax(-1, keepdim=True).float()
    assert torch.equal(torch.from_numpy(actions), expected)


def test_actions_of_one_are_the_bounds_and_beyond_them_is_clipped() -> None:
    head = make_head(CONTINUOUS)
    actions = np.array([[[1, 3], [-1, -3], [0, 0], [9, 1e6], [-9, 0.5]]], np.float32)
    expected = [[4, 3], [-2, -3], [1, 0], [4, 1e6], [-2, 0.5]]
    assert head.to_env(actions).tolist() == expected
    lost = np.array([[[np.nan, 1], [np.inf, -np.inf]]], np.float32)
    assert head.to_env(lost).tolist() == [[0, 1], [4, -np.inf]]
    assert make_head(Spaces(4, 2)).to_env(np.array([[[1.0], [0.0]]], np.float32)).tolist() == [1, 0]


@pytest.mark.parametrize("head", heads(), ids=["two", "five", "gaussian"])
def test_a_run_that_is_lost_harms_no_other(head: Head) -> None:
    outputs, log_std, batch = case(head, 0.1)
    std = None if log_std is None else log_std.numpy()
    arrays = Arrays(*(each.numpy() for each in batch[:6]))
    sound, _ = head.loss_gradient(outputs.numpy(), std, arrays)
    outputs[1] = torch.nan
    with np.errstate(all="ignore"):
        found, _ = head.loss_gradient(outputs.numpy(), std, arrays)
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], sound[[0, 2]])
