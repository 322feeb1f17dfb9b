"""The exact sequence search: scores each query at every place of the database, without an index.

`vote` and `rescore` approximate it. As it scores every place, it can also exclude a track, which measures how well a
query matches music that it is not from (`bench.score.threshold`). A place is a database vector number
(`bench.search.sequence`).

One pass multiplies each query vector with each database vector once and serves any number of searches, and the
candidates for the nearest neighbours of each segment (`bench.search.neighbours`).

Shape legend: Q queries, M segments of a query, D dimensions, N places, W = N + M - 1 vectors, R ranked places,
C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.search.sequence import Ranking
from bench.search.topk import RunningTopK, empty_top_k
from bench.values import Fingerprints, Floats, Ints

BLOCK_PLACES = 4_096
BLOCK_ROWS = 512  # query segments per matrix product with a block: 8 MB of similarities


@dataclass(frozen=True)
class Wanted:
    """The places that one search wants of every query."""

    num_places: int
    """R, the places that are ranked."""

    excluded_Q: Ints | None = None
    """Rows of `database.tracks`: for each query the one track that is excluded from its search, -1 for none."""

    groups: Ints | None = None
    """A number for each row of `database.tracks`; with it, `excluded_Q` holds groups and excludes all their tracks."""


@dataclass(frozen=True)
class Scan:
    """What one pass over the database found."""

    rankings: list[Ranking]
    """One for each search."""

    candidates_QMC: Ints
    """The vectors with the largest inner products with each segment, best first, equal ones by number."""

    least_QM: Floats
    """The inner product of the last candidate: no vector that is not a candidate has a larger one."""


def search_diagonals(
    queries_QMD: Floats,
    database: Fingerprints,
    num_places: int,
    excluded_Q: Ints | None = None,
    device: torch.device | None = None,
    groups: Ints | None = None,
) -> Ranking:
    """Return the places with the highest mean inner product along the sequence, among all places.

    `excluded_Q` and `groups` are those of `Wanted`. The earlier of tied places wins. Cost: 2 Q M N D operations and one
    pass over the similarities; memory one block of similarities, for any size of the database. Not measured on a GPU.
    """
    return scan(queries_QMD, database, [Wanted(num_places, excluded_Q, groups)], 0, device).rankings[0]


def scan(
    queries_QMD: Floats,
    database: Fingerprints,
    searches: Sequence[Wanted],
    num_candidates: int,
    device: torch.device | None = None,
) -> Scan:
    """Return what several searches and the candidates of every segment need, from one product of all vectors.

    If there are fewer vectors than candidates, all are candidates; the number of candidates may be 0. Each search has
    the same bits as on its own. Cost: as `search_diagonals`, whatever the number of searches.
    """
    num_queries, num_segments = queries_QMD.shape[:2]
    device = device or torch.device("cpu")
    step = max(1, BLOCK_ROWS // num_segments)
    num_candidates = min(num_candidates, len(database.vectors))
    rankings = [_empty_ranking(num_queries, search.num_places) for search in searches]
    candidates_QMC = np.empty((num_queries, num_segments, num_candidates), dtype=np.int64)
    least_QM = np.full((num_queries, num_segments), -np.inf, dtype=np.float32)
    for start in range(0, num_queries, step):
        block = slice(start, start + step)
        query_QMD = torch.from_numpy(np.array(queries_QMD[block])).to(device)
        excluded = [None if search.excluded_Q is None else search.excluded_Q[block] for search in searches]
        parts = [Wanted(s.num_places, e, s.groups) for s, e in zip(searches, excluded, strict=True)]
        places, vectors = _scan_queries(query_QMD, database, parts, num_candidates)
        for ranking, best in zip(rankings, places, strict=True):
            _write_ranking(ranking, block, best)
        if num_candidates:
            candidates_QMC[block] = vectors.column_QK.view(len(query_QMD), num_segments, -1).cpu().numpy()
            least_QM[block] = vectors.value_QK[:, -1].view(len(query_QMD), num_segments).cpu().numpy()
    return Scan(rankings, candidates_QMC, least_QM)


def _empty_ranking(num_queries: int, num_places: int) -> Ranking:
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    return Ranking(places_QR, np.full(places_QR.shape, np.nan, dtype=np.float32))


def _write_ranking(ranking: Ranking, block: slice, best: RunningTopK) -> None:
    """Write the ranking of a block of queries; a score of -inf means no place."""
    score, place = best.value_QK.cpu().numpy(), best.column_QK.cpu().numpy()
    found = np.isfinite(score)
    ranking.places_QR[block, : score.shape[1]] = np.where(found, place, -1)
    ranking.scores_QR[block, : score.shape[1]] = np.where(found, score, np.nan)


def _scan_queries(
    query_QMD: Tensor, database: Fingerprints, searches: Sequence[Wanted], num_candidates: int
) -> tuple[list[RunningTopK], RunningTopK]:
    """Return the best places (Q, up to R) of each search, and the best vectors of each segment (Q x M, up to C)."""
    num_queries, num_segments, dim = query_QMD.shape
    device = query_QMD.device
    places = [empty_top_k(num_queries, search.num_places, device) for search in searches]
    vectors = empty_top_k(num_queries * num_segments, num_candidates, device)
    # Without a place there are still neighbours: the last block has no place then.
    last = max(len(database.vectors) - num_segments, -1)
    for start in range(0, max(last, 0) + 1, BLOCK_PLACES):
        count = min(BLOCK_PLACES, last + 1 - start)
        block = database.vectors[start : start + count + num_segments - 1]
        vector_WD = torch.from_numpy(np.array(block)).to(device)
        similarity_XW = query_QMD.reshape(-1, dim) @ vector_WD.T
        if num_candidates:
            # The vectors after the last place of a block are also the first ones of the next block.
            new = count if start + count <= last else len(vector_WD)
            vectors = vectors.merge(similarity_XW[:, :new], start)
        if count < 1:
            continue
        mean_QN = _sum_diagonals(similarity_XW.view(num_queries, num_segments, -1), count) / num_segments
        track_N, leaves_N = _tracks_of(start, count, num_segments, database)
        for i, search in enumerate(searches):
            ignored_QN = leaves_N | _is_excluded(track_N, search, num_queries)
            score_QN = mean_QN.masked_fill(torch.from_numpy(ignored_QN).to(device), -torch.inf)
            places[i] = places[i].merge(score_QN, start)
    return places, vectors


def _sum_diagonals(similarity_QMW: Tensor, count: int) -> Tensor:
    """Return the sums (Q, N) of similarity[q, m, n + m] over m, from a view whose row m starts at column m."""
    num_queries, num_segments, width = similarity_QMW.shape
    shape, strides = (num_queries, num_segments, count), (num_segments * width, width + 1, 1)
    return similarity_QMW.as_strided(shape, strides).sum(dim=1)


def _tracks_of(start: int, count: int, num_segments: int, database: Fingerprints) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return the track row of each place, and whether a sequence that begins there leaves its track, both (N,)."""
    place_N = np.arange(start, start + count)
    track_N = database.track_row_of(place_N)
    leaves_N: npt.NDArray[np.bool_] = place_N + num_segments > database.first_vector[track_N + 1]
    return track_N, leaves_N


def _is_excluded(track_N: Ints, search: Wanted, num_queries: int) -> npt.NDArray[np.bool_]:
    """Return which places (Q, N) lie in an excluded track."""
    if search.excluded_Q is None:
        return np.zeros((num_queries, len(track_N)), dtype=bool)
    group_N = track_N if search.groups is None else search.groups[track_N]
    excluded_QN: npt.NDArray[np.bool_] = group_N == search.excluded_Q[:, None]
    return excluded_QN
