import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search import diagonal as module
from bench.search.diagonal import search_diagonals
from bench.search.indexes import exact
from bench.search.sequence import rescore
from bench.search.topk import empty_top_k, top_k
from bench.values import Fingerprints

D = 6


def unit(draw: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = draw.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def database(lengths: list[int], seed: int = 0) -> Fingerprints:
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    vectors = unit(np.random.default_rng(seed), sum(lengths), D)
    return Fingerprints(vectors, 10 + 3 * np.arange(len(lengths)), first, 1600, "key")


def slow(query_MD: np.ndarray, data: Fingerprints, without: int) -> list[tuple[int, float]]:
    """Score every place of every track one by one, from the definition."""
    scores = {}
    for row, (begin, end) in enumerate(zip(data.first_vector[:-1], data.first_vector[1:], strict=True)):
        for place in range(begin, end - len(query_MD) + 1):
            if row != without:
                along = [float(query_MD[m] @ data.vectors[place + m]) for m in range(len(query_MD))]
                scores[int(place)] = sum(along) / len(along)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


@settings(max_examples=150)
@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(0, 4),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([1, 2, 3, 7, 1000]),
    st.sampled_from([1, 4, 100]),
    st.integers(0, 99),
)
def test_diagonal_is_all_places_one_by_one_whatever_its_blocks(
    lengths: list[int], num_queries: int, num_segments: int, num_places: int, places: int, rows: int, seed: int
) -> None:
    data = database(lengths, seed)
    draw = np.random.default_rng(seed + 1)
    queries = unit(draw, num_queries, num_segments, D)
    without = draw.integers(-1, len(lengths) + 1, num_queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_PLACES", places)
        patch.setattr(module, "BLOCK_ROWS", rows)
        ranking = search_diagonals(queries, data, num_places, without)
    assert ranking.places_QR.shape == ranking.scores_QR.shape == (num_queries, num_places)
    for q in range(num_queries):
        wanted = slow(queries[q], data, int(without[q]))[:num_places]
        missing = num_places - len(wanted)
        assert ranking.places_QR[q].tolist() == [p for p, _ in wanted] + [-1] * missing
        np.testing.assert_allclose(ranking.scores_QR[q, : len(wanted)], [s for _, s in wanted], atol=1e-5)
        assert np.isnan(ranking.scores_QR[q, len(wanted) :]).all()


def test_rescore_of_all_neighbours_is_diagonal() -> None:
    data = database([9, 4, 12], seed=3)
    queries = unit(np.random.default_rng(4), 5, 3, D)
    count = len(data.vectors)
    neighbours = exact.build(exact.Config(), data.vectors).neighbours(queries.reshape(-1, D), count)
    rescored = rescore(queries, neighbours.reshape(5, 3, count), data, 8)
    everywhere = search_diagonals(queries, data, 8)
    np.testing.assert_array_equal(rescored.places_QR, everywhere.places_QR)
    np.testing.assert_allclose(rescored.scores_QR, everywhere.scores_QR, atol=1e-6)


def test_the_track_left_out_is_not_found_and_the_next_best_is() -> None:
    data = database([8, 8, 8], seed=5)
    query = data.vectors[None, 10:13]
    assert search_diagonals(query, data, 1).places_QR.tolist() == [[10]]
    best_elsewhere = slow(query[0], data, 1)[0][0]
    assert search_diagonals(query, data, 1, np.array([1])).places_QR.tolist() == [[best_elsewhere]]
    assert not 8 <= best_elsewhere < 16


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 7))
def test_equal_values_are_kept_in_the_order_of_their_columns(values: list[int], most: int, block: int) -> None:
    row = torch.tensor([values], dtype=torch.float32)
    best = empty_top_k(1, most, row.device)
    for start in range(0, len(values), block):
        best = best.merge(row[:, start : start + block], start)
    wanted = sorted(range(len(values)), key=lambda n: (-values[n], n))[:most]
    assert best.column_QK.tolist() == [wanted]
    assert best.value_QK.tolist() == [[float(values[n]) for n in wanted]]
    assert top_k(row, most)[1].tolist() == [wanted]
