import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import registry
from bench.config import resolve
from bench.errors import ConfigError
from bench.search.indexes import exact, falconn
from bench.search.sequence import Ranking, rescore, vote, vote_half
from bench.values import Fingerprints

D = 6


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draw.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def database(lengths: list[int], seed: int = 0) -> Fingerprints:
    """Return tracks of so many vectors each; the corpus numbers its tracks 10, 13, 16, ..."""
    vectors = unit(np.random.default_rng(seed), sum(lengths), D)
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Fingerprints(vectors, 10 + 3 * np.arange(len(lengths)), first, 1600, "key")


# FALCONN


def clustered(num_vectors: int, dim: int = 32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    centres = unit(draw, num_vectors // 10, dim)
    near = centres[draw.integers(len(centres), size=num_vectors)] + 0.05 * draw.standard_normal((num_vectors, dim))
    queries = near[::37] + 0.02 * draw.standard_normal((len(near[::37]), dim))
    return tuple((v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (near, queries))  # type: ignore[return-value]


@pytest.fixture
def need_falconn() -> None:
    pytest.importorskip("falconn", reason="falconn is built from source by `make setup`")


@pytest.mark.parametrize("family", ["hyperplane", "cross_polytope"])
def test_falconn_finds_most_true_neighbours_of_clustered_vectors(need_falconn: None, family: str) -> None:
    vectors, queries = clustered(2000)
    config = falconn.Config(tables=20, bits=10, probes=100, family=family)  # type: ignore[arg-type]
    found = falconn.build(config, vectors).neighbours(queries, 5)
    true = exact.build(exact.Config(), vectors).neighbours(queries, 5)
    share = np.mean([len(set(f) & set(t)) / 5 for f, t in zip(found.tolist(), true.tolist(), strict=True)])
    assert share > 0.95
    assert np.mean(found[:, 0] == true[:, 0]) > 0.98


def test_falconn_is_exact_when_it_probes_every_bucket(need_falconn: None) -> None:
    vectors, queries = clustered(300)
    index = falconn.build(falconn.Config(tables=2, bits=4, probes=32), vectors)
    true = exact.build(exact.Config(), vectors).neighbours(queries, 10)
    np.testing.assert_array_equal(index.neighbours(queries, 10), true)


def test_falconn_shortens_a_mean_that_is_longer_than_the_spread_allows(need_falconn: None) -> None:
    # Two vectors: mean (4, 0), and each is 3 from it. 0.5 x 3 of 4 is left, 2.5 is taken away; 2 x 3 is not less.
    vectors = np.array([[4, 3], [4, -3]], dtype=np.float32)
    assert falconn._shift(falconn.Config(mean=0.5), vectors).tolist() == [2.5, 0]
    assert falconn._shift(falconn.Config(mean=0.0), vectors).tolist() == [4, 0]
    assert falconn._shift(falconn.Config(mean=2.0), vectors).tolist() == [0, 0]
    assert falconn._shift(falconn.Config(mean=float("inf")), vectors).tolist() == [0, 0]
    assert falconn._shift(falconn.Config(), np.ones((5, 3), dtype=np.float32)).tolist() == [1, 1, 1]  # no spread at all
    assert falconn._shift(falconn.Config(), np.tile(vectors, (70_000, 1))) == pytest.approx([4 - 0.75 * 3, 0])


@pytest.mark.parametrize("preset", ["singh", "singh-hyperplane"])
def test_the_published_presets_of_falconn_hash_the_vectors_as_they_are(preset: str) -> None:
    config = falconn.presets()[preset]
    assert (config.tables, config.bits, config.probes) == (50, 18, 200)
    vectors = np.float32([[4.0, 0.1], [4.0, -0.1]])  # a mean of 40 times the spread
    assert falconn._shift(config, vectors).tolist() == [0, 0]
    path = [f"index.falconn.{name}={json.dumps(value)}" for name, value in asdict(config).items()]
    plugin = registry.load("encoder", "random-projection")
    assert resolve("random-projection", plugin, "tiny", overrides=path).index["falconn"] == config
    assert falconn.presets()["shifted"] == falconn.Config() and falconn._shift(falconn.Config(), vectors).any()


def test_falconn_without_a_limit_of_the_mean_takes_equal_vectors() -> None:
    assert np.isfinite(falconn._shift(falconn.Config(mean=float("inf")), np.float32([[1, 0], [1, 0]]))).all()


@pytest.mark.parametrize("mean", [0.0, 0.75, float("inf")])
def test_falconn_finds_the_same_neighbours_wherever_the_vectors_lie(need_falconn: None, mean: float) -> None:
    vectors, queries = (a + np.float32(5) for a in clustered(300))
    before = vectors.copy()
    index = falconn.build(falconn.Config(tables=2, bits=4, probes=32, mean=mean), vectors)
    distance_QN = np.square(queries[:, None].astype(np.float64) - vectors).sum(axis=2)
    np.testing.assert_array_equal(index.neighbours(queries, 3), distance_QN.argsort(axis=1, kind="stable")[:, :3])
    np.testing.assert_array_equal(vectors, before)
    assert index.num_bytes > (2 if mean < 1 else 1) * vectors.nbytes


def test_falconn_hashes_what_shares_a_mean_into_more_buckets(need_falconn: None) -> None:
    rng = np.random.default_rng(2)
    narrow = unit(rng, 3_000, 32) + np.float32(1)  # the mean is 5.7 times the spread
    config = falconn.Config(tables=1, bits=10, probes=1)
    queries = narrow[:200]
    as_they_are, shortened = (
        (falconn.build(replace(config, mean=mean), narrow).neighbours(queries, 3_000) >= 0).sum(axis=1).mean()
        for mean in (float("inf"), 0.75)
    )
    assert shortened < as_they_are / 5  # how many are compared with a query


def test_falconn_refuses_a_mean_that_is_no_limit() -> None:
    for mean in (-0.1, float("nan")):
        with pytest.raises(ConfigError, match="falconn: mean must be >= 0"):
            falconn.Config(mean=mean)


def test_falconn_is_the_same_for_the_same_seed(need_falconn: None) -> None:
    vectors, queries = clustered(500)
    config = falconn.Config(tables=2, bits=12, probes=2)
    one, two = (falconn.build(config, vectors).neighbours(queries, 20) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_falconn_fills_with_minus_one_what_it_did_not_find(need_falconn: None) -> None:
    vectors, queries = clustered(500)
    found = falconn.build(falconn.Config(tables=1, bits=16, probes=1), vectors).neighbours(queries, 400)
    assert (found == -1).any()
    for row in found:
        heard = row[row >= 0]
        assert (row[: len(heard)] >= 0).all() and len(set(heard)) == len(heard)


def test_falconn_leaves_the_database_as_it_was(need_falconn: None) -> None:
    vectors, queries = clustered(200)
    before = vectors.copy()
    falconn.build(falconn.Config(tables=2, bits=4, probes=4), vectors).neighbours(queries, 3)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("vectors", [0, 1, 2])
def test_falconn_survives_a_database_of_next_to_nothing(need_falconn: None, vectors: int) -> None:
    asking = f"""
import numpy as np
from bench.errors import BenchError
from bench.search.indexes import falconn
stored = np.eye(2, 8, dtype=np.float32)[:{vectors}]
try:
    found = falconn.build(falconn.Config(), stored).neighbours(np.eye(1, 8, dtype=np.float32), 3)
    assert found.shape == (1, 3) and found.max() < {vectors}, found
except BenchError:
    pass
"""
    # In a process of its own, for the library may crash where it is given what it does not expect.
    done = subprocess.run([sys.executable, "-c", asking], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_falconn_orders_equal_neighbours_by_number(need_falconn: None) -> None:
    vectors = np.tile(unit(np.random.default_rng(0), 3, 16), (4, 1))
    index = falconn.build(falconn.Config(tables=4, bits=2, probes=16), vectors)
    assert index.neighbours(vectors[:3], 4).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("wrong", [{"tables": 0}, {"bits": 0}, {"bits": 32}, {"bits": 33}, {"probes": 49}])
def test_falconn_refuses_settings_that_it_cannot_work_with(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        falconn.Config(**wrong)  # type: ignore[arg-type]


# Sequences: slow searches in plain dictionaries, written from the definitions


def fits(place: int, num_segments: int, data: Fingerprints) -> bool:
    """Say whether all positions of a sequence are in the track of its first."""
    if place < 0:
        return False
    for begin, end in zip(data.first_vector[:-1], data.first_vector[1:], strict=True):
        if begin <= place < end:
            return bool(place + num_segments <= end)
    return False


def track_of(vector: int, data: Fingerprints) -> int:
    rows = [r for r in range(len(data.tracks)) if data.first_vector[r] <= vector < data.first_vector[r + 1]]
    assert len(rows) == 1
    return rows[0]


def places_of(neighbours_MK: np.ndarray, data: Fingerprints) -> list[int]:
    """Return the places that neighbours point to without leaving the neighbour's own track."""
    places = []
    for m, row in enumerate(neighbours_MK.tolist()):
        for vector in row:
            own = vector >= 0 and fits(vector - m, len(neighbours_MK), data)
            if own and track_of(vector - m, data) == track_of(vector, data):
                places.append(vector - m)
    return places


def slow_vote(neighbours_MK: np.ndarray, data: Fingerprints) -> list[tuple[int, float]]:
    heard = [v for v in neighbours_MK[:, 0].tolist() if v >= 0]
    tracks = Counter(track_of(v, data) for v in heard)
    places = Counter(places_of(neighbours_MK[:, :1], data))
    ranked = sorted(places, key=lambda p: (-tracks[track_of(p, data)], -places[p], p))
    return [(p, places[p] / len(neighbours_MK)) for p in ranked]


def slow_vote_half(neighbours_MK: np.ndarray, data: Fingerprints) -> list[tuple[int, float]]:
    nearest, num_segments = neighbours_MK[:, 0].tolist(), len(neighbours_MK)
    return [
        (place, share)
        for place, share in slow_vote(neighbours_MK, data)
        if sum(vector in nearest for vector in range(place, place + num_segments)) / num_segments >= 0.5
    ]


def slow_rescore(query_MD: np.ndarray, neighbours_MK: np.ndarray, data: Fingerprints) -> list[tuple[int, float]]:
    scores = {
        p: float(np.mean([query_MD[m] @ data.vectors[p + m] for m in range(len(query_MD))]))
        for p in set(places_of(neighbours_MK, data))
    }
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def compare(ranking: Ranking, wanted: list[list[tuple[int, float]]], num_places: int) -> None:
    for q, rows in enumerate(wanted):
        rows = rows[:num_places]
        assert ranking.places_QR[q].tolist() == [p for p, _ in rows] + [-1] * (num_places - len(rows))
        np.testing.assert_allclose(ranking.scores_QR[q, : len(rows)], [s for _, s in rows], atol=1e-5)
        assert np.isnan(ranking.scores_QR[q, len(rows) :]).all()


@st.composite
def searches(draw: st.DrawFn) -> tuple[Fingerprints, np.ndarray, int, int]:
    data = database(draw(st.lists(st.integers(1, 9), min_size=1, max_size=6)), draw(st.integers(0, 99)))
    num_queries, num_segments, top_k = draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    size = num_queries * num_segments * top_k
    number = st.integers(-1, len(data.vectors) - 1)
    found = draw(st.lists(number, min_size=size, max_size=size))
    neighbours = np.array(found, dtype=np.int64).reshape(num_queries, num_segments, top_k)
    return data, neighbours, draw(st.integers(1, 12)), draw(st.integers(0, 99))


@settings(max_examples=150)
@given(searches())
def test_vote_agrees_with_counting(search: tuple[Fingerprints, np.ndarray, int, int]) -> None:
    data, neighbours, num_places, _ = search
    compare(vote(neighbours, data, num_places), [slow_vote(n, data) for n in neighbours], num_places)


@settings(max_examples=150)
@given(searches())
def test_vote_half_agrees_with_looking_up_each_vector_of_a_sequence(
    search: tuple[Fingerprints, np.ndarray, int, int],
) -> None:
    data, neighbours, num_places, _ = search
    compare(vote_half(neighbours, data, num_places), [slow_vote_half(n, data) for n in neighbours], num_places)


@settings(max_examples=150)
@given(searches())
def test_rescore_agrees_with_all_candidates_one_by_one(search: tuple[Fingerprints, np.ndarray, int, int]) -> None:
    data, neighbours, num_places, seed = search
    queries = unit(np.random.default_rng(seed), *neighbours.shape[:2], D)
    wanted = [slow_rescore(q, n, data) for q, n in zip(queries, neighbours, strict=True)]
    compare(rescore(queries, neighbours, data, num_places), wanted, num_places)


@settings(max_examples=100)
@given(searches())
def test_no_sequence_runs_over_the_end_of_its_track(search: tuple[Fingerprints, np.ndarray, int, int]) -> None:
    data, neighbours, num_places, seed = search
    queries = unit(np.random.default_rng(seed), *neighbours.shape[:2], D)
    for ranking in (vote(neighbours, data, num_places), rescore(queries, neighbours, data, num_places)):
        places = ranking.places_QR[ranking.places_QR >= 0]
        assert all(fits(int(p), neighbours.shape[1], data) for p in places)


def asked(*vectors: int) -> np.ndarray:
    """Return one query whose segments have these nearest vectors."""
    return np.array(vectors, dtype=np.int64).reshape(1, -1, 1)


def test_vote_by_hand() -> None:
    data = database([10, 10])
    # Segments 0, 1 and 3 point to place 4; segment 2 heard track 1.
    ranking = vote(asked(4, 5, 17, 7), data, 3)
    assert ranking.places_QR.tolist() == [[4, 15, -1]]
    np.testing.assert_allclose(ranking.scores_QR[0, :2], [0.75, 0.25])


def test_vote_takes_the_track_of_the_majority_before_the_longest_run() -> None:
    data = database([10, 10])
    # Track 0 has three votes on three places, track 1 two on one place.
    ranking = vote(asked(0, 7, 5, 13, 14), data, 4)
    assert ranking.places_QR.tolist() == [[0, 3, 10, -1]]  # 7 - 1 = 6 would run over the end of track 0


def test_vote_half_answers_at_exactly_half_and_not_below() -> None:
    data = database([10, 10])
    # Two of four vectors of the sequence at 4 were retrieved, 4 and 5; then one of them only.
    assert vote_half(asked(4, 5, 19, 18), data, 2).places_QR.tolist() == [[4, -1]]
    nothing = vote_half(asked(4, 19, 19, 13), data, 2)
    assert nothing.places_QR.tolist() == [[-1, -1]] and np.isnan(nothing.scores_QR).all()
    assert vote(asked(4, 19, 19, 13), data, 2).places_QR[0, 0] >= 0  # the search without the rule answers


def test_vote_half_counts_retrieved_vectors_whichever_segment_retrieved_them() -> None:
    data = database([10])
    # One segment each points to the places 4, 6, 3 and 1. The sequence at 4 also holds 5 and 7, which others retrieved,
    # that at 3 holds 4 and 5, and those at 6 and 1 hold one retrieved vector.
    ranking = vote_half(asked(4, 7, 5, 4), data, 4)
    assert ranking.places_QR.tolist() == [[3, 4, -1, -1]]
    assert ranking.scores_QR[0, :2].tolist() == [0.25, 0.25]
    # The same vector, retrieved by all, is one vector of four.
    assert vote_half(asked(4, 4, 4, 4), data, 2).places_QR.tolist() == [[-1, -1]]


def test_one_segment_meets_the_half_rule_by_itself() -> None:
    data = database([10, 10])
    assert vote_half(asked(13), data, 2).places_QR.tolist() == vote(asked(13), data, 2).places_QR.tolist() == [[13, -1]]


def test_ends_are_those_of_the_last_segments() -> None:
    data = database([10, 10])  # a hop of 1600 samples
    places = np.array([[4, 12, -1]])
    ranking = Ranking(places, np.float32([[1, 1, np.nan]]))
    assert ranking.found(data, 16_000).end_QR is None  # a search that finds no ends
    found = replace(ranking, ends_QR=np.array([[7, 13, -1]])).found(data, 16_000)
    assert found.row_QR.tolist() == [[0, 1, -1]] and found.start_QR[0, :2].tolist() == [4 * 1600, 2 * 1600]
    assert found.end_QR is not None
    assert found.end_QR[0, :2].tolist() == [7 * 1600 + 16_000, 3 * 1600 + 16_000]


def test_tied_places_are_ordered_by_number() -> None:
    data = database([10, 10])
    assert vote(asked(7, 3), data, 2).places_QR.tolist() == [[2, 7]]


def test_nothing_heard_is_no_place() -> None:
    data = database([5])
    for ranking in (
        vote(asked(-1, -1), data, 2),
        rescore(unit(np.random.default_rng(0), 1, 2, D), asked(-1, -1), data, 2),
    ):
        assert ranking.places_QR.tolist() == [[-1, -1]]
        assert np.isnan(ranking.scores_QR).all()


def test_track_of_a_single_vector_answers_one_segment_and_no_more() -> None:
    data = database([3, 1, 3])
    assert vote(asked(3), data, 1).places_QR.tolist() == [[3]]
    assert vote(asked(3, 4), data, 1).places_QR.tolist() == [[-1]]  # 3 would run into the next track


def test_track_too_short_for_a_vector_owns_none() -> None:
    data = database([2, 0, 2])
    assert data.track_row_of(np.array([0, 1, 2, 3, -1])).tolist() == [0, 0, 2, 2, -1]
    assert vote(asked(2, 3), data, 1).places_QR.tolist() == [[2]]


def test_rescore_finds_the_true_place_that_only_one_neighbour_points_to() -> None:
    data = database([20, 20])
    query = data.vectors[None, 23:27]
    neighbours = np.array([[[3, 9], [30, 8], [1, 25], [12, 2]]])  # only 25 is right, in second place
    ranking = rescore(query, neighbours, data, 2)
    assert ranking.places_QR[0, 0] == 23
    assert ranking.scores_QR[0, 0] == pytest.approx(1, abs=1e-6)


@settings(max_examples=50)
@given(st.permutations(range(5)), st.integers(0, 99))
def test_order_of_tracks_in_the_database_changes_numbers_and_nothing_else(order: list[int], seed: int) -> None:
    lengths = [4, 7, 5, 9, 6]
    data = database(lengths, seed)
    parts = [data.vectors[data.first_vector[r] : data.first_vector[r + 1]] for r in order]
    first = np.concatenate([[0], np.cumsum([len(p) for p in parts])]).astype(np.int64)
    moved = Fingerprints(np.concatenate(parts), data.tracks[order], first, 1600, "other")
    draw = np.random.default_rng(seed)
    queries = np.stack([data.vectors[s : s + 3] for s in (0, 5, 17, 27)]) + 0.3 * unit(draw, 4, 3, D)
    answers = [_answers(queries.astype(np.float32), d) for d in (data, moved)]
    assert answers[0] == answers[1]


def _answers(queries: np.ndarray, data: Fingerprints) -> list[list[tuple[int, int]]]:
    """Return for each query its ranked answers as (track number, vector within the track)."""
    index = exact.build(exact.Config(), data.vectors)
    neighbours = index.neighbours(queries.reshape(-1, D), 5).reshape(*queries.shape[:2], 5)
    ranked = rescore(queries, neighbours, data, 5).places_QR.tolist()
    rows = [[(track_of(p, data), p) for p in places if p >= 0] for places in ranked]
    return [[(int(data.tracks[r]), int(p - data.first_vector[r])) for r, p in row] for row in rows]
