"""What counts as a hit: the right track, and a start within the tolerance of the true start.

Starts are compared in whole samples, so that exactly the tolerance is a hit on every machine. They are times and not
vector numbers, so that systems with different time grids are comparable, and answers between two vectors count too.

Shape legend: Q queries, R ranked answers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.score.metrics import find_track_rank
from bench.search.searcher import Bools, FindRepetitions
from bench.values import RATE_HZ, Found, Ints


def score_hits(
    found: Found,
    tracks: Ints,
    track_Q: Ints,
    start_Q: Ints,
    tolerance_samples: int,
    near_samples: int,
    find_repetitions: FindRepetitions | None = None,
) -> pd.DataFrame:
    """Return one row per query: the best answer and whether it is correct.

    `tracks` are the numbers of the database's tracks in the corpus, `track_Q` those of the queries' own tracks,
    `start_Q` the true starts in samples. Columns: query, track, start_s, found_track, found_s (-1 and NaN if nothing
    was found), found_end_s and found_speed (NaN also if the search finds none), score, hit (right track, start within
    the tolerance), near (within `near_samples` instead), track_hit (right track), rank: the rank, from 1, of the first
    answer that is a hit, and track_rank: that of the right track among the tracks found; 0 if there is none.
    """
    found_QR = found.row_QR >= 0
    found_track_QR = np.where(found_QR, tracks[np.maximum(found.row_QR, 0)], -1)
    track_hit_QR = found_QR & (found_track_QR == track_Q[:, None])
    error_QR = np.abs(found.start_QR - start_Q[:, None])
    hit_QR = track_hit_QR & (error_QR <= tolerance_samples)
    if find_repetitions is not None:
        repeat_QR = find_repetitions(track_hit_QR & ~hit_QR, start_Q)
        hit_QR |= repeat_QR
        error_QR = np.where(repeat_QR, 0, error_QR)
    near_QR = track_hit_QR & (error_QR <= near_samples)
    return pd.DataFrame(
        {
            "query": np.arange(len(track_Q)),
            "track": track_Q,
            "start_s": start_Q / RATE_HZ,
            "found_track": found_track_QR[:, 0],
            "found_s": _first_s(found.start_QR, found_QR),
            "found_end_s": np.nan if found.end_QR is None else _first_s(found.end_QR, found_QR),
            "found_speed": np.nan if found.speed_QR is None else found.speed_QR[:, 0],
            "score": found.score_QR[:, 0],
            "hit": hit_QR[:, 0],
            "near": near_QR[:, 0],
            "track_hit": track_hit_QR[:, 0],
            "rank": np.where(hit_QR.any(axis=1), hit_QR.argmax(axis=1) + 1, 0),
            "track_rank": find_track_rank(found_track_QR, track_Q),
        }
    )


def _first_s(sample_QR: Ints, found_QR: Bools) -> npt.NDArray[np.float64]:
    """Return the times of the best answers in s, NaN where there is none."""
    return np.where(found_QR[:, 0], sample_QR[:, 0] / RATE_HZ, np.nan)
