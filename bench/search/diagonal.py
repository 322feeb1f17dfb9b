"""The exact sequence search: every place of every track, scored along its diagonal.

It asks no index, so that it is what `vote` and `rescore` approximate; and since it sees every place, it can
leave a track out, which tells how well a query matches what it is not (`bench.score.threshold`).

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
BLOCK_ROWS = 512  # segments of queries multiplied with a block at once: 8 MB of similarities


def search_diagonals(
    queries_QMD: Floats,
    database: Fingerprints,
    num_places: int,
    without_Q: Ints | None = None,
    device: torch.device | None = None,
) -> Ranking:
    """Return places by the mean inner product along the sequence, of all places there are.

    `without_Q` are rows of `database.tracks`: for each query the one track that is left out of its search, -1 for
    none. A tie goes to the earlier place. Time 2 Q M N D operations and one pass over the similarities; memory one
    block of them, whatever the database's size. Not measured on a GPU.
    """
    num_queries, num_segments = queries_QMD.shape[:2]
    device = device or torch.device("cpu")
    step = max(1, BLOCK_ROWS // num_segments)
    left_out_Q = np.full(num_queries, -1) if without_Q is None else without_Q
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    for start in range(0, num_queries, step):
        some = slice(start, start + step)
        query_QMD = torch.from_numpy(np.array(queries_QMD[some])).to(device)
        score, place = _search_queries(query_QMD, database, num_places, left_out_Q[some])
        found = np.isfinite(score)
        places_QR[some, : score.shape[1]] = np.where(found, place, -1)
        scores_QR[some, : score.shape[1]] = np.where(found, score, np.nan)
    return Ranking(places_QR, scores_QR)


def _search_queries(
    query_QMD: Tensor, database: Fingerprints, num_places: int, left_out_Q: Ints
) -> tuple[Floats, Ints]:
    """Return scores and places (Q, up to R), best first; -inf stands for no place."""
    num_queries, num_segments, dim = query_QMD.shape
    best = empty_top_k(num_queries, num_places, query_QMD.device)
    last = len(database.vectors) - num_segments
    for start in range(0, last + 1, BLOCK_PLACES):
        count = min(BLOCK_PLACES, last + 1 - start)
        vectors = database.vectors[start : start + count + num_segments - 1]
        vector_WD = torch.from_numpy(np.array(vectors)).to(query_QMD.device)
        likeness_QMW = (query_QMD.reshape(-1, dim) @ vector_WD.T).view(num_queries, num_segments, -1)
        score_QN = _sum_diagonals(likeness_QMW, count) / num_segments
        barred_QN = _mask_excluded(start, count, num_segments, database, left_out_Q)
        score_QN[torch.from_numpy(barred_QN).to(score_QN.device)] = -torch.inf
        best = best.merge(score_QN, start)
    return best.value_QK.cpu().numpy(), best.column_QK.cpu().numpy()


def _sum_diagonals(likeness_QMW: Tensor, count: int) -> Tensor:
    """Return the sums (Q, N) of likeness[q, m, n + m] over m: a view whose rows begin one later each."""
    num_queries, num_segments, width = likeness_QMW.shape
    shape, strides = (num_queries, num_segments, count), (num_segments * width, width + 1, 1)
    return likeness_QMW.as_strided(shape, strides).sum(dim=1)


def _mask_excluded(
    start: int, count: int, num_segments: int, database: Fingerprints, left_out_Q: Ints
) -> npt.NDArray[np.bool_]:
    """Return which places (Q, N) do not count: those that leave their track, and those in a track left out."""
    place_N = np.arange(start, start + count)
    track_N = database.track_row_of(place_N)
    leaves_N = place_N + num_segments > database.first_vector[track_N + 1]
    barred_QN: npt.NDArray[np.bool_] = leaves_N | (track_N == left_out_Q[:, None])
    return barred_QN
