"""Random pairs: the truth they come with is that of their waves."""

from __future__ import annotations

import numpy as np
import pytest

from bench.align.random_pairs import KINDS, RandomPair, draw_pair
from bench.errors import ConfigError
from bench.values import RATE_HZ, Floats

WINDOW = RATE_HZ // 2
NUM_SEEDS = 36


def recordings() -> list[Floats]:
    return [np.random.default_rng([4, i]).standard_normal(20 * RATE_HZ).astype(np.float32) for i in range(8)]


@pytest.fixture(scope="module")
def drawn() -> list[RandomPair]:
    heard = recordings()
    return [draw_pair(heard, seed) for seed in range(NUM_SEEDS)]


def similarity(pair: RandomPair, time0_s: float, time1_s: float) -> float:
    """Return the correlation of half a second around two moments, the best within a sample."""
    start0, start1 = (round(time * RATE_HZ) - WINDOW // 2 for time in (time0_s, time1_s))
    if min(start0, start1 - 1) < 0 or max(start0, start1 + 1) + WINDOW > len(pair.pair.wave0_T):
        return float("nan")
    one = pair.pair.wave0_T[start0 : start0 + WINDOW]
    others = [pair.pair.wave1_T[start1 + i : start1 + i + WINDOW] for i in (-1, 0, 1)]
    values = [float(np.corrcoef(one, other)[0, 1]) for other in others]
    return max(values, key=abs)


def test_every_kind_is_drawn(drawn: list[RandomPair]) -> None:
    assert {pair.kind for pair in drawn} == set(KINDS)


def test_the_truth_is_where_the_waves_agree_and_has_their_polarity(drawn: list[RandomPair]) -> None:
    for pair in drawn:
        if pair.snr_db < 5:
            continue
        at_jump = pair.jump.time0_s if pair.jump else -9.0
        times = [t for t in zip(pair.pair.keypoints, pair.time1_K, strict=True) if abs(t[0] - at_jump) > 1]
        values = np.array([similarity(pair, *t) for t in times if np.isfinite(t[1])])
        values = values[np.isfinite(values)]
        if len(values):
            assert np.median(pair.polarity * values) > 0.35, (pair.kind, pair.pair.name)


def test_the_lag_of_a_pair_jumps_by_the_size_of_its_jump(drawn: list[RandomPair]) -> None:
    for pair in drawn:
        if pair.jump is None:
            continue
        lag = pair.time1_K - pair.pair.keypoints
        before = lag[pair.pair.keypoints < pair.jump.time0_s][-1]
        after = lag[pair.pair.keypoints > pair.jump.time0_s + max(0.0, -pair.jump.size_s)][0]
        assert after - before == pytest.approx(pair.jump.size_s, abs=0.001)
        has_partner = np.isfinite(pair.time1_K)
        assert (~has_partner).sum() <= max(0.0, -pair.jump.size_s) + 1
        assert (pair.jump.size_s < 0) == (pair.kind == "lost")


def test_unrelated_pairs_share_nothing(drawn: list[RandomPair]) -> None:
    for pair in drawn:
        if pair.kind == "unrelated":
            assert np.isnan(pair.time1_K).all() and abs(similarity(pair, 3.0, 3.0)) < 0.2


def test_a_seed_always_gives_the_same_pair() -> None:
    one, other = (draw_pair(recordings(), 5) for _ in range(2))
    assert np.array_equal(one.pair.wave1_T, other.pair.wave1_T) and one.kind == other.kind


def test_three_recordings_are_too_few() -> None:
    with pytest.raises(ConfigError, match="at least four recordings with sound, of over 1 s, got 3"):
        draw_pair([*recordings()[:3], np.zeros(20 * RATE_HZ, np.float32)], 0)
