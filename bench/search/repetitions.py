"""Places with the fingerprints of the true place, bit for bit: a track that repeats itself exactly has several answers.

Shape legend: Q queries, R ranked places, P pairs of a query and a place.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.search.sequence import Ranking
from bench.values import Fingerprints, Ints


def find_repetitions(
    ranking: Ranking,
    database: Fingerprints,
    num_segments: int,
    tolerance_samples: int,
    wrong_QR: npt.NDArray[np.bool_],
    start_Q: Ints,
) -> npt.NDArray[np.bool_]:
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
