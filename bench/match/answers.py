"""From scored places of a query to its answers: one for each alignment of a track, best first.

Shape legend: P places, K kept places, B queries, R ranked answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.values import Floats, Found, Ints


def keep_alignments(row_P: Ints, place_P: Ints, score_P: npt.NDArray[Any], num_kept: int, window: int) -> Ints:
    """Return the numbers (K,) of the best places, best first, at most `num_kept`.

    Of places in one track that are closer than `window` only the best is kept. Equal scores come by row, then by place.
    Scores are compared exactly: integers, or floats that are equal where they should be.
    """
    # A kept place hides at most the places around it, so no other than these can be among the answers.
    enough = num_kept * (2 * window - 1)
    candidate_P = np.arange(len(score_P))
    if len(score_P) > enough:
        candidate_P = np.flatnonzero(score_P >= np.partition(score_P, len(score_P) - enough)[len(score_P) - enough])
    order = np.lexsort((place_P[candidate_P], row_P[candidate_P], -score_P[candidate_P]))
    candidate_P = candidate_P[order]
    kept: list[int] = []
    while len(candidate_P) and len(kept) < num_kept:
        best = int(candidate_P[0])
        kept.append(best)
        is_near_P = (row_P[candidate_P] == row_P[best]) & (np.abs(place_P[candidate_P] - place_P[best]) < window)
        candidate_P = candidate_P[~is_near_P]
    return np.array(kept, dtype=np.int64)


Answer = tuple[Ints, Ints, npt.NDArray[Any]]
"""The answers to one query, best first: rows, starts in samples, scores, each (R,)."""


def answer_each(
    answer: Callable[[Floats, int, int], Answer], wave_BT: Floats, num_answers: int, without_B: Ints | None
) -> Found:
    """Return the answers to all queries, each asked alone as answer(wave_T, num_answers, row to leave out or -1)."""
    row_BR = np.full((len(wave_BT), num_answers), -1, dtype=np.int64)
    start_BR = np.zeros_like(row_BR)
    score_BR = np.full(row_BR.shape, np.nan, dtype=np.float32)
    for query, wave_T in enumerate(wave_BT):
        row_R, start_R, score_R = answer(wave_T, num_answers, -1 if without_B is None else int(without_B[query]))
        row_BR[query, : len(row_R)] = row_R
        start_BR[query, : len(row_R)] = np.maximum(start_R, 0)
        score_BR[query, : len(row_R)] = score_R
    return Found(row_BR, start_BR, score_BR)


def no_answer() -> Answer:
    """Return the answers to a query in which nothing can be heard."""
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
