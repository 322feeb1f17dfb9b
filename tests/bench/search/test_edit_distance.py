"""Edit distance: letters by hand, the alignment by a slow oracle, and what it does with a query that lost a second."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search import edit_distance
from bench.search.edit_distance import align_by_edits
from bench.search.indexes import exact
from bench.search.sequence import rescore
from bench.values import Fingerprints

ALPHABET = "abcdefghijklmnopqrstuvwxyz-"


def letters(*tracks: str) -> Fingerprints:
    """Return tracks whose fingerprints are letters: equal ones have the inner product 1, others 0."""
    first = np.cumsum([0, *map(len, tracks)]).astype(np.int64)
    return Fingerprints(spell("".join(tracks)), np.arange(len(tracks)), first, 1600, "letters")


def spell(text: str) -> np.ndarray:
    return np.eye(len(ALPHABET), dtype=np.float32)[[ALPHABET.index(letter) for letter in text]]


def search(query: str, *tracks: str, num_places: int = 1) -> tuple[list[int], list[int], list[float]]:
    """Return places, ends and scores; the neighbour of a letter is the first equal one, if any."""
    text = "".join(tracks)
    neighbours = np.array([text.find(letter) for letter in query])[None, :, None]
    found = align_by_edits(spell(query)[None], neighbours, letters(*tracks), num_places)
    assert found.ends_QR is not None
    return found.places_QR[0].tolist(), found.ends_QR[0].tolist(), found.scores_QR[0].tolist()


def test_query_in_one_piece_has_no_edits() -> None:
    assert search("cdefg", "abcdefghij") == ([2], [6], [1.0])


def test_dropped_letter_is_one_edit_and_the_end_comes_a_vector_later() -> None:
    assert search("cdfgh", "abcdefghij") == ([2], [7], [pytest.approx(0.8)])


def test_added_letter_is_one_edit_and_the_end_comes_a_vector_earlier() -> None:
    assert search("cdxef", "abcdefghij") == ([2], [5], [pytest.approx(0.8)])


def test_other_letter_is_one_edit_and_moves_nothing() -> None:
    assert search("cdxfg", "abcdefghij") == ([2], [6], [pytest.approx(0.8)])


def test_two_edits_cost_two() -> None:
    # d is lost and z added before i: ten letters again.
    assert search("abcefghzij", "abcdefghijklm") == ([0], [9], [pytest.approx(0.8)])


def test_place_is_where_the_query_starts_not_where_its_later_part_points() -> None:
    # Four of six letters point to the place 2, as they come after the lost d; the query starts at 1.
    places, ends, _ = search("bcefgh", "abcdefghij", num_places=3)
    assert (places[0], ends[0]) == (1, 7)


def test_of_equal_distances_the_one_without_gaps_counts() -> None:
    # A lost d, or c for d: one edit each.
    assert search("cefgh", "abcdefghij") == ([3], [7], [pytest.approx(0.8)])


def test_track_is_not_left() -> None:
    # The first track ends with c and the second goes on with d: the query finds its part in one of them.
    places, ends, scores = search("abcde", "xyabc", "defgh", num_places=4)
    found = [(place, end) for place, end in zip(places, ends, strict=True) if place >= 0]
    assert all(place // 5 == end // 5 for place, end in found)
    assert max(scores[: len(found)], default=0.0) < 1


def test_nothing_heard_is_no_place() -> None:
    places, ends, scores = search("xyz", "abcdef", num_places=2)
    assert (places, ends) == ([-1, -1], [-1, -1]) and np.isnan(scores).all()


def test_no_query_has_no_ranking() -> None:
    found = align_by_edits(np.empty((0, 5, 27), np.float32), np.empty((0, 5, 1), np.int64), letters("abcdef"), 3)
    assert found.places_QR.shape == found.scores_QR.shape == (0, 3)


def test_price_is_graded_between_the_nearest_and_the_last_neighbour() -> None:
    similarity = np.float32([0.9, 0.8, 0.7, 0.5, 0.3, -np.inf])[None, None]
    priced = edit_distance._price(similarity, np.float32([[0.8]]), np.float32([[0.4]]))
    assert priced[0, 0].tolist() == pytest.approx([0, 0, 0.25, 0.75, 1, np.inf])
    single = edit_distance._price(similarity, np.float32([[0.8]]), np.float32([[0.8]]))
    assert single[0, 0].tolist() == [0, 0, 1, 1, 1, np.inf]
    none = edit_distance._price(similarity, np.float32([[np.inf]]), np.float32([[np.inf]]))
    assert none[0, 0].tolist() == [1, 1, 1, 1, 1, np.inf]


def slow_distance(price_MV: np.ndarray, base: int, start: int, end: int) -> float:
    """Return the price of the cheapest way from before vector `start` to before vector `end`, one edit at a time."""
    num_segments, num_offsets = price_MV.shape

    @cache
    def cost(m: int, vector: int) -> float:
        """Return the price of the first m segments, of which all end before a vector."""
        offset = vector - base - m
        if not 0 <= offset < num_offsets:
            return np.inf
        ways = [0.0 if (m, vector) == (0, start) else np.inf]
        if m and vector > start:
            ways.append(cost(m - 1, vector - 1) + price_MV[m - 1, offset])
        if m:
            ways.append(cost(m - 1, vector) + edit_distance.GAP)
        if vector > start and m:
            ways.append(cost(m, vector - 1) + edit_distance.GAP)
        return min(ways)

    return cost(num_segments, end)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2), st.integers(0, 9_999))
def test_alignment_is_the_cheapest_of_all(num_segments: int, drift: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    price_PMV = draw.choice([0.0, 0.25, 0.5, 1.0], (3, num_segments, 2 * drift + 1)).astype(np.float32)
    base_P = draw.integers(0, 50, 3)
    found = edit_distance._align(price_PMV, base_P, num_segments)
    for p in range(3):
        base, last = int(base_P[p]), int(base_P[p]) + num_segments + 2 * drift
        costs = {
            (start, end): slow_distance(price_PMV[p], base, start, end)
            for start in range(base, base + 2 * drift + 1)
            for end in range(base + num_segments, last + 1)
        }
        assert found.cost[p] == pytest.approx(min(costs.values()))
        assert costs[int(found.first[p]), int(found.end[p])] == pytest.approx(min(costs.values()))


@pytest.fixture(scope="module")
def walk() -> tuple[Fingerprints, np.ndarray]:
    """Return five tracks of 120 vectors each of which resembles the one before it, and a generator's noise."""
    draw = np.random.default_rng(0)
    steps = draw.standard_normal((5, 120 + 8, 24))
    vectors = np.stack([steps[:, i : i + 120] for i in range(8)]).sum(axis=0).reshape(-1, 24)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = 0.1 * draw.standard_normal((20, 30, 24))
    return Fingerprints(vectors.astype(np.float32), np.arange(5), np.arange(0, 601, 120), 1600, "walk"), noise


def heard(walk: tuple[Fingerprints, np.ndarray], order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return noisy queries that hear the vectors in this order from 20 starts on, their neighbours and the starts."""
    data, noise = walk
    start_Q = np.arange(20) * 30 % 80 + np.arange(20) % 5 * 120
    queries = data.vectors[start_Q[:, None] + order] + noise[:, : len(order)].astype(np.float32)
    queries = (queries / np.linalg.norm(queries, axis=2, keepdims=True)).astype(np.float32)
    found = exact.build(exact.Config(), data.vectors).neighbours(queries.reshape(-1, 24), 10)
    return queries, found.reshape(20, len(order), 10), start_Q


PLAIN, DROPPED = np.arange(30), np.concatenate([np.arange(12), np.arange(16, 34)])


def test_query_that_lost_four_vectors_is_found_with_start_and_end(walk: tuple[Fingerprints, np.ndarray]) -> None:
    data, _ = walk
    queries, neighbours, start_Q = heard(walk, DROPPED)
    found = align_by_edits(queries, neighbours, data, 3)
    assert found.ends_QR is not None
    assert np.mean(found.places_QR[:, 0] == start_Q) > 0.9
    assert np.mean(found.ends_QR[:, 0] == start_Q + 33) > 0.9
    # Without edits the longer part of the query, behind the gap, decides.
    assert np.mean(rescore(queries, neighbours, data, 3).places_QR[:, 0] == start_Q) < 0.1


def test_query_in_one_piece_is_found_as_by_rescore(walk: tuple[Fingerprints, np.ndarray]) -> None:
    data, _ = walk
    queries, neighbours, start_Q = heard(walk, PLAIN)
    found, rescored = align_by_edits(queries, neighbours, data, 3), rescore(queries, neighbours, data, 3)
    np.testing.assert_array_equal(found.places_QR[:, 0], start_Q)
    np.testing.assert_array_equal(rescored.places_QR[:, 0], start_Q)
    assert found.ends_QR is not None and (found.ends_QR[:, 0] == start_Q + 29).all()
    assert (np.diff(np.nan_to_num(found.scores_QR, nan=-1), axis=1) <= 0).all()


def test_one_segment_is_found_as_by_rescore(walk: tuple[Fingerprints, np.ndarray]) -> None:
    data, _ = walk
    queries, neighbours, _ = heard(walk, PLAIN[:1])
    found = align_by_edits(queries, neighbours, data, 4)
    np.testing.assert_array_equal(found.places_QR, rescore(queries, neighbours, data, 4).places_QR)
    np.testing.assert_array_equal(found.ends_QR, found.places_QR)


def test_blocks_change_nothing(walk: tuple[Fingerprints, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    queries, neighbours, _ = heard(walk, DROPPED)
    whole = align_by_edits(queries, neighbours, walk[0], 3)
    monkeypatch.setattr(edit_distance, "BLOCK_BYTES", 1)
    by_one = align_by_edits(queries, neighbours, walk[0], 3)
    np.testing.assert_array_equal(by_one.places_QR, whole.places_QR)
    np.testing.assert_array_equal(by_one.ends_QR, whole.ends_QR)
    np.testing.assert_allclose(
        by_one.scores_QR, whole.scores_QR, atol=1e-6
    )  # products of other sizes round differently
