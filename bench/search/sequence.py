"""From the neighbours of each segment of a query to ranked places in tracks.

A place is a database vector number c: the query is thought to begin there, so that its segment m lies
at c + m. Places are confined to one track: all M positions must be in the track of c.

Shape legend: Q queries, M segments of a query, K neighbours of a segment, R ranked places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.values import Fingerprints, Floats, Ints


@dataclass(frozen=True)
class Ranking:
    """The places found for each query, best first.

    Shapes: places (Q, R) vector numbers, -1 where there are fewer; scores (Q, R): the share of segments
    that voted (`vote`) or the mean similarity along the sequence (`rescore`), NaN where there is none.
    """

    places_QR: Ints
    scores_QR: Floats


def vote(neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places by votes of each segment's nearest neighbour.

    First the track with the most votes; in it, each place by how many segments point to it; then the
    other tracks' places. A tie goes to the earlier place. At the top this is the published search with
    the 50 % rule left out: the best place always answers, and its share is the score.
    Source: Singh et al., ISMIR 2022, section 2.6.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    for q, nearest_M in enumerate(neighbours_QMK[:, :, 0]):
        heard_M = nearest_M[nearest_M >= 0]
        track_votes = np.bincount(database.place_of(heard_M), minlength=len(database.tracks))
        place_C, votes_C = np.unique(_within_tracks(nearest_M[:, None], database), return_counts=True)
        order = np.lexsort((place_C, -votes_C, -track_votes[database.place_of(place_C)]))[:num_places]
        places_QR[q, : len(order)] = place_C[order]
        scores_QR[q, : len(order)] = votes_C[order] / num_segments
    return Ranking(places_QR, scores_QR)


def rescore(queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places by the mean inner product along the sequence, with the true vectors.

    Candidates are all places that any neighbour of any segment points to. A tie goes to the earlier place.
    Source: Chang et al. (NAFP), ICASSP 2021, section 3; confined to one track as NMFP does.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    steps_M = np.arange(num_segments)
    for q, (query_MD, neighbours_MK) in enumerate(zip(queries_QMD, neighbours_QMK, strict=True)):
        place_C = np.unique(_within_tracks(neighbours_MK, database))
        sequence_CMD = database.vectors[place_C[:, None] + steps_M]
        score_C = np.einsum("cmd,md->c", sequence_CMD, query_MD) / num_segments
        order = np.lexsort((place_C, -score_C))[:num_places]
        places_QR[q, : len(order)] = place_C[order]
        scores_QR[q, : len(order)] = score_C[order]
    return Ranking(places_QR, scores_QR)


def _within_tracks(neighbours_MK: Ints, database: Fingerprints) -> Ints:
    """Return the places that neighbours point to, flat, only those whose whole sequence is in one track."""
    num_segments = len(neighbours_MK)
    found: npt.NDArray[np.bool_] = neighbours_MK >= 0
    track_MK = database.place_of(neighbours_MK)
    place_MK = neighbours_MK - np.arange(num_segments)[:, None]
    first = database.first_vector
    inside = found & (place_MK >= first[track_MK]) & (place_MK + num_segments <= first[track_MK + 1])
    return place_MK[inside]
