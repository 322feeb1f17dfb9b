"""From the neighbours of each segment of a query to ranked places in tracks.

A place is a database vector number c: the query is thought to begin there, so that its segment m lies
at c + m. Places are confined to one track: all M positions must be in the track of c.

Shape legend: Q queries, M segments of a query, K neighbours of a segment, R ranked places, P pairs of a
query and a place, S = M x D dimensions of a whole sequence, N database vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bench.parabola import vertex
from bench.values import Fingerprints, Floats, Ints

BLOCK_BYTES = 1 << 20  # of sequences gathered at once: what stays in a processor's cache


@dataclass(frozen=True)
class Ranking:
    """The places found for each query, best first.

    Shapes: places (Q, R) vector numbers, -1 where there are fewer; scores (Q, R): the share of segments
    that voted (`vote`) or the mean similarity along the sequence (`rescore`), NaN where there is none;
    shift_QR (Q, R): by how much of a hop a query begins after its place, between -0.5 and 0.5, None where places
    alone are told.
    """

    places_QR: Ints
    scores_QR: Floats
    shift_QR: Floats | None = None

    def starts(self, database: Fingerprints) -> Ints:
        """Return at which samples of their tracks (Q, R) the queries are thought to begin; nonsense of no place."""
        place_QR = np.maximum(self.places_QR, 0)
        start_QR = (place_QR - database.first_vector[database.track_row_of(place_QR)]) * database.hop_samples
        if self.shift_QR is None:
            return start_QR
        return start_QR + np.rint(self.shift_QR * database.hop_samples).astype(np.int64)


def vote(neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places by votes of each segment's nearest neighbour.

    First the track with the most votes; in it, each place by how many segments point to it; then the
    other tracks' places. A tie goes to the earlier place. At the top this is the published search with
    the 50 % rule left out: the best place always answers, and its share is the score.
    Source: Singh et al., ISMIR 2022, section 2.6.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    nearest_QM = neighbours_QMK[:, :, 0]
    query_P, place_P, votes_P = _count_candidates(nearest_QM[:, :, None], database)
    # A segment votes for the track it heard, also where the whole sequence would not fit there.
    num_tracks = len(database.tracks)
    ballot_QM = np.arange(num_queries)[:, None] * num_tracks + database.track_row_of(nearest_QM)
    track_votes = np.bincount(ballot_QM[nearest_QM >= 0], minlength=num_queries * num_tracks)
    own_votes_P = track_votes[query_P * num_tracks + database.track_row_of(place_P)]
    order = np.lexsort((place_P, -votes_P, -own_votes_P, query_P))
    return _build_ranking(query_P[order], place_P[order], votes_P[order] / num_segments, num_queries, num_places)


def rescore(queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places by the mean inner product along the sequence, with the true vectors.

    Candidates are all places that any neighbour of any segment points to. A tie goes to the earlier place.
    Source: Chang et al. (NAFP), ICASSP 2021, section 3; confined to one track as NMFP does.
    """
    query_P, place_P, _ = _count_candidates(neighbours_QMK, database)
    score_P = _score_places(queries_QMD, database, query_P, place_P)
    order = np.lexsort((place_P, -score_P, query_P))
    return _build_ranking(query_P[order], place_P[order], score_P[order], len(queries_QMD), num_places)


def interpolate(ranking: Ranking, queries_QMD: Floats, database: Fingerprints) -> Ranking:
    """Return the ranking of `rescore` with the time of each place moved to between places.

    The parabola goes through the score of the place and those of the places before and after it; its top is where the
    query begins. A place whose neighbour leaves the track, or scores higher than itself, stays where it is.
    """
    num_segments = queries_QMD.shape[1]
    first = database.first_vector
    query_P, rank_P = np.nonzero(ranking.places_QR >= 0)
    place_P = ranking.places_QR[query_P, rank_P]
    track_P = database.track_row_of(place_P)
    inner_P = (place_P > first[track_P]) & (place_P + num_segments < first[track_P + 1])
    query_P, rank_P, place_P = query_P[inner_P], rank_P[inner_P], place_P[inner_P]
    before_P, after_P = (_score_places(queries_QMD, database, query_P, place_P + step) for step in (-1, 1))
    here_P = ranking.scores_QR[query_P, rank_P]
    is_top_P = (here_P >= before_P) & (here_P >= after_P)
    shift_QR = np.zeros(ranking.places_QR.shape, dtype=np.float32)
    shift_QR[query_P, rank_P] = np.where(is_top_P, vertex(before_P, here_P, after_P), 0)
    return replace(ranking, shift_QR=shift_QR)


def _score_places(queries_QMD: Floats, database: Fingerprints, query_P: Ints, place_P: Ints) -> Floats:
    """Return the mean inner product (P,) of queries along the sequences that begin at these places of the database."""
    num_queries, num_segments, dim = queries_QMD.shape
    score_P = np.empty(len(place_P), dtype=np.float32)
    if not len(place_P):
        return score_P
    queries_QS = queries_QMD.reshape(num_queries, -1)
    # A sequence is one run of the database, so that a window of M x D numbers every D is all sequences.
    windows_NS = np.lib.stride_tricks.sliding_window_view(database.vectors.reshape(-1), num_segments * dim)[::dim]
    block = max(1, BLOCK_BYTES // queries_QS[:1].nbytes)
    for start in range(0, len(place_P), block):
        some = slice(start, start + block)
        score_P[some] = np.einsum("ps,ps->p", windows_NS[place_P[some]], queries_QS[query_P[some]]) / num_segments
    return score_P


def _count_candidates(neighbours_QMK: Ints, database: Fingerprints) -> tuple[Ints, Ints, Ints]:
    """Return the pairs of a query and a place that its neighbours point to, each once, and how often.

    Only places whose whole sequence is in the track of the neighbour. In the order of query and place.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    track_QMK = database.track_row_of(neighbours_QMK)
    place_QMK = neighbours_QMK - np.arange(num_segments)[:, None]
    first = database.first_vector
    inside: npt.NDArray[np.bool_] = neighbours_QMK >= 0
    inside &= (place_QMK >= first[track_QMK]) & (place_QMK + num_segments <= first[track_QMK + 1])
    num_vectors = max(1, len(database.vectors))
    pair_QMK = np.arange(num_queries)[:, None, None] * num_vectors + place_QMK
    pair_P, times_P = np.unique(pair_QMK[inside], return_counts=True)
    return pair_P // num_vectors, pair_P % num_vectors, times_P


def _build_ranking(query_P: Ints, place_P: Ints, score_P: Floats, num_queries: int, num_places: int) -> Ranking:
    """Return the first places of each query, of pairs that are sorted by query and then best first."""
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    rank_P = np.arange(len(query_P)) - np.searchsorted(query_P, query_P)
    kept = rank_P < num_places
    places_QR[query_P[kept], rank_P[kept]] = place_P[kept]
    scores_QR[query_P[kept], rank_P[kept]] = score_P[kept]
    return Ranking(places_QR, scores_QR)
