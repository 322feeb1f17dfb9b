"""Places that sound exactly like the true one: a track that repeats itself, bit for bit, has several right answers.

Shape legend: Q queries, R ranked places, P pairs of a query and a place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.audio.pcm import Corpus
from bench.search.sequence import Ranking
from bench.values import Fingerprints, Found, Ints

PROBE_SAMPLES = 512  # compared first at every lag, where a track may repeat itself
Bools = npt.NDArray[np.bool_]


def find_repetitions(
    ranking: Ranking,
    database: Fingerprints,
    num_segments: int,
    tolerance_samples: int,
    wrong_QR: Bools,
    start_Q: Ints,
) -> Bools:
    """Return which of the wrong places, all in the right track, are right because the track repeats itself there.

    The fingerprints along the whole query, `num_segments`, must be those of the true place. The start found,
    interpolated perhaps, must be as near to the repetition as it would have to be to the true start.
    """
    repeats_QR = np.zeros(wrong_QR.shape, dtype=bool)
    query_P, rank_P = np.nonzero(wrong_QR)
    place_P = ranking.places_QR[query_P, rank_P]
    row_P = database.track_row_of(place_P)
    true_P = database.first_vector[row_P] + np.rint(start_Q[query_P] / database.hop_samples).astype(np.int64)
    last_P = database.first_vector[row_P + 1] - num_segments
    true_P = np.minimum(true_P, last_P)
    repeated_start_P = start_Q[query_P] + (place_P - true_P) * database.hop_samples
    found_start_P = ranking.starts(database)[query_P, rank_P]
    is_near_P = np.abs(found_start_P - repeated_start_P) <= tolerance_samples
    # The first fingerprints differ almost always; the rest is compared where they do not.
    same_P = is_near_P & (place_P <= last_P) & (database.vectors[place_P] == database.vectors[true_P]).all(axis=1)
    for p in np.flatnonzero(same_P):
        one, other = (database.vectors[at : at + num_segments] for at in (place_P[p], true_P[p]))
        repeats_QR[query_P[p], rank_P[p]] = np.array_equal(one, other)
    return repeats_QR


def find_repeated_samples(
    music: Corpus,
    tracks: Ints,
    found: Found,
    num_samples: int,
    tolerance_samples: int,
    wrong_QR: Bools,
    start_Q: Ints,
) -> Bools:
    """Return which of the wrong answers, all in the right track, are right because the track repeats itself there.

    Somewhere within the tolerance of the answer, the track must have the samples of the query's music, one by one.
    """
    repeats_QR = np.zeros(wrong_QR.shape, dtype=bool)
    for query, rank in zip(*np.nonzero(wrong_QR), strict=True):
        track, start = int(tracks[found.row_QR[query, rank]]), int(start_Q[query])
        at = int(found.start_QR[query, rank])
        query_T = music.read(track, start, num_samples)
        first = max(0, at - tolerance_samples)
        last = min(at + tolerance_samples, music.num_samples(track) - num_samples)
        if last < first:
            continue
        nearby_T = music.read(track, first, last - first + num_samples)
        probe_LT = np.lib.stride_tricks.sliding_window_view(nearby_T, min(PROBE_SAMPLES, num_samples))
        same_L = (probe_LT[: last - first + 1] == query_T[:PROBE_SAMPLES]).all(axis=1)
        repeats_QR[query, rank] = any(
            np.array_equal(nearby_T[lag : lag + num_samples], query_T) for lag in np.flatnonzero(same_L)
        )
    return repeats_QR
