"""Sequence search by edit distance: where a query starts and ends in a track, though samples were dropped or added.

The other searches lay a query on a track segment by segment, all of them at one distance in time. Here a query may skip
vectors of the track, and have segments that the track lacks, each at the price of one. It is the edit distance of two
texts whose letters are fingerprints. As a segment never equals a vector, the price of taking one for the other is
graded: 0 for the nearest neighbour of the segment, 1 for what is no more similar than its last neighbour, and in
proportion to the similarity between them. With one neighbour a segment and a vector match or do not, as letters do.

Confidence C, our reading: the slides name "start - end matching times, find candidate sequence of segments, edit
distance", and no formula. Prices, band and candidates are our choice.

It helps where the query lacks or repeats a stretch of the track, or is played at another speed, and where an end time
is asked for. On queries that lie on their track in one piece `rescore` is as good or better, and faster
(docs/tutorial-index-and-search.md has the figures).

Shape legend: Q queries, M segments of a query, D dimensions, K neighbours, R ranked places, C candidates of a query,
P pairs of a query and a candidate, V = 2 x drift + 1 offsets from the candidate, W = M + 2 x drift vectors of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.search.sequence import Ranking, rescore
from bench.values import Fingerprints, Floats, Ints

DRIFT = 0.2  # of its length, how far a query may drift from a candidate, either way: the width of the band
GAP = (
    1.0  # the price of a skipped vector or an added segment, that of a segment and a vector that have nothing in common
)
CANDIDATES = 2  # aligned for each place that is wanted; several candidates often lead to one place
BLOCK_BYTES = 1 << 24  # of vectors gathered at once


def align_by_edits(queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places ranked by the edit distance of the query to the track from there on, with their ends.

    Candidates are the best places of `rescore`. The score is 1 - distance / M: 1 if every segment lies at its nearest
    neighbour, in order and without gaps, and 0 if none is near any. It is no similarity, so that the score of an
    impostor (`bench.score.threshold`) cannot be compared with it. The earlier of tied places wins; of alignments that
    start at one place the shortest distance counts. A place is the vector of the first segment, and its end that of
    the last: M - 1 vectors later if as many were skipped as added.

    Cost: for each candidate M W D operations, and a pass over M V prices in NumPy.
    """
    num_queries, num_segments = queries_QMD.shape[:2]
    places_QC = rescore(queries_QMD, neighbours_QMK, database, CANDIDATES * num_places).places_QR
    query_P, rank_P = np.nonzero(places_QC >= 0)
    place_P = places_QC[query_P, rank_P]
    nearest_QM, last_QM = _compare_with_neighbours(queries_QMD, neighbours_QMK, database)
    drift = int(DRIFT * num_segments)
    parts = [_Alignments.none()]
    block = max(1, BLOCK_BYTES // (4 * queries_QMD.shape[2] * (num_segments + 2 * drift)))
    for start in range(0, len(place_P), block):
        rows = slice(start, start + block)
        query, place = query_P[rows], place_P[rows]
        similarity_PMV = _compare_band(queries_QMD[query], place, drift, database)
        parts.append(_align(_price(similarity_PMV, nearest_QM[query], last_QM[query]), place - drift, num_segments))
    found = _Alignments(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("cost", "first", "end")))
    return _rank(query_P, found, num_queries, num_segments, num_places)


@dataclass(frozen=True)
class _Alignments:
    """The best alignment of each pair: its price, its first vector, and the vector after its last, all (P,)."""

    cost: Floats
    first: Ints
    end: Ints

    @staticmethod
    def none() -> _Alignments:
        return _Alignments(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))


def _compare_with_neighbours(
    queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints
) -> tuple[Floats, Floats]:
    """Return the similarity of each segment to its nearest and to its last neighbour (Q, M); infinite without any."""
    num_found_QM = (neighbours_QMK >= 0).sum(axis=2)
    rank_QM = np.maximum(num_found_QM - 1, 0)
    similarity_2QM = [
        np.einsum("qmd,qmd->qm", queries_QMD, database.vectors[np.maximum(vector_QM, 0)])
        for vector_QM in (neighbours_QMK[:, :, 0], np.take_along_axis(neighbours_QMK, rank_QM[:, :, None], 2)[:, :, 0])
    ]
    nearest_QM, last_QM = (np.where(num_found_QM > 0, each, np.float32(np.inf)) for each in similarity_2QM)
    return nearest_QM, last_QM


def _compare_band(queries_PMD: Floats, place_P: Ints, drift: int, database: Fingerprints) -> Floats:
    """Return the similarity (P, M, V) of segment m and vector place - drift + m + v; -inf outside of the track."""
    num_pairs, num_segments = queries_PMD.shape[:2]
    track_P = database.track_row_of(place_P)
    vector_PW = (place_P - drift)[:, None] + np.arange(num_segments + 2 * drift)
    is_outside_PW = (vector_PW < database.first_vector[track_P, None]) | (
        vector_PW >= database.first_vector[track_P + 1, None]
    )
    window_PWD = database.vectors[np.clip(vector_PW, 0, len(database.vectors) - 1)]
    similarity_PWM = np.matmul(window_PWD, queries_PMD.transpose(0, 2, 1))
    similarity_PWM[is_outside_PW] = -np.inf
    # Along the diagonals: row m of the band begins m vectors later.
    pair, vector, segment = similarity_PWM.strides
    shape, strides = (num_pairs, num_segments, 2 * drift + 1), (pair, vector + segment, vector)
    return np.lib.stride_tricks.as_strided(similarity_PWM, shape, strides, writeable=False)


def _price(similarity_PMV: Floats, nearest_PM: Floats, last_PM: Floats) -> Floats:
    """Return the price of taking each segment for each vector (P, M, V), from 0 to 1; infinite outside of the track."""
    nearest, last = nearest_PM[:, :, None], last_PM[:, :, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        graded = (nearest - similarity_PMV) / (nearest - last)
    # One neighbour, or equally similar ones: what is as similar matches, and nothing else does.
    price_PMV = np.where(nearest > last, np.clip(graded, 0, 1), (similarity_PMV < nearest).astype(np.float32))
    return np.where(np.isneginf(similarity_PMV), np.inf, price_PMV).astype(np.float32)


def _align(price_PMV: Floats, base_P: Ints, num_segments: int) -> _Alignments:
    """Return the cheapest alignment of each pair within its band, whose offset 0 is the vector `base_P`.

    cost[v] is that of the segments so far, of which the last came before vector base + m + v. Of equal prices a match
    comes before an added segment, and that before a skipped vector; then the first offset.
    """
    num_pairs, _, num_offsets = price_PMV.shape
    rows = np.arange(num_pairs)
    cost_VP = np.where(np.isinf(price_PMV[:, 0].T), np.inf, np.zeros((num_offsets, num_pairs), np.float32))
    first_VP = base_P + np.arange(num_offsets)[:, None].repeat(num_pairs, axis=1)
    for m in range(num_segments):
        matched_VP = cost_VP + price_PMV[:, m].T
        added_VP = np.full_like(cost_VP, np.inf)
        added_VP[:-1] = cost_VP[1:] + GAP
        is_added_VP = added_VP < matched_VP
        later_VP = np.concatenate([first_VP[1:], first_VP[-1:]])
        cost_VP = np.where(is_added_VP, added_VP, matched_VP)
        first_VP = np.where(is_added_VP, later_VP, first_VP)
        for v in range(1, num_offsets):
            is_skipped_P = cost_VP[v - 1] + GAP < cost_VP[v]
            cost_VP[v] = np.where(is_skipped_P, cost_VP[v - 1] + GAP, cost_VP[v])
            first_VP[v] = np.where(is_skipped_P, first_VP[v - 1], first_VP[v])
    best_P = cost_VP.argmin(axis=0)
    return _Alignments(cost_VP[best_P, rows], first_VP[best_P, rows], base_P + num_segments + best_P)


def _rank(query_P: Ints, found: _Alignments, num_queries: int, num_segments: int, num_places: int) -> Ranking:
    """Return the first places of each query; of alignments that start at one place the cheapest, then the shortest."""
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    ends_QR = places_QR.copy()
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    kept_P = np.flatnonzero(found.end > found.first)  # an alignment of no vector at all has no place
    order = kept_P[np.lexsort((found.end[kept_P], found.cost[kept_P], found.first[kept_P], query_P[kept_P]))]
    query, first = query_P[order], found.first[order]
    is_new: npt.NDArray[np.bool_] = np.ones(len(order), dtype=bool)
    is_new[1:] = (query[1:] != query[:-1]) | (first[1:] != first[:-1])
    order = order[is_new]
    order = order[np.lexsort((found.first[order], found.cost[order], query_P[order]))]
    query = query_P[order]
    rank = np.arange(len(order)) - np.searchsorted(query, query)
    ranked = rank < num_places
    at = query[ranked], rank[ranked]
    places_QR[at] = found.first[order[ranked]]
    ends_QR[at] = found.end[order[ranked]] - 1
    scores_QR[at] = 1 - found.cost[order[ranked]] / num_segments
    return Ranking(places_QR, scores_QR, ends_QR=ends_QR)
