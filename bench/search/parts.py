"""The exact search for a part of a query: wherever in the query it begins, and wherever in the database it lies.

A track may begin or end in the middle of a query, or be shorter than it; then only a part of the query lies in the
track. `best_part_scores` says how well the best part of a given length matches, which is what a threshold for parts is
calibrated on (`bench.catalogue.build`).

Shape legend: Q queries, M segments of a query, D dimensions, N lines, W vectors of a block, L part lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bench.values import Fingerprints, Floats, Ints

BLOCK_LINES = 8_192


def best_part_scores(
    queries_QMD: Floats, database: Fingerprints, part_segments: Sequence[int], excluded_Q: Ints, groups: Ints
) -> Floats:
    """Return the highest mean similarity (Q, L) of any part of each length of each query, in one track.

    `groups` has a number for each row of `database.tracks`; the tracks of the group `excluded_Q` of a query do not
    count. -inf where no track is long enough. Cost: as an exact search of the whole queries.
    """
    best_QL = np.full((len(queries_QMD), len(part_segments)), -np.inf, dtype=np.float32)
    num_segments, last = queries_QMD.shape[1], len(database.vectors)
    # A line is the place of the query's first segment, which may be before the first vector.
    for start in range(1 - num_segments, last, BLOCK_LINES):
        stop = min(last, start + BLOCK_LINES)
        place_W = np.arange(start, stop + num_segments - 1)
        vectors_WD = database.vectors[np.clip(place_W, 0, last - 1)]
        row_W = np.where((place_W >= 0) & (place_W < last), database.track_row_of(place_W), -1)
        group_W = np.where(row_W >= 0, groups[row_W], -1)
        for q, query_MD in enumerate(queries_QMD):
            usable_W = (row_W >= 0) & (group_W != excluded_Q[q])
            similarity_MW = query_MD @ vectors_WD.T
            scores = _best_parts(similarity_MW, np.where(usable_W, row_W, -1), part_segments)
            best_QL[q] = np.maximum(best_QL[q], scores)
    return best_QL


def _best_parts(similarity_MW: Floats, row_W: Ints, part_segments: Sequence[int]) -> list[float]:
    num_segments, width = similarity_MW.shape
    count = width - num_segments + 1
    one, next_row = similarity_MW.itemsize, similarity_MW.strides[0]
    # Row m of the view begins at column m: its columns are lines.
    line_MN = np.lib.stride_tricks.as_strided(similarity_MW, (num_segments, count), (next_row + one, one))
    total_MN = np.pad(np.cumsum(line_MN, axis=0), ((1, 0), (0, 0)))
    scores = []
    for length in part_segments:
        inside_MN = _fits(row_W, length, num_segments, count)
        mean_MN = (total_MN[length:] - total_MN[:-length]) / length
        scores.append(float(np.max(mean_MN, initial=-np.inf, where=inside_MN)))
    return scores


def _fits(row_W: Ints, length: int, num_segments: int, count: int) -> npt.NDArray[np.bool_]:
    """Return which parts, by the segment at which they begin and the line, lie in one track."""
    end_W = np.append(row_W[length - 1 :], np.full(length - 1, -1))
    fits_W = (row_W >= 0) & (row_W == end_W)
    inside: npt.NDArray[np.bool_] = np.lib.stride_tricks.sliding_window_view(fits_W, count)[: num_segments - length + 1]
    return inside
