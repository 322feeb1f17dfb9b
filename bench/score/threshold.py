"""Accept or reject: how well a place must match before it is given as an answer.

A query of something that is not in the database has a best place all the same. Its score, an impostor's, says how
high the score of an answer has to be. In an evaluation the impostor of a query is the best place outside its own
track, which costs no queries of their own and is exact (`bench.search.diagonal`).

Shape legend: Q queries.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.values import Floats

FALSE_ACCEPTS = 0.01  # of impostors, wanted


def threshold(impostor_Q: Floats, false_accepts: float = FALSE_ACCEPTS) -> float:
    """Return the lowest score to accept at which at most this share of impostors is accepted.

    An impostor that is NaN found no place at all, and is never accepted. Of n impostors floor(n x share) may be:
    with fewer than 1 / share of them none is. Infinite, so that nothing is accepted, where there is no impostor.
    """
    score_Q = np.sort(np.where(np.isnan(impostor_Q), -np.inf, impostor_Q))[::-1]
    allowed = int(len(score_Q) * false_accepts)
    if not len(score_Q):
        return np.inf
    if allowed >= len(score_Q):
        return -np.inf
    return float(np.nextafter(np.float32(score_Q[allowed]), np.float32(np.inf)))


def cross_fit_thresholds(hits: pd.DataFrame, false_accepts: float = FALSE_ACCEPTS) -> pd.Series:
    """Return for each hit the threshold that the other half of the queries gives at its query length.

    Half by the query's number, even or odd: no query helps to set the threshold that it is judged by. All
    conditions are pooled, as a system that is asked does not know how noisy the question is.
    Columns used: query, length_s, index, sequence, impostor_score; no label of a row may occur twice.
    """
    limits = pd.Series(np.inf, index=hits.index)
    for _, some in hits.groupby(["length_s", "index", "sequence"]):
        even = some["query"] % 2 == 0
        for half, other in ((some[even], some[~even]), (some[~even], some[even])):
            limits[half.index] = threshold(other["impostor_score"].to_numpy(np.float32), false_accepts)
    return limits
