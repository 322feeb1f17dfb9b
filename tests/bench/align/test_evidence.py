"""The model of a clock that keeps, loses and changes its lag: against a sum over all its histories, and on waves."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from bench.align.evidence import (
    FINDS,
    HEIGHTS,
    JUMPS,
    LOG_ODDS,
    LOSES,
    measure_heights,
    rate_against_rivals,
    weigh,
)
from bench.align.waves import whiten
from bench.values import RATE_HZ


def weigh_slowly(height_KC: np.ndarray) -> np.ndarray:
    """Return the probabilities from the sum over every history of states."""
    num_knots, num_candidates = height_KC.shape
    none = num_candidates
    odds = np.nan_to_num(np.interp(height_KC, HEIGHTS, LOG_ODDS))
    total, by_state = 0.0, np.zeros((num_knots, num_candidates + 1))
    for states in product(range(num_candidates + 1), repeat=num_knots):
        log_probability = 0.0 if states[0] == none else FINDS
        for before, after in pairwise(states):
            if before != after:
                log_probability += LOSES if after == none else FINDS if before == none else JUMPS
        log_probability += sum(odds[k, state] for k, state in enumerate(states) if state != none)
        total += np.exp(log_probability)
        for k, state in enumerate(states):
            by_state[k, state] += np.exp(log_probability)
    return by_state[:, :-1] / total


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_are_the_sum_over_all_histories(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height = draw.uniform(0, 20, (6, 2))
    height[draw.random(height.shape) < 0.2] = np.nan
    assert weigh(height) == pytest.approx(weigh_slowly(height), abs=1e-12)


def test_one_loud_second_is_no_proof_and_three_clear_ones_are() -> None:
    # One second has log odds of 5.5, three have 13.5: finding a lag and losing it again cost 11.
    height = np.full((9, 1), 2.0)
    height[4] = 300.0
    assert weigh(height)[4, 0] < 0.5
    height[3:6] = 10.0
    assert weigh(height)[3:6].min() > 1 / (1 + np.exp(11 - 13.5)) and weigh(height)[0] < 0.01


def test_seconds_that_say_nothing_keep_the_lag_for_a_while() -> None:
    height = np.full((12, 1), np.nan)
    height[:4] = 12.0
    probability = weigh(height)[:, 0]
    assert probability[4] > 0.95 and (np.diff(probability[4:]) < 0).all()


def test_a_lag_that_another_one_matches_as_well_is_rivalled() -> None:
    # The other one has no partner for the last second, so that only five count, in which both are equal.
    height = np.full((6, 2), 12.0)
    height[5, 1] = np.nan
    assert rate_against_rivals(height, 0) == pytest.approx(1 / (1 + np.exp(2.0)))
    height[:, 1] = 3.0
    assert rate_against_rivals(height, 0) > 0.99


def test_the_height_is_high_at_the_true_lag_alone() -> None:
    draw = np.random.default_rng(3)
    scene = draw.standard_normal(12 * RATE_HZ).astype(np.float32)
    one, other = scene[2 * RATE_HZ : 8 * RATE_HZ], scene[: 8 * RATE_HZ]
    noise = [draw.standard_normal(len(wave)).astype(np.float32) for wave in (one, other)]
    recorded = [whiten(wave + own) for wave, own in zip((one, other), noise, strict=True)]
    height = measure_heights(*recorded, np.arange(6.0), np.tile([2.0, 1.4, 30.0], (6, 1)))
    assert height[:, 0].min() > 20 and height[:, 1].max() < 8 and np.isnan(height[:, 2]).all()
