"""Seeds: pure functions of integers, well mixed, and in the range that Gymnasium accepts."""

import numpy as np
import pytest

from rl_tasks.seeds import mix, uniforms


def splitmix64(seed: int, count: int) -> list[int]:
    """The published generator with Python's integers."""
    mask, state, out = 2**64 - 1, seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def finalise(z: int) -> int:
    return splitmix64((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


def test_splitmix64_is_the_published_one() -> None:
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # its reference output


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31 - 1, 2**63 - 1])
def test_uniforms_are_splitmix64_of_the_seed(seed: int) -> None:
    expected = [(z >> 11) * 2.0**-53 for z in splitmix64(finalise(seed), 6)]
    assert uniforms(np.array([5, seed]), (2, 3))[1].ravel().tolist() == expected


def test_uniforms_of_neighbouring_seeds_are_uniform_and_independent() -> None:
    u = uniforms(np.arange(20_000), (4,))
    assert u.min() >= 0
    assert u.max() < 1
    # 20,000 draws: the mean's standard error is 0.002, a correlation's is 0.007; five of them.
    assert np.abs(u.mean(axis=0) - 0.5).max() < 0.01
    assert np.abs(u.std(axis=0) - 12**-0.5).max() < 0.01
    neighbours = np.corrcoef(np.concatenate([u[:-1], u[1:]], axis=1).T)
    assert np.abs(neighbours - np.eye(8)).max() < 0.035


def test_mixed_seeds_broadcast_and_are_not_negative() -> None:
    seeds = mix(3, np.arange(5)[:, None], np.arange(7))
    assert seeds.shape == (5, 7)
    assert seeds.dtype == np.int64
    assert (seeds >= 0).all()
    assert seeds[2, 4] == mix(3, 2, 4)


def test_mixed_seeds_differ_by_value_order_and_number() -> None:
    assert len(np.unique(mix(np.arange(300)[:, None], np.arange(300)))) == 90_000
    assert len({int(mix(*v)) for v in [(), (0,), (0, 0), (1, 2), (2, 1), (1,), (1, 2, 0), (-1,)]}) == 8
