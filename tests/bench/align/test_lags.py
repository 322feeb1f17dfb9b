from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.align import lags
from bench.align.lags import band, best_lag, lags_of, mean_scores, min_overlap, most_lag, window_scores


def vectors(count: int, seed: int, dim: int = 4) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def oracle(one: np.ndarray, other: np.ndarray, most: int) -> np.ndarray:
    """Equation 2's terms, one by one."""
    found = np.full((len(one), 2 * most + 1), np.nan)
    for i in range(len(one)):
        for lag in range(-most, most + 1):
            if 0 <= i + lag < len(other):
                found[i, lag + most] = float(one[i] @ other[i + lag])
    return found


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_band_is_every_inner_product_within_reach(n0: int, n1: int, most: int, block: int, seed: int) -> None:
    one, other = vectors(n0, seed), vectors(n1, seed + 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lags, "BLOCK", block)
        found = band(one, other, most)
    np.testing.assert_allclose(found, oracle(one, other, most), atol=1e-6)


def test_scores_are_means_over_the_vectors_that_have_a_partner() -> None:
    values = np.array([[np.nan, 1.0, 0.5], [0.2, 0.0, np.nan], [0.4, 0.5, np.nan]], dtype=np.float32)
    np.testing.assert_allclose(mean_scores(values, 1), [0.3, 0.5, 0.5])
    assert mean_scores(values, 2).tolist()[:2] == pytest.approx([0.3, 0.5]) and mean_scores(values, 2)[2] == -np.inf


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(1, 6), st.sampled_from([0.05, 0.1, 0.25]), st.floats(0.1, 6), st.integers(0, 99))
def test_window_scores_are_those_of_the_vectors_near_a_keypoint(
    count: int, most: int, hop_s: float, window_s: float, seed: int
) -> None:
    terms = oracle(vectors(count, seed), vectors(count, seed + 1), most).astype(np.float32)
    at = np.arange(0, count * hop_s, 0.5)
    found = window_scores(terms, hop_s, at, window_s)
    for k, t in enumerate(at):
        near = np.abs(np.arange(count) * hop_s - t) <= window_s / 2 + 1e-6 * hop_s
        there = np.isfinite(terms[near]).sum(axis=0)
        least = max(1, min(near.sum() / 2, there.max(initial=0)))
        for lag in range(2 * most + 1):
            if there[lag] < least:
                assert found[k, lag] == -np.inf
            else:
                assert found[k, lag] == pytest.approx(np.nanmean(terms[near][:, lag]), abs=1e-5)


@pytest.mark.parametrize("lag", [-7, -1, 0, 3, 8])
def test_the_lag_has_the_sign_of_what_comes_later_in_channel_1(lag: int) -> None:
    scene = vectors(60, 0, dim=16)
    one, other = scene[10:50], scene[10 - lag : 50 - lag]  # vector i of `one` is vector i + lag of `other`
    terms = band(one, other, 8)
    assert best_lag(mean_scores(terms, min_overlap(one, other))) == lag
    assert (best_lag(window_scores(terms, 0.1, np.arange(0.0, 4.0), 2.0)) == lag).sum() >= 3


def test_equal_scores_give_the_lag_nearest_to_none() -> None:
    assert best_lag(np.zeros(9)) == 0
    assert best_lag(np.array([1.0, 0, 0, 0, 0, 0, 1.0])) == -3
    assert best_lag(np.array([[1.0, 0, 0, 1.0, 0], [0, 0, 0, 0, 2.0]])).tolist() == [1, 2]


def test_reach_is_told_in_hops() -> None:
    assert most_lag(5.0, 0.1) == 50 and most_lag(5.0, 0.05) == 100 and most_lag(0.01, 0.1) == 1
    assert lags_of(2).tolist() == [-2, -1, 0, 1, 2]
