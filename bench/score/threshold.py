"""Accept or reject: the threshold that the score of a place must reach to be returned as an answer.

A query that is not in the database still has a best place. Such a place is an impostor, and its score shows how high
the score of an answer has to be. In an evaluation, the impostor of a query is the best place outside its track, which
needs no additional queries and is exact (`bench.search.diagonal`).

Shape legend: Q queries.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.values import Floats

FALSE_ACCEPTS = 0.01  # target share of accepted impostors


def threshold(impostor_Q: Floats, false_accepts: float = FALSE_ACCEPTS) -> float:
    """Return the lowest threshold that accepts at most this share of impostors.

    An impostor of NaN found no place, and is never accepted. Of n impostors at most floor(n x share) are accepted, so
    none of fewer than 1 / share. Without impostors the threshold is infinite and accepts nothing.
    """
    score_Q = np.sort(np.where(np.isnan(impostor_Q), -np.inf, impostor_Q))[::-1]
    allowed = int(len(score_Q) * false_accepts)
    if not len(score_Q):
        return np.inf
    if allowed >= len(score_Q):
        return -np.inf
    return float(np.nextafter(np.float32(score_Q[allowed]), np.float32(np.inf)))


def cross_fit_thresholds(hits: pd.DataFrame, false_accepts: float = FALSE_ACCEPTS) -> pd.Series:
    """Return a cross-fitted threshold for each hit: calibrated on the other half of the queries of its length.

    The halves are queries of even and odd number, so that no query contributes to the threshold that is applied to it.
    All conditions are pooled, as a deployed system does not know how noisy a query is.
    Columns used: query, length_s, index, sequence, impostor_score; row labels must be unique.
    """
    thresholds = pd.Series(np.inf, index=hits.index)
    for _, group in hits.groupby(["length_s", "index", "sequence"]):
        even = group["query"] % 2 == 0
        for applied, other in ((group[even], group[~even]), (group[~even], group[even])):
            thresholds[applied.index] = threshold(other["impostor_score"].to_numpy(np.float32), false_accepts)
    return thresholds
