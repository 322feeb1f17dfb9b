"""A track that repeats itself exactly: any of the equal places is right."""

from __future__ import annotations

import numpy as np
from ranked import score_ranking

from bench.search.sequence import Ranking
from bench.values import Fingerprints

HOP = 1_600


def looped() -> Fingerprints:
    """Return two tracks of 12 fingerprints: the first repeats itself every four, the second never."""
    draw = np.random.default_rng(0)
    loop, song = draw.normal(0, 1, (4, 8)), draw.normal(0, 1, (12, 8))
    vectors = np.concatenate([np.tile(loop, (3, 1)), song]).astype(np.float32)
    return Fingerprints(vectors, np.arange(2), np.array([0, 12, 24]), HOP, "")


def hit_at(database: Fingerprints, place: int, track: int, true_start: int, segments: int | None = 3) -> bool:
    ranking = Ranking(np.array([[place]]), np.array([[0.9]], dtype=np.float32))
    return bool(
        score_ranking(ranking, database, np.array([track]), np.array([true_start]), HOP // 2, segments)["hit"].iloc[0]
    )


def test_a_place_equal_to_the_true_one_is_a_hit() -> None:
    database = looped()
    assert hit_at(database, 1, 0, 5 * HOP)
    assert hit_at(database, 9, 0, 5 * HOP + 700)  # nearest to place 5
    assert not hit_at(database, 2, 0, 5 * HOP)
    assert not hit_at(database, 1, 0, 5 * HOP, segments=None)


def test_a_place_that_differs_in_its_last_bit_or_its_last_segment_is_none() -> None:
    database = looped()
    database.vectors[3, 0] = np.nextafter(database.vectors[3, 0], np.float32(9))
    assert not hit_at(database, 1, 0, 5 * HOP)
    assert hit_at(database, 0, 0, 4 * HOP)


def test_the_same_sound_in_another_track_is_none() -> None:
    database = looped()
    database.vectors[12:] = database.vectors[:12]
    assert not hit_at(database, 13, 0, 1 * HOP)
