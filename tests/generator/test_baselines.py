"""Baselines: each makes of training networks just what it says, from its rng alone."""

import pytest
import torch

from ckpt_factory.tasks import MLPClassifier
from ckpt_factory.tasks.base import seeded
from generator.audit.baselines import BASELINES
from generator.audit.novelty import Pool


@pytest.fixture(scope="module")
def pool(tiny: MLPClassifier) -> Pool:
    """Eight networks in random orders of one another's units, with metrics."""
    base = torch.randn(tiny.spec.D, generator=seeded(0))
    theta = base + 0.05 * torch.randn(8, tiny.spec.D, generator=seeded(1))
    moved = tiny.symmetry.apply(theta, tiny.symmetry.random(8, rng=seeded(2)))
    return Pool(moved, torch.tensor([0.8, 0.3, 0.5, 0.4, 0.9, 0.2, 0.7, 0.6]), moved)


def made(name: str, task: MLPClassifier, pool: Pool, setting: float, num: int = 6) -> torch.Tensor:
    return BASELINES[name].make(task, pool, setting, num, 0.3, seeded(5))


def is_one_of(row: torch.Tensor, theta: torch.Tensor) -> bool:
    return bool((theta == row).all(1).any())


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_functions_of_their_rng(name: str, tiny: MLPClassifier, pool: Pool) -> None:
    for setting in BASELINES[name].settings:
        theta = made(name, tiny, pool, setting)
        assert theta.shape == (6, tiny.spec.D)
        assert theta.isfinite().all()
        assert torch.equal(theta, made(name, tiny, pool, setting))


def test_noise_is_as_wide_as_each_tensor_says(tiny: MLPClassifier, pool: Pool) -> None:
    num = 4000
    gap = made("noise", tiny, pool, 0.5, num) - made("noise", tiny, pool, 0.0, num)
    for name, part, _ in tiny.spec.slices():
        # the standard error of a standard deviation of 12,000 numbers is 0.6 %
        assert float(gap[:, part].std()) == pytest.approx(0.5 * float(pool.best[:, part].std()), rel=0.04), (
            name
        )
    assert all(is_one_of(row, pool.best) for row in made("noise", tiny, pool, 0.0))


def test_interpolation_goes_from_one_network_towards_another(tiny: MLPClassifier, pool: Pool) -> None:
    assert all(is_one_of(row, pool.best) for row in made("interpolation as is", tiny, pool, 0.0))
    assert all(is_one_of(row, pool.best) for row in made("interpolation as is", tiny, pool, 1.0))
    first, middle, last = (made("interpolation", tiny, pool, share) for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(middle, (first + last) / 2)
    # aligned they are the same network with noise of 0.05 each; 43 numbers of a difference of two
    assert (first - last).norm(dim=1).max() < 1.5 * 0.05 * (2 * 43) ** 0.5
    assert (first - last).norm(dim=1).min() > 0


def test_means_of_aligned_networks_lie_among_them(tiny: MLPClassifier, pool: Pool) -> None:
    """Of 16 of eight networks there are eight, the mean of all: it differs by the order of units alone."""
    rows = made("averages", tiny, pool, 16.0)
    norms = rows.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(6))  # float32 sums in another order
    assert float(norms[0]) < float(pool.best.norm(dim=1).mean())
    mean = made("Gaussian", tiny, pool, 0.0)
    assert (mean == mean[0]).all()
    torch.testing.assert_close(mean[0].norm(), norms[0])


def test_the_gaussian_is_as_wide_as_the_aligned_networks(tiny: MLPClassifier, pool: Pool) -> None:
    gap = made("Gaussian", tiny, pool, 1.0, 4000) - made("Gaussian", tiny, pool, 0.0, 1)
    # spreads of eight draws from a spread of 0.05, over 43 numbers: 25 % each, 4 % in the mean
    assert float(gap.std(0).mean()) == pytest.approx(0.05 * (7 / 8) ** 0.5, rel=0.15)


def test_retrieval_takes_the_nearest_metrics(tiny: MLPClassifier, pool: Pool) -> None:
    rows = made("retrieval", tiny, pool, 0.0, num=2)
    assert torch.equal(rows[0], pool.best[1])
    assert is_one_of(rows[1], pool.best[[3, 5]])
