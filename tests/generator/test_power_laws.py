"""Power laws: known ones are found again, intervals hold the truth, and too little data says nothing."""

import numpy as np
import pytest

from generator.comparison.power_laws import fit_power_law, frontier

N = np.array([1e5, 3e5, 1e6, 3e6, 1e7])


def test_a_line_in_logarithms_is_found_exactly() -> None:
    law = fit_power_law({"parameters": N}, 7 * N**-0.3, floor=False)
    assert law is not None
    assert law.exponents[0] == pytest.approx(0.3, rel=1e-5)  # least squares stop at 1e-8 of their cost
    assert law.scales[0] == pytest.approx(7, rel=1e-4)
    assert law.floor == 0
    assert law.spread == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(law(N), 7 * N**-0.3, rtol=1e-5)


def test_a_floor_is_told_from_a_slow_fall() -> None:
    law = fit_power_law({"parameters": N}, 0.2 + 40 * N**-0.4, floor=True)
    assert law is not None
    assert law.floor == pytest.approx(0.2, rel=0.01)
    assert law.exponents[0] == pytest.approx(0.4, rel=0.01)


def test_both_terms_of_a_joint_law_are_found() -> None:
    n, d = (grid.flatten() for grid in np.meshgrid(N, [200.0, 800.0, 3200.0]))
    rng = np.random.default_rng(0)
    loss = (0.1 + 30 * n**-0.4 + 9 * d**-0.6) * np.exp(0.01 * rng.normal(size=len(n)))
    law = fit_power_law({"parameters": n, "runs": d}, loss, floor=True)
    assert law is not None
    assert law.names == ("parameters", "runs")
    for found, true, interval in zip(law.exponents, (0.4, 0.6), law.intervals, strict=True):
        assert found == pytest.approx(true, abs=0.1)  # 1 % of noise, 15 points, 5 numbers
        assert interval is not None
        assert interval[0] < found < interval[1]
    assert law.spread == pytest.approx(0.01, rel=0.6)


def test_intervals_hold_the_true_exponent_about_as_often_as_they_say() -> None:
    x, held = np.geomspace(1e4, 1e8, 5), 0
    for seed in range(400):
        noise = 0.1 * np.random.default_rng(seed).normal(size=len(x))
        law = fit_power_law({"x": x}, 5 * x**-0.2 * np.exp(noise), floor=False)
        assert law is not None
        low, high = law.intervals[0]
        held += low <= 0.2 <= high
    assert 346 <= held <= 374  # of 400, 90 % are 360; 14 are 2.3 standard deviations of a count


def test_too_few_points_say_nothing() -> None:
    assert fit_power_law({"x": [1.0]}, [1.0], floor=False) is None
    assert fit_power_law({"x": [1.0, 1.0, 1.0]}, [1.0, 0.9, 1.1], floor=False) is None
    assert fit_power_law({"x": [1.0, 2.0]}, [1.0, 0.5], floor=True) is None
    assert fit_power_law({"x": [1.0, 2.0]}, [1.0, 0.5], floor=False) is None, (
        "how sure is a line through two?"
    )
    law = fit_power_law({"x": [1.0, 2.0, 4.0]}, [1.0, 0.5, 0.25], floor=False)
    assert law is not None
    assert law.exponents[0] == pytest.approx(1)


def test_an_exponent_without_an_end_is_none() -> None:
    """One point high, the others level: the steeper the fall, the better the fit."""
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert fit_power_law({"x": x}, [9.0, 0.1, 0.1, 0.1, 0.1], floor=True) is None


def test_points_that_are_no_losses_are_left_out() -> None:
    loss = np.append(7 * N**-0.3, [np.nan, np.inf, -1.0])
    law = fit_power_law({"x": np.append(N, [2e6, 2e6, 2e6])}, loss, floor=False)
    assert law is not None
    assert law.num_points == 5
    assert law.exponents[0] == pytest.approx(0.3, rel=1e-5)


def test_the_frontier_is_what_no_cheaper_point_is_as_good_as() -> None:
    cost, loss = [3.0, 1.0, 2.0, 4.0, 2.0, 5.0], [0.5, 1.0, 1.2, 0.5, 0.8, float("nan")]
    assert frontier(cost, loss) == [1, 4, 0]
