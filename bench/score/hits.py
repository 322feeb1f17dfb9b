"""What counts as a hit: the right track, and a start within the tolerance of the true start.

Starts are compared in whole samples, so that exactly the tolerance is a hit on every machine. They are times and not
vector numbers, so that databases with different hops are comparable, and answers between two vectors count too.

Shape legend: Q queries, R ranked places (`bench.search.sequence`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.search.sequence import Ranking
from bench.values import RATE_HZ, Fingerprints, Ints


def score_hits(
    ranking: Ranking,
    database: Fingerprints,
    track_Q: Ints,
    start_Q: Ints,
    tolerance_samples: int,
    num_segments: int | None = None,
) -> pd.DataFrame:
    """Return one row per query: the best place and whether it is correct.

    `track_Q` are track numbers of the corpus, `start_Q` true starts in samples. Columns: query, track,
    start_s, found_track, found_s (-1 and NaN if nothing was found), score, hit (right track, start
    within the tolerance), near (within the tolerance plus one hop), track_hit (right track), and rank: the
    rank, from 1, of the first place that is a hit; 0 if there is none.

    With `num_segments`, the length of the queries, another place of the right track is a hit too if the database has
    the same fingerprints there as at the true place, bit for bit: the track repeats itself exactly.
    """
    found_QR = ranking.places_QR >= 0
    place_QR = np.maximum(ranking.places_QR, 0)
    row_QR = np.where(found_QR, database.track_row_of(place_QR), 0)
    found_track_QR = np.where(found_QR, database.tracks[row_QR], -1)
    found_start_QR = ranking.starts(database)
    track_hit_QR = found_QR & (found_track_QR == track_Q[:, None])
    error_QR = np.abs(found_start_QR - start_Q[:, None])
    hit_QR = track_hit_QR & (error_QR <= tolerance_samples)
    if num_segments is not None:
        wrong_QR = track_hit_QR & ~hit_QR
        repeat_QR = _find_repetitions(
            place_QR, row_QR, wrong_QR, database, start_Q, num_segments, found_start_QR, tolerance_samples
        )
        hit_QR |= repeat_QR
        error_QR = np.where(repeat_QR, 0, error_QR)
    near_QR = track_hit_QR & (error_QR <= tolerance_samples + database.hop_samples)
    return pd.DataFrame(
        {
            "query": np.arange(len(track_Q)),
            "track": track_Q,
            "start_s": start_Q / RATE_HZ,
            "found_track": found_track_QR[:, 0],
            "found_s": np.where(found_QR[:, 0], found_start_QR[:, 0] / RATE_HZ, np.nan),
            "score": ranking.scores_QR[:, 0],
            "hit": hit_QR[:, 0],
            "near": near_QR[:, 0],
            "track_hit": track_hit_QR[:, 0],
            "rank": np.where(hit_QR.any(axis=1), hit_QR.argmax(axis=1) + 1, 0),
        }
    )


def _find_repetitions(
    place_QR: Ints,
    row_QR: Ints,
    wrong_QR: npt.NDArray[np.bool_],
    database: Fingerprints,
    start_Q: Ints,
    num_segments: int,
    found_start_QR: Ints,
    tolerance_samples: int,
) -> npt.NDArray[np.bool_]:
    """Return which of the wrong places have the fingerprints of the true place, along the whole query."""
    repeats_QR = np.zeros(place_QR.shape, dtype=bool)
    query_P, rank_P = np.nonzero(wrong_QR)
    place_P, row_P = place_QR[query_P, rank_P], row_QR[query_P, rank_P]
    true_P = database.first_vector[row_P] + np.rint(start_Q[query_P] / database.hop_samples).astype(np.int64)
    last_P = database.first_vector[row_P + 1] - num_segments
    true_P = np.minimum(true_P, last_P)
    # The first fingerprints differ almost always; the rest is compared where they do not.
    # The time found, interpolated perhaps, must be as near to the repetition as it would have to be to the true start.
    repeated_start_P = start_Q[query_P] + (place_P - true_P) * database.hop_samples
    is_near_P = np.abs(found_start_QR[query_P, rank_P] - repeated_start_P) <= tolerance_samples
    same_P = is_near_P & (place_P <= last_P) & (database.vectors[place_P] == database.vectors[true_P]).all(axis=1)
    for p in np.flatnonzero(same_P):
        one, other = (database.vectors[at : at + num_segments] for at in (place_P[p], true_P[p]))
        repeats_QR[query_P[p], rank_P[p]] = np.array_equal(one, other)
    return repeats_QR
