from __future__ import annotations

import numpy as np
import pytest

from bench.align.smooth import HUBER, LEAST_SCALE_S, smooth


def test_a_straight_line_stays_straight_whatever_the_stiffness() -> None:
    time = np.arange(50.0)
    for period_s in (1.0, 30.0, 300.0):
        np.testing.assert_allclose(smooth(0.3 + 1e-3 * time, np.ones(50), 1.0, period_s), 0.3 + 1e-3 * time, atol=1e-6)


def test_minimum_is_that_of_the_written_sum() -> None:
    draw = np.random.default_rng(0)
    lag, weight = 1e-6 * draw.standard_normal(12), draw.uniform(0.5, 2, 12)  # so small that Huber changes nothing
    second = np.diff(np.eye(12), 2, axis=0)
    stiffness = (9.0 / (2 * np.pi * 0.5)) ** 4
    dense = np.linalg.solve(np.diag(weight) + stiffness * second.T @ second, weight * lag)
    assert np.abs(lag - dense).max() < HUBER * LEAST_SCALE_S
    np.testing.assert_allclose(smooth(lag, weight, 0.5, 9.0), dense, atol=1e-12)


def test_half_of_a_swing_of_the_period_is_kept_and_nearly_all_of_a_slow_one() -> None:
    time = np.arange(2_000.0)
    for period_s, kept in ((40.0, 0.5), (160.0, 1 / (1 + 4.0**-4)), (10.0, 1 / (1 + 4.0**4))):
        swing = 1e-6 * np.sin(2 * np.pi * time / period_s)
        found = smooth(swing, np.ones(2_000), 1.0, 40.0)
        assert np.abs(found[500:1_500]).max() / 1e-6 == pytest.approx(kept, abs=0.02)


def test_outliers_and_knots_without_weight_pull_little() -> None:
    time = np.arange(100.0)
    truth = 1e-2 * np.sin(2 * np.pi * time / 100)
    lag = truth + 1e-4 * np.random.default_rng(0).standard_normal(100)
    lag[::9] += 0.5
    weight = np.ones(100)
    lag[40:60], weight[40:60] = 3.0, 0.0
    found = smooth(lag, weight, 1.0, 20.0)
    assert np.abs(found - truth)[:38].max() < 1e-3
    assert np.abs(found - truth)[40:60].max() < 5e-3


@pytest.mark.parametrize(("lag", "weight", "mean"), [([2.0], [1.0], 2.0), ([1.0, 3.0], [3.0, 1.0], 1.5)])
def test_few_knots_give_their_mean(lag: list[float], weight: list[float], mean: float) -> None:
    assert smooth(np.array(lag), np.array(weight), 1.0, 20.0).tolist() == [mean] * len(lag)


def test_without_any_weight_there_is_an_answer() -> None:
    assert smooth(np.array([1.0, 2.0, 3.0]), np.zeros(3), 1.0, 20.0).tolist() == [2.0] * 3
