"""One product for all searches against the searches as they were: one product each."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.search import diagonal, neighbours, topk
from bench.search.diagonal import Wanted, scan
from bench.search.indexes import exact
from bench.search.neighbours import neighbours_of, shares_product
from bench.search.sequence import Ranking
from bench.values import Fingerprints, Floats, Ints

D = 24


def separate_search(queries_QMD: Floats, data: Fingerprints, num_places: int, excluded_Q: Ints) -> Ranking:
    """Search all places as 0.6.0 did: with a product of its own, and sorting every block as a whole."""
    num_queries, num_segments, dim = queries_QMD.shape
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    step = max(1, diagonal.BLOCK_ROWS // num_segments)
    last = len(data.vectors) - num_segments
    for first in range(0, num_queries, step):
        query_QMD = torch.from_numpy(queries_QMD[first : first + step].copy())
        value_QX, place_QX = torch.empty(len(query_QMD), 0), torch.empty(len(query_QMD), 0, dtype=torch.int64)
        for start in range(0, last + 1, diagonal.BLOCK_PLACES):
            count = min(diagonal.BLOCK_PLACES, last + 1 - start)
            vector_WD = torch.from_numpy(data.vectors[start : start + count + num_segments - 1].copy())
            similarity = query_QMD.reshape(-1, dim) @ vector_WD.T
            width = similarity.shape[1]
            shape, strides = (len(query_QMD), num_segments, count), (num_segments * width, width + 1, 1)
            score_QN = similarity.as_strided(shape, strides).sum(dim=1) / num_segments
            place_N = np.arange(start, start + count)
            track_N = data.track_row_of(place_N)
            leaves_N = place_N + num_segments > data.first_vector[track_N + 1]
            ignored_QN = leaves_N | (track_N == excluded_Q[first : first + step, None])
            score_QN[torch.from_numpy(ignored_QN)] = -torch.inf
            value_QX = torch.cat([value_QX, score_QN], dim=1)
            place_QX = torch.cat([place_QX, torch.from_numpy(place_N).expand(len(query_QMD), -1)], dim=1)
        order = value_QX.argsort(dim=1, descending=True, stable=True)[:, :num_places]
        score, place = value_QX.gather(1, order).numpy(), place_QX.gather(1, order).numpy()
        rows = slice(first, first + step)
        places_QR[rows, : score.shape[1]] = np.where(np.isfinite(score), place, -1)
        scores_QR[rows, : score.shape[1]] = np.where(np.isfinite(score), score, np.nan)
    return Ranking(places_QR, scores_QR)


def assert_equal(one: Ranking, other: Ranking) -> None:
    np.testing.assert_array_equal(one.places_QR, other.places_QR)
    assert one.scores_QR.tobytes() == other.scores_QR.tobytes()  # bits, of NaN too


def make(lengths: list[int], distinct: int, seed: int) -> Fingerprints:
    """Return a database in a narrow cone, as trained encoders make it; `distinct` vectors repeat themselves."""
    draw = np.random.default_rng(seed)
    vectors = (draw.standard_normal((max(1, distinct), D)) * 0.3 + 1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = draw.integers(len(vectors), size=sum(lengths)) if distinct < sum(lengths) else np.arange(sum(lengths))
    return Fingerprints(vectors[rows], np.arange(len(lengths)), first, 1600, "key")


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=6),
    st.sampled_from([1, 3, 40, 10_000]),
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from([8, 65, 128, 4096]),
    st.sampled_from([1, 20, 512]),
    st.integers(0, 99),
)
def test_one_product_finds_what_separate_searches_find_bit_for_bit(
    lengths: list[int],
    distinct: int,
    num_queries: int,
    num_segments: int,
    top_k: int,
    places: int,
    rows: int,
    seed: int,
) -> None:
    data = make(lengths, distinct, seed)
    draw = np.random.default_rng(seed + 1)
    queries = (draw.standard_normal((num_queries, num_segments, D)) * 0.3 + 1).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=2, keepdims=True)
    own = draw.integers(-1, len(lengths), num_queries)
    index = exact.build(exact.Config(device="cpu"), data.vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagonal, "BLOCK_PLACES", places)
        patch.setattr(diagonal, "BLOCK_ROWS", rows)
        found = scan(queries, data, [Wanted(1, own), Wanted(top_k)], top_k + neighbours.MARGIN)
        impostors = separate_search(queries, data, 1, own)
        everywhere = separate_search(queries, data, top_k, np.full(num_queries, -1))
    assert_equal(found.rankings[0], impostors)
    assert_equal(found.rankings[1], everywhere)
    shared = neighbours_of(index, queries, data, top_k, found)
    np.testing.assert_array_equal(shared, neighbours_of(index, queries, data, top_k))


@dataclass
class Counting:
    """An exact index that counts for how many queries it is asked."""

    index: exact.Exact
    exact: bool = True
    num_bytes: int = 0
    asked: int = 0

    def neighbours(self, queries_QD: Floats, top_k: int) -> Ints:
        self.asked += len(queries_QD)
        return self.index.neighbours(queries_QD, top_k)

    def nearest_among(self, queries_QD: Floats, candidates_QC: Ints, top_k: int) -> Ints:
        return self.index.nearest_among(queries_QD, candidates_QC, top_k)


@pytest.mark.parametrize(("distinct", "asked"), [(10_000, 0), (10, 30)])
def test_the_index_is_asked_only_where_the_candidates_do_not_decide(distinct: int, asked: int) -> None:
    data = make([1000, 1000], distinct, seed=0)
    queries = make([30], 10_000, seed=1).vectors.reshape(10, 3, D)
    counting = Counting(exact.build(exact.Config(device="cpu"), data.vectors))
    found = scan(queries, data, [], 5 + neighbours.MARGIN)
    shared = neighbours_of(counting, queries, data, 5, found)
    assert counting.asked == asked
    np.testing.assert_array_equal(shared, neighbours_of(counting, queries, data, 5))


def test_only_an_exact_index_shares_the_product_and_has_as_many_candidates() -> None:
    vectors = make([50], 10_000, seed=0).vectors
    assert shares_product(exact.build(exact.Config(), vectors))
    assert not shares_product(exact.build(exact.Config(storage="int8"), vectors))
    assert neighbours.MARGIN <= exact.MARGIN


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 200),
    st.sampled_from([2, 5, 1000]),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 99),
)
def test_blocks_compared_by_their_groups_give_what_a_sort_gives(
    num_columns: int, block: int, distinct: int, most: int, rising: bool, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.integers(distinct, size=(3, num_columns)).astype(np.float32)
    rows[draw.random(rows.shape) < 0.1] = -np.inf
    rows = np.sort(rows, axis=1) if rising else rows
    value_QN = torch.from_numpy(rows)
    best = topk.empty_top_k(3, most, value_QN.device)
    for start in range(0, num_columns, block):
        best = best.merge(value_QN[:, start : start + block], start)
    order = value_QN.argsort(dim=1, descending=True, stable=True)[:, :most]
    assert torch.equal(best.column_QK, order)
    assert torch.equal(best.value_QK, value_QN.gather(1, order))
