"""Comparisons of two systems on the same queries, against values by hand and slow sums."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.score.statistics import (
    LEVEL,
    bootstrap_difference,
    bootstrap_mean,
    design_effect,
    detectable_difference,
    holm,
    mcnemar,
    paired_p,
    rank_with_ties,
    share_interval,
    standard_error,
    wilson,
)


def outcomes(both: int, only_one: int, only_other: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_one, only_other, neither]
    one, other = (np.repeat(right, counts) for right in ([True, True, False, False], [True, False, True, False]))
    return one, other


def slow_mcnemar(only_one: int, only_other: int) -> float:
    """Return the share of all outcomes of fair coins that are at most as likely as the observed one."""
    coins = only_one + only_other
    heads = [sum(toss) for toss in product((0, 1), repeat=coins)]
    seen = math.comb(coins, only_one)
    return sum(math.comb(coins, h) <= seen for h in heads) / 2**coins


@pytest.mark.parametrize(
    ("only_one", "only_other", "p"),
    [
        (0, 5, 2 / 32),  # no head in five, or none but heads
        (1, 5, 2 * (1 + 6) / 64),
        (1, 7, 2 * (1 + 8) / 256),
        (5, 16, 2 * sum(math.comb(21, k) for k in range(6)) / 2**21),
        (3, 3, 1.0),
        (4, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_one: int, only_other: int, p: float) -> None:
    one, other = outcomes(11, only_one, only_other, 3)
    assert mcnemar(one, other) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 7), st.integers(0, 7), st.integers(0, 50), st.integers(0, 50))
def test_mcnemar_counts_the_tosses_and_sees_discordant_queries_alone(a: int, b: int, both: int, none: int) -> None:
    p = mcnemar(*outcomes(both, a, b, none))
    assert p == pytest.approx(slow_mcnemar(a, b), rel=1e-9)
    assert p == mcnemar(*outcomes(0, b, a, 0))


def test_mcnemar_of_no_query_knows_nothing() -> None:
    assert mcnemar(np.zeros(0, bool), np.zeros(0, bool)) == 1.0


def test_mcnemar_of_many_queries_is_a_number() -> None:
    assert 0 < mcnemar(*outcomes(0, 4_000, 5_000, 1_000)) < 1e-20


def test_difference_has_the_width_of_its_standard_error() -> None:
    # 50 and 150 discordant of 1,000: the mean is 0.1, a query's variance 0.2 - 0.1 ** 2.
    one, other = outcomes(600, 50, 150, 200)
    low, high = bootstrap_difference(one, other)
    half = 1.96 * math.sqrt((0.2 - 0.01) / 1_000)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.004)
    assert bootstrap_difference(one, other) == (low, high)
    # The ends of 2,000 draws are known to about a tenth of the half width.
    assert bootstrap_difference(other, one) == pytest.approx((-high, -low), abs=0.004)


def test_difference_keeps_pairs_together() -> None:
    # Two systems that are right on the very same queries differ by nothing, however uncertain each is.
    one, other = outcomes(10, 0, 0, 10)
    assert bootstrap_difference(one, other) == (0.0, 0.0)
    apart = bootstrap_difference(*outcomes(0, 10, 10, 0))
    assert apart[0] < -0.3 and apart[1] > 0.3


def test_difference_of_no_query_is_unknown() -> None:
    assert all(map(math.isnan, bootstrap_difference(np.zeros(0, bool), np.zeros(0, bool))))


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 is raised to the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.3]) == [0.3] and holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_stepping_down_rejects(p_values: list[float], level: float) -> None:
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] * (len(p_values) - rank) > level:
            break
        rejected.add(i)
    corrected = holm(p_values)
    assert {i for i, p in enumerate(corrected) if p <= level} == rejected
    assert all(raw <= after <= 1 for raw, after in zip(p_values, corrected, strict=True))


def test_detectable_difference_by_hand() -> None:
    # Half of 100 differences are 1, half -1: their deviation is 1.005, and 1.960 + 0.842 = 2.802 errors are seen.
    difference = np.array([1.0, -1.0] * 50)
    assert detectable_difference(difference) == pytest.approx(2.8016 * 1.00504 / 10, rel=1e-4)
    # Of ten tests each has a level of 0.5 %: 2.807 + 0.842.
    assert detectable_difference(difference, 10) == pytest.approx(3.6486 * 1.00504 / 10, rel=1e-4)


@pytest.mark.parametrize("difference", [[], [0.5], [0.0] * 20, [0.2] * 20])
def test_differences_without_scatter_do_not_tell_what_is_detectable(difference: list[float]) -> None:
    assert np.isnan(detectable_difference(np.array(difference)))


def test_detectable_difference_is_detected_in_four_of_five_cases() -> None:
    draw = np.random.default_rng(0)
    shift = detectable_difference(draw.normal(0, 1, 100_000)[:400])
    seen = [paired_p(draw.normal(shift, 1, 400)) < LEVEL for _ in range(1_000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.06)


def test_paired_p_by_hand() -> None:
    # A mean of 0.2 with a deviation of 1 over 100 queries is two errors from 0.
    difference = np.concatenate([np.ones(60), -np.ones(40)])
    assert paired_p(difference) == pytest.approx(2 * (1 - 0.97884), abs=1e-3)  # 0.2 / (0.98473 / 10) = 2.031
    assert paired_p(np.zeros(10)) == 1.0 and paired_p(np.ones(10)) == 0.0


def test_systems_that_cannot_be_told_apart_share_a_rank() -> None:
    draw = np.random.default_rng(0)
    best = draw.uniform(size=500)
    alike = best + draw.normal(0, 0.3, 500)
    alike += best.mean() - alike.mean()
    worse = best - 0.2 + draw.normal(0, 0.3, 500)
    assert rank_with_ties([worse, best, alike]) == [3, 1, 1]
    assert rank_with_ties([best]) == [1]
    assert rank_with_ties([best, best]) == [1, 1]


def test_rank_of_what_is_between_two_counts_who_is_better() -> None:
    # In the middle are two that differ from the best, not from the second best: 1, 1, 2 and not 1, 2, 3.
    draw = np.random.default_rng(1)
    base = draw.uniform(size=400)
    noise = [draw.normal(0, 0.4, 400) for _ in range(3)]
    shares = [base + each - each.mean() + shift for each, shift in zip(noise, (0.06, 0.02, -0.02), strict=True)]
    assert rank_with_ties(shares) == [1, 1, 2]


# Several queries of a track


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_one_query_of_each_track_changes_nothing(found: list[bool]) -> None:
    hit, tracks = np.array(found), np.arange(len(found))[::-1]
    assert share_interval(hit, tracks) == wilson(int(hit.sum()), len(hit))
    assert bootstrap_mean(hit.astype(float), tracks) == bootstrap_mean(hit.astype(float))
    assert mcnemar(hit, hit[::-1], tracks) == mcnemar(hit, hit[::-1])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_all_or_none_is_found_only_the_tracks_count(share: float) -> None:
    hit, tracks = np.full(60, bool(share)), np.repeat(np.arange(20), 3)
    assert design_effect(hit, tracks) == pytest.approx(3)
    assert share_interval(hit, tracks) == pytest.approx(wilson(20 * share, 20))


def test_queries_that_agree_within_their_tracks_count_as_tracks() -> None:
    hit, tracks = np.repeat([True, False], 30), np.repeat(np.arange(20), 3)
    assert share_interval(hit, tracks) == pytest.approx(wilson(10, 20))


def test_mcnemar_tosses_whole_tracks_by_hand() -> None:
    # Differences 2, 1, 1 of three tracks: sums of at least 4 either way are 2 of 8 tosses.
    one, tracks = np.array([1, 1, 1, 0, 1, 0], bool), np.repeat(np.arange(3), 2)
    assert mcnemar(one, np.zeros(6, bool), tracks) == pytest.approx(2 / 8)
    assert mcnemar(one, np.array([0, 0, 0, 0, 0, 1], bool), tracks) == pytest.approx(4 / 4 * 2 / 4)  # 2, 1 and 0


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=24))
def test_mcnemar_of_tracks_counts_all_tosses(queries: list[tuple[int, bool, bool]]) -> None:
    tracks, one, other = (np.array(each) for each in zip(*queries, strict=True)) if queries else (np.zeros(0),) * 3
    one, other = one.astype(bool), other.astype(bool)
    sums = [sum(int(a) - int(b) for t, a, b in queries if t == track) for track in range(5)]
    tosses = [abs(sum(s * d for s, d in zip(signs, sums, strict=True))) for signs in product((-1, 1), repeat=5)]
    expected = np.mean([toss >= abs(sum(sums)) for toss in tosses])
    assert mcnemar(one, other, tracks.astype(int)) == pytest.approx(expected)


def test_error_of_copies_is_that_of_the_tracks() -> None:
    values = np.array([0.1, 0.5, 0.7, 0.2])
    assert standard_error(np.repeat(values, 5), np.repeat(np.arange(4), 5)) == pytest.approx(standard_error(values))


def test_interval_by_tracks_covers_where_that_by_queries_is_too_narrow() -> None:
    draw, tracks = np.random.default_rng(0), np.repeat(np.arange(100), 3)
    by_tracks, by_queries = [], []
    for _ in range(400):  # two queries of a track correlate by 1 / (1 + 0.225 + 0.025) = 0.8
        hit = draw.random(300) < np.repeat(draw.beta(0.225, 0.025, 100), 3)
        for low, high, seen in ((*share_interval(hit, tracks), by_tracks), (*wilson(hit.sum(), 300), by_queries)):
            seen.append(low <= 0.9 <= high)
    assert np.mean(by_tracks) > 0.92 and np.mean(by_queries) < 0.87
