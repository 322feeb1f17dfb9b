"""The exact sequence search: scores each query at every place of the database, without an index.

`vote` and `rescore` approximate it. As it scores every place, it can also exclude a track, which measures how well a
query matches music that it is not from (`bench.score.threshold`). A place is a database vector number
(`bench.search.sequence`).

Shape legend: Q queries, M segments of a query, D dimensions, N places, W = N + M - 1 vectors, R ranked places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.search.sequence import Ranking
from bench.search.topk import empty_top_k
from bench.values import Fingerprints, Floats, Ints

BLOCK_PLACES = 4_096
BLOCK_ROWS = 512  # query segments per matrix product with a block: 8 MB of similarities


def search_diagonals(
    queries_QMD: Floats,
    database: Fingerprints,
    num_places: int,
    excluded_Q: Ints | None = None,
    device: torch.device | None = None,
    groups: Ints | None = None,
) -> Ranking:
    """Return the places with the highest mean inner product along the sequence, among all places.

    `excluded_Q` holds rows of `database.tracks`: for each query the one track that is excluded from its search, -1 for
    none. With `groups`, a number for each row of `database.tracks`, it holds groups, and every track of the group is
    excluded. The earlier of tied places wins. Cost: 2 Q M N D operations and one pass over the similarities; memory one
    block of similarities, for any size of the database. Not measured on a GPU.
    """
    num_queries, num_segments = queries_QMD.shape[:2]
    device = device or torch.device("cpu")
    step = max(1, BLOCK_ROWS // num_segments)
    excluded_Q = np.full(num_queries, -1) if excluded_Q is None else excluded_Q
    groups = np.arange(len(database.tracks)) if groups is None else groups
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    for start in range(0, num_queries, step):
        block = slice(start, start + step)
        query_QMD = torch.from_numpy(np.array(queries_QMD[block])).to(device)
        score, place = _search_queries(query_QMD, database, num_places, excluded_Q[block], groups)
        found = np.isfinite(score)
        places_QR[block, : score.shape[1]] = np.where(found, place, -1)
        scores_QR[block, : score.shape[1]] = np.where(found, score, np.nan)
    return Ranking(places_QR, scores_QR)


def _search_queries(
    query_QMD: Tensor, database: Fingerprints, num_places: int, excluded_Q: Ints, groups: Ints
) -> tuple[Floats, Ints]:
    """Return scores and places (Q, up to R), best first; a score of -inf means no place."""
    num_queries, num_segments, dim = query_QMD.shape
    best = empty_top_k(num_queries, num_places, query_QMD.device)
    last = len(database.vectors) - num_segments
    for start in range(0, last + 1, BLOCK_PLACES):
        count = min(BLOCK_PLACES, last + 1 - start)
        vectors = database.vectors[start : start + count + num_segments - 1]
        vector_WD = torch.from_numpy(np.array(vectors)).to(query_QMD.device)
        similarity_QMW = (query_QMD.reshape(-1, dim) @ vector_WD.T).view(num_queries, num_segments, -1)
        score_QN = _sum_diagonals(similarity_QMW, count) / num_segments
        ignored_QN = _mask_excluded(start, count, num_segments, database, excluded_Q, groups)
        score_QN[torch.from_numpy(ignored_QN).to(score_QN.device)] = -torch.inf
        best = best.merge(score_QN, start)
    return best.value_QK.cpu().numpy(), best.column_QK.cpu().numpy()


def _sum_diagonals(similarity_QMW: Tensor, count: int) -> Tensor:
    """Return the sums (Q, N) of similarity[q, m, n + m] over m, from a view whose row m starts at column m."""
    num_queries, num_segments, width = similarity_QMW.shape
    shape, strides = (num_queries, num_segments, count), (num_segments * width, width + 1, 1)
    return similarity_QMW.as_strided(shape, strides).sum(dim=1)


def _mask_excluded(
    start: int, count: int, num_segments: int, database: Fingerprints, excluded_Q: Ints, groups: Ints
) -> npt.NDArray[np.bool_]:
    """Return which places (Q, N) do not count: sequences that leave their track, and excluded tracks."""
    place_N = np.arange(start, start + count)
    track_N = database.track_row_of(place_N)
    leaves_N = place_N + num_segments > database.first_vector[track_N + 1]
    ignored_QN: npt.NDArray[np.bool_] = leaves_N | (groups[track_N] == excluded_Q[:, None])
    return ignored_QN
