"""Stretches of one clock: where they begin and end, which stand, and how they are joined."""

from __future__ import annotations

import numpy as np
import pytest

from bench.align.evidence import Evidence
from bench.align.stretches import Stretch, cut_stretches, find_runs, join
from bench.align.waves import whiten
from bench.values import RATE_HZ


def evidence(lags_s: list[float], heights: list[list[float]], probabilities: list[list[float]]) -> Evidence:
    """Return the evidence of candidates with constant lags; heights and probabilities by candidate."""
    num_knots = len(heights[0])
    return Evidence(
        np.arange(float(num_knots)),
        np.tile(lags_s, (num_knots, 1)),
        np.array(heights).T,
        np.array(probabilities).T,
    )


def stretch(first_s: float, last_s: float, lag_s: float) -> Stretch:
    time0 = np.arange(first_s, last_s + 1)
    return Stretch(time0, np.full(len(time0), lag_s), np.ones(len(time0)), np.full(len(time0), 20.0))


def test_a_run_bridges_a_minute_of_silence_and_no_more() -> None:
    chosen = np.full(200, -1)
    chosen[[3, 4, 64, 130]] = 0
    chosen[131] = 1
    assert find_runs(chosen) == [(0, 3, 64), (0, 130, 130), (1, 131, 131)]


def test_a_stretch_begins_and_ends_with_a_second_that_speaks_for_it() -> None:
    # Knots 1 and 6 are probable only because the clock is slow to lose its lag.
    (found,) = cut_stretches(
        evidence([0.0], [[2, 3, 20, 2, 20, 20, 3, 2]], [[0.1, 0.6, 0.99, 0.7, 0.99, 0.99, 0.6, 0.1]]), 8.0
    )
    assert found.time0_K.tolist() == [2, 3, 4, 5]
    # The sound in common may end within the outermost seconds; the one in between is as sure as those beside it.
    assert found.confidence_K == pytest.approx([0.0, 0.99, 0.99, 0.0], abs=1e-6)


def test_the_outermost_second_is_sure_where_a_recording_ends() -> None:
    (found,) = cut_stretches(evidence([0.0], [[20.0] * 5], [[0.99] * 5]), 4.5)
    assert found.confidence_K.min() == pytest.approx(0.99)
    (short,) = cut_stretches(evidence([0.0], [[20.0] * 3 + [2.0] * 2], [[0.99] * 3 + [0.2] * 2]), 3.0)
    assert short.confidence_K.tolist() == pytest.approx([0.99] * 3)


def test_a_stretch_that_another_lag_explains_as_well_stands_only_alone() -> None:
    doubted = [[20.0] * 4 + [2.0] * 4, [20.0] * 4 + [2.0] * 4]
    probable = [[0.6] * 4 + [0.0] * 4, [0.4] * 4 + [0.0] * 4]
    (alone,) = cut_stretches(evidence([0.0, 0.5], doubted, probable), 8.0)
    assert alone.confidence_K.max() < 0.5
    beside = cut_stretches(
        evidence([0.0, 0.5, 0.2], [*doubted, [2.0] * 4 + [20.0] * 4], [*probable, [0.0] * 4 + [0.99] * 4]), 8.0
    )
    assert [each.time0_K.tolist() for each in beside] == [[4, 5, 6, 7]]


def test_the_shorter_of_two_stretches_that_run_backwards_is_left_out() -> None:
    # Candidate 1 would place second 3 of channel 0 before its second 2.
    heights = [[20.0] * 3 + [2.0] * 5, [2.0] * 3 + [20.0] * 5]
    probable = [[0.99] * 3 + [0.0] * 5, [0.0] * 3 + [0.99] * 5]
    (kept,) = cut_stretches(evidence([3.0, 0.5], heights, probable), 12.0)
    assert kept.lag_K.tolist() == [0.5] * 5


@pytest.mark.parametrize(("silence_s", "is_jump"), [(1.0, True), (20.0, False)])
def test_a_lag_that_may_have_wandered_in_a_silence_is_no_jump(silence_s: float, is_jump: bool) -> None:
    noise = np.random.default_rng(2).standard_normal(60 * RATE_HZ).astype(np.float32)
    parts = [stretch(0.0, 20.0, 1.0), stretch(20.0 + silence_s, 50.0, 1.05)]
    joined = join(whiten(noise), whiten(noise), parts, 1)
    assert bool(joined.jumps) == is_jump
    middle = np.array([20.0 + silence_s / 2])
    assert joined.confidence_at(middle) == pytest.approx(0.0)
    if not is_jump:
        assert joined.at(middle) - middle == pytest.approx(1.025, abs=0.001)
