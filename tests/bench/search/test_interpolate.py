"""Times between the places of a database: the top of a parabola through the scores of a place and its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranked import score_ranking

from bench.parabola import vertex
from bench.search.sequence import Ranking, interpolate, rescore
from bench.values import Fingerprints

HOP = 1_600
STEP = 0.1  # radians from one vector to the next
LENGTHS = (12, 9)


@given(st.floats(-0.5, 0.5), st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_vertex_finds_the_top_of_any_parabola(top: float, bend: float, height: float) -> None:
    before, here, after = (np.array([height - bend * (x - top) ** 2]) for x in (-1, 0, 1))
    assert vertex(before, here, after)[0] == pytest.approx(top, abs=1e-6)


def test_vertex_by_hand() -> None:
    # 3, 4, 3: on top. 0, 3, 2: y = 3 + x - 2 x^2, whose top is at 1/4. A line, a valley and a NaN have none.
    values = np.array([[3, 4, 3], [0, 3, 2], [1, 2, 3], [1, 0, 1], [1, np.nan, 1]], dtype=np.float32)
    assert vertex(*values.T).tolist() == [0.0, 0.25, 0.0, 0.0, 0.0]


def arc(angle_N: np.ndarray) -> np.ndarray:
    """Return unit vectors at these angles: their likeness is the cosine of how far apart they are."""
    return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=-1).astype(np.float32)


def database() -> Fingerprints:
    """Return two tracks on one arc; the second goes on after a quarter turn."""
    place_N = np.arange(sum(LENGTHS), dtype=np.float64)
    angle_N = STEP * place_N + np.where(place_N >= LENGTHS[0], np.pi / 2, 0)
    return Fingerprints(arc(angle_N), np.array([4, 7]), np.array([0, 12, 21]), HOP, "key")


def query(begins: float, num_segments: int) -> np.ndarray:
    """Return a query (1, M, D) that begins so many hops into the first track."""
    return arc(STEP * (begins + np.arange(num_segments)))[None]


def found(begins: float, num_segments: int = 3) -> Ranking:
    queries, music = query(begins, num_segments), database()
    nearest = np.argsort(-(queries[0] @ music.vectors.T), axis=1)[None, :, :4]
    return interpolate(rescore(queries, nearest, music, 4), queries, music)


@pytest.mark.parametrize("begins", [4.0, 4.2, 4.45, 4.55, 5.3])
@pytest.mark.parametrize("num_segments", [1, 3])
def test_a_query_between_two_places_is_found_between_them(begins: float, num_segments: int) -> None:
    ranking = found(begins, num_segments)
    assert ranking.places_QR[0, 0] == round(begins)
    assert ranking.shift_QR is not None
    # A cosine is a parabola but for a term of the fourth power: 0.1 rad apart, a thousandth of a hop.
    assert ranking.places_QR[0, 0] + ranking.shift_QR[0, 0] == pytest.approx(begins, abs=2e-3)
    assert ranking.starts(database())[0, 0] == pytest.approx(begins * HOP, abs=4)


def test_places_and_scores_stay_those_of_rescore() -> None:
    queries, music = query(4.3, 3), database()
    nearest = np.array([[[4, 5, 13], [5, 6, 14], [6, 7, 15]]])
    plain = rescore(queries, nearest, music, 5)
    places, scores = plain.places_QR.copy(), plain.scores_QR.copy()
    moved = interpolate(plain, queries, music)
    np.testing.assert_array_equal(moved.places_QR, places)
    np.testing.assert_array_equal(moved.scores_QR, scores)
    assert places[0].tolist() == [4, 5, 13, -1, -1] and plain.shift_QR is None


@pytest.mark.parametrize(("begins", "place"), [(0.3, 0), (8.7, 9)])
def test_the_first_and_the_last_place_of_a_track_stay_where_they_are(begins: float, place: int) -> None:
    """Beyond them there is no score, or another track's."""
    ranking = found(begins)
    assert ranking.places_QR[0, 0] == place and ranking.shift_QR is not None and ranking.shift_QR[0, 0] == 0


def test_a_place_on_a_slope_stays_where_it_is() -> None:
    """It is the neighbour of a better place, not a top."""
    ranking = found(4.2)
    assert ranking.shift_QR is not None
    for rank in np.flatnonzero(ranking.places_QR[0] >= 0)[1:]:
        assert ranking.shift_QR[0, rank] == 0


def test_where_there_is_no_place_there_is_no_shift() -> None:
    queries, music = query(4.2, 3), database()
    nothing = interpolate(rescore(queries, np.full((1, 3, 2), -1), music, 2), queries, music)
    assert nothing.places_QR.tolist() == [[-1, -1]] and nothing.shift_QR is not None
    assert nothing.shift_QR.tolist() == [[0.0, 0.0]]


def test_an_answer_is_judged_by_the_time_between_the_places() -> None:
    places, scores = np.array([[5]]), np.array([[0.9]], dtype=np.float32)
    start = np.array([5 * HOP - 960])  # 60 ms before the place
    for shift, hit in ((0.0, False), (-0.09, False), (-0.1, True), (-0.5, True), (0.1, False)):
        ranking = Ranking(places, scores, np.array([[shift]], dtype=np.float32))
        row = score_ranking(ranking, database(), np.array([4]), start, 800).iloc[0]
        assert row["hit"] == hit, shift
        assert row["found_s"] == pytest.approx((5 + shift) / 10)
