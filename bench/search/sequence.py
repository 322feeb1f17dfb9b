"""From the neighbours of each segment of a query to ranked places in tracks.

A place is a database vector number c: the query is thought to begin there, so that its segment m lies
at c + m. Places are confined to one track: all M positions must be in the track of c.

Shape legend: Q queries, M segments of a query, K neighbours of a segment, R ranked places, P pairs of a
query and a place, S = M x D dimensions of a whole sequence, N database vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.values import Fingerprints, Floats, Ints

BLOCK_BYTES = 1 << 20  # of sequences gathered at once: what stays in a processor's cache


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
    nearest_QM = neighbours_QMK[:, :, 0]
    query_P, place_P, votes_P = _places(nearest_QM[:, :, None], database)
    # A segment votes for the track it heard, also where the whole sequence would not fit there.
    num_tracks = len(database.tracks)
    ballot_QM = np.arange(num_queries)[:, None] * num_tracks + database.place_of(nearest_QM)
    track_votes = np.bincount(ballot_QM[nearest_QM >= 0], minlength=num_queries * num_tracks)
    own_votes_P = track_votes[query_P * num_tracks + database.place_of(place_P)]
    order = np.lexsort((place_P, -votes_P, -own_votes_P, query_P))
    return _ranking(query_P[order], place_P[order], votes_P[order] / num_segments, num_queries, num_places)


def rescore(queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places by the mean inner product along the sequence, with the true vectors.

    Candidates are all places that any neighbour of any segment points to. A tie goes to the earlier place.
    Source: Chang et al. (NAFP), ICASSP 2021, section 3; confined to one track as NMFP does.
    """
    num_queries, num_segments, dim = queries_QMD.shape
    query_P, place_P, _ = _places(neighbours_QMK, database)
    queries_QS = queries_QMD.reshape(num_queries, -1)
    score_P = np.empty(len(place_P), dtype=np.float32)
    # A sequence is one run of the database, so that a window of M x D numbers every D is all sequences.
    flat = database.vectors.reshape(-1)
    windows_NS = np.lib.stride_tricks.sliding_window_view(flat, num_segments * dim)[::dim] if len(place_P) else flat
    block = max(1, BLOCK_BYTES // queries_QS[:1].nbytes)
    for start in range(0, len(place_P), block):
        some = slice(start, start + block)
        score_P[some] = np.einsum("ps,ps->p", windows_NS[place_P[some]], queries_QS[query_P[some]]) / num_segments
    order = np.lexsort((place_P, -score_P, query_P))
    return _ranking(query_P[order], place_P[order], score_P[order], num_queries, num_places)


def _places(neighbours_QMK: Ints, database: Fingerprints) -> tuple[Ints, Ints, Ints]:
    """Return the pairs of a query and a place that its neighbours point to, each once, and how often.

    Only places whose whole sequence is in the track of the neighbour. In the order of query and place.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    track_QMK = database.place_of(neighbours_QMK)
    place_QMK = neighbours_QMK - np.arange(num_segments)[:, None]
    first = database.first_vector
    inside: npt.NDArray[np.bool_] = neighbours_QMK >= 0
    inside &= (place_QMK >= first[track_QMK]) & (place_QMK + num_segments <= first[track_QMK + 1])
    num_vectors = max(1, len(database.vectors))
    pair_QMK = np.arange(num_queries)[:, None, None] * num_vectors + place_QMK
    pair_P, times_P = np.unique(pair_QMK[inside], return_counts=True)
    return pair_P // num_vectors, pair_P % num_vectors, times_P


def _ranking(query_P: Ints, place_P: Ints, score_P: Floats, num_queries: int, num_places: int) -> Ranking:
    """Return the first places of each query, of pairs that are sorted by query and then best first."""
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    rank_P = np.arange(len(query_P)) - np.searchsorted(query_P, query_P)
    kept = rank_P < num_places
    places_QR[query_P[kept], rank_P[kept]] = place_P[kept]
    scores_QR[query_P[kept], rank_P[kept]] = score_P[kept]
    return Ranking(places_QR, scores_QR)
