"""Sequence search: from the nearest neighbours of each segment of a query to a ranking of places in the database.

Here and throughout the search, a place is a database vector number c at which a query may start, so that its segment
m lies at c + m. The whole query must fit into one track: all M vectors must be in the track of c.

Shape legend: Q queries, M segments of a query, K neighbours of a segment, R ranked places, P pairs of a
query and a place, S = M x D dimensions of a whole sequence, N database vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bench.parabola import vertex
from bench.values import Fingerprints, Floats, Found, Ints

BLOCK_BYTES = 1 << 20  # of sequences gathered at once: few enough for a processor's cache


@dataclass(frozen=True)
class Ranking:
    """The places found for each query, best first."""

    places_QR: Ints
    """Database vector numbers, -1 after the last place that was found."""

    scores_QR: Floats
    """The share of segments that voted (`vote`) or the mean similarity along the sequence; NaN without a place."""

    shift_QR: Floats | None = None
    """How far after its place a query starts, in hops from -0.5 to 0.5; None without interpolation."""

    ends_QR: Ints | None = None
    """The database vectors at which the last segments lie, -1 without a place; None where they are M - 1 later."""

    def starts(self, database: Fingerprints) -> Ints:
        """Return the estimated start sample of each query in its track (Q, R); undefined where the place is -1."""
        place_QR = np.maximum(self.places_QR, 0)
        start_QR = (place_QR - database.first_vector[database.track_row_of(place_QR)]) * database.hop_samples
        if self.shift_QR is None:
            return start_QR
        return start_QR + np.rint(self.shift_QR * database.hop_samples).astype(np.int64)

    def found(self, database: Fingerprints, segment_samples: int) -> Found:
        """Return the places as answers: tracks and times. A query ends with its last segment, if that was searched for.

        The samples of a query after its last whole segment are not counted.
        """
        row_QR = np.where(self.places_QR >= 0, database.track_row_of(np.maximum(self.places_QR, 0)), -1)
        start_QR = self.starts(database)
        if self.ends_QR is None:
            return Found(row_QR, start_QR, self.scores_QR)
        last_QR = np.maximum(self.ends_QR, 0)
        first_QR = database.first_vector[database.track_row_of(last_QR)]
        end_QR = (last_QR - first_QR) * database.hop_samples + segment_samples
        return Found(row_QR, start_QR, self.scores_QR, end_QR)


def vote(neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places ranked by votes of each segment's nearest neighbour.

    Tracks are ranked by their votes, and the places in a track by how many segments point to them. The earlier of tied
    places wins. For the first place this is the published search without its 50 % rule: the best place is always
    returned, and its share of the votes is the score.
    Source: Singh et al., ISMIR 2022, section 2.6.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    query_P, place_P, votes_P = _count_votes(neighbours_QMK[:, :, 0], database)
    return _build_ranking(query_P, place_P, votes_P / num_segments, num_queries, num_places)


def vote_half(neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return the ranking of `vote` without the places that the published 50 % rule refuses: the search `vote-50`.

    A place remains if at least half of the M vectors of its sequence are nearest neighbours, of any of the segments: a
    query without such a place has no answer, neither time nor track. The paper applies the rule to the time only; the
    track that it names without one is that of `vote`. It leaves open which of several remaining places is the answer;
    here it is the one with most votes (confidence C: our reading).
    Source: Singh et al., ISMIR 2022, section 2.6: "candidate sequence Si, which have at least 50% intersecting
    retrieved indices".
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    nearest_QM = neighbours_QMK[:, :, 0]
    query_P, place_P, votes_P = _count_votes(nearest_QM, database)
    retrieved_P = _count_retrieved(nearest_QM, query_P, place_P, max(1, len(database.vectors)))
    kept_P = 2 * retrieved_P >= num_segments
    query_P, place_P, votes_P = query_P[kept_P], place_P[kept_P], votes_P[kept_P]
    return _build_ranking(query_P, place_P, votes_P / num_segments, num_queries, num_places)


def rescore(queries_QMD: Floats, neighbours_QMK: Ints, database: Fingerprints, num_places: int) -> Ranking:
    """Return places ranked by the mean inner product along the sequence, computed from the original vectors.

    Candidates are all places that any neighbour of any segment points to. The earlier of tied places wins.
    Source: Chang et al. (NAFP), ICASSP 2021, section 3; confined to one track as in NMFP.
    """
    query_P, place_P, _ = _count_candidates(neighbours_QMK, database)
    score_P = _score_places(queries_QMD, database, query_P, place_P)
    order = np.lexsort((place_P, -score_P, query_P))
    return _build_ranking(query_P[order], place_P[order], score_P[order], len(queries_QMD), num_places)


def interpolate(ranking: Ranking, queries_QMD: Floats, database: Fingerprints) -> Ranking:
    """Return the ranking of `rescore` with start times refined to fractions of a hop.

    A parabola goes through the scores of a place and of the places before and after it; the query starts at its top.
    A place at the edge of its track, or with a neighbour that scores higher, keeps its time.
    """
    # 1. Places that have both neighbours in their track.
    num_segments = queries_QMD.shape[1]
    first = database.first_vector
    query_P, rank_P = np.nonzero(ranking.places_QR >= 0)
    place_P = ranking.places_QR[query_P, rank_P]
    track_P = database.track_row_of(place_P)
    inner_P = (place_P > first[track_P]) & (place_P + num_segments < first[track_P + 1])
    query_P, rank_P, place_P = query_P[inner_P], rank_P[inner_P], place_P[inner_P]
    # 2. The top of the parabola, where the place is the highest of the three.
    before_P, after_P = (_score_places(queries_QMD, database, query_P, place_P + step) for step in (-1, 1))
    here_P = ranking.scores_QR[query_P, rank_P]
    is_top_P = (here_P >= before_P) & (here_P >= after_P)
    shift_QR = np.zeros(ranking.places_QR.shape, dtype=np.float32)
    shift_QR[query_P, rank_P] = np.where(is_top_P, vertex(before_P, here_P, after_P), 0)
    return replace(ranking, shift_QR=shift_QR)


def _score_places(queries_QMD: Floats, database: Fingerprints, query_P: Ints, place_P: Ints) -> Floats:
    """Return the mean inner product (P,) of queries along the sequences that start at these places of the database."""
    num_queries, num_segments, dim = queries_QMD.shape
    score_P = np.empty(len(place_P), dtype=np.float32)
    if not len(place_P):
        return score_P
    queries_QS = queries_QMD.reshape(num_queries, -1)
    # The vectors of a sequence are adjacent: windows of M x D numbers, one every D numbers, are all sequences.
    windows_NS = np.lib.stride_tricks.sliding_window_view(database.vectors.reshape(-1), num_segments * dim)[::dim]
    block = max(1, BLOCK_BYTES // queries_QS[:1].nbytes)
    for start in range(0, len(place_P), block):
        rows = slice(start, start + block)
        score_P[rows] = np.einsum("ps,ps->p", windows_NS[place_P[rows]], queries_QS[query_P[rows]]) / num_segments
    return score_P


def _count_candidates(neighbours_QMK: Ints, database: Fingerprints) -> tuple[Ints, Ints, Ints]:
    """Return the distinct pairs of a query and a place that its neighbours point to, and how many point to it.

    Only places whose whole sequence is in the track of the neighbour count. Sorted by query, then by place.
    """
    num_queries, num_segments = neighbours_QMK.shape[:2]
    track_QMK = database.track_row_of(neighbours_QMK)
    place_QMK = neighbours_QMK - np.arange(num_segments)[:, None]
    first = database.first_vector
    inside: npt.NDArray[np.bool_] = neighbours_QMK >= 0
    inside &= (place_QMK >= first[track_QMK]) & (place_QMK + num_segments <= first[track_QMK + 1])
    num_vectors = max(1, len(database.vectors))
    pair_QMK = np.arange(num_queries)[:, None, None] * num_vectors + place_QMK
    pair_P, count_P = np.unique(pair_QMK[inside], return_counts=True)
    return pair_P // num_vectors, pair_P % num_vectors, count_P


def _count_votes(nearest_QM: Ints, database: Fingerprints) -> tuple[Ints, Ints, Ints]:
    """Return pairs of a query and a place, and how many segments point to the place, best first for each query.

    Tracks come by their votes, and the places in a track by theirs.
    """
    query_P, place_P, votes_P = _count_candidates(nearest_QM[:, :, None], database)
    # A segment votes for the track of its neighbour even if the whole sequence would not fit there.
    num_queries, num_tracks = len(nearest_QM), len(database.tracks)
    ballot_QM = np.arange(num_queries)[:, None] * num_tracks + database.track_row_of(nearest_QM)
    track_votes = np.bincount(ballot_QM[nearest_QM >= 0], minlength=num_queries * num_tracks)
    track_votes_P = track_votes[query_P * num_tracks + database.track_row_of(place_P)]
    order = np.lexsort((place_P, -votes_P, -track_votes_P, query_P))
    return query_P[order], place_P[order], votes_P[order]


def _count_retrieved(nearest_QM: Ints, query_P: Ints, place_P: Ints, num_vectors: int) -> Ints:
    """Return how many vectors of the sequence at each place (P,) are the nearest neighbour of any of M segments."""
    retrieved = np.unique((np.arange(len(nearest_QM))[:, None] * num_vectors + nearest_QM)[nearest_QM >= 0])
    first_P = query_P * num_vectors + place_P
    before_P, until_P = (np.searchsorted(retrieved, first_P + later) for later in (0, nearest_QM.shape[1]))
    count_P: Ints = until_P - before_P
    return count_P


def _build_ranking(query_P: Ints, place_P: Ints, score_P: Floats, num_queries: int, num_places: int) -> Ranking:
    """Return the first places of each query, from pairs sorted by query, then best first."""
    places_QR = np.full((num_queries, num_places), -1, dtype=np.int64)
    scores_QR = np.full((num_queries, num_places), np.nan, dtype=np.float32)
    rank_P = np.arange(len(query_P)) - np.searchsorted(query_P, query_P)
    ranked = rank_P < num_places
    places_QR[query_P[ranked], rank_P[ranked]] = place_P[ranked]
    scores_QR[query_P[ranked], rank_P[ranked]] = score_P[ranked]
    return Ranking(places_QR, scores_QR)
