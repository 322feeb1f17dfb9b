"""Counts how many prints of a query agree on one place of one track: hits in, the best alignments out.

A hit says that a print of the query equals one of the database. Hits of a true match agree on the offset, the time in
the track minus the time in the query; chance hits are scattered. Times and offsets are integers in any one unit.

Shape legend: H hits, R tracks (rows), U distinct places, A alignments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.match.answers import keep_alignments
from bench.values import Ints


@dataclass(frozen=True)
class Alignments:
    """Places of tracks that prints agree on, best first; equal ones by row, then by offset."""

    row_A: Ints

    offset_A: npt.NDArray[np.float64]
    """The mean offset of the hits within the window: where in the track the query starts."""

    count_A: Ints
    """How many distinct prints of the query have a hit within the window."""

    score_A: npt.NDArray[np.float64]
    """The count, plus the preference of the track."""


def rows_of(position_H: Ints, first_R: Ints) -> tuple[Ints, Ints]:
    """Return the row and the time in its track of each global position, both (H,).

    Row r has the positions from first_R[r] up to first_R[r + 1], so that `first_R` has one more element than rows.
    """
    row_H = np.searchsorted(first_R, position_H, side="right") - 1
    return row_H, position_H - first_R[row_H]


def find_alignments(
    print_H: Ints,
    row_H: Ints,
    offset_H: Ints,
    window: int,
    num_answers: int,
    preference_R: npt.NDArray[np.float64] | None = None,
) -> Alignments:
    """Return at most `num_answers` alignments, no two of which share a hit: in one track they are over 2 windows apart.

    `print_H` numbers the prints of the query. The count at a place is that of the distinct prints with a hit at most
    `window` away from it, and places are counted where there is a hit. Of equal counts the track with the higher
    preference comes first, a number of each row below 1; by default none is preferred. Cost: sorting the hits twice.
    """
    if not len(row_H):
        return Alignments(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64), np.empty(0))
    # One number for row and offset. The gap between rows is wider than what can be seen from a place.
    lowest = int(offset_H.min())
    span = int(offset_H.max()) - lowest + 2 * window + 1
    place_H = row_H * span + (offset_H - lowest)
    sorted_H = np.sort(place_H)
    place_U = np.unique(sorted_H)
    count_U = _count_prints(print_H, place_H, place_U, window)
    score_U = count_U if preference_R is None else count_U + preference_R[place_U // span]
    chosen_A = keep_alignments(place_U // span, place_U % span, score_U, num_answers, 2 * window + 1)
    place_A = place_U[chosen_A]
    first_A = np.searchsorted(sorted_H, place_A - window, side="left")
    end_A = np.searchsorted(sorted_H, place_A + window, side="right")
    sum_H = np.append(0, np.cumsum(sorted_H % span + lowest))
    mean_A = (sum_H[end_A] - sum_H[first_A]) / (end_A - first_A)
    return Alignments(place_A // span, mean_A, count_U[chosen_A], score_U[chosen_A].astype(np.float64))


def _count_prints(print_H: Ints, place_H: Ints, place_U: Ints, window: int) -> Ints:
    """Return how many distinct prints have a hit within the window around each place, shape (U,).

    A hit is seen from the places around it; where those of one print overlap, the earlier hit's end before the later's.
    """
    order_H = np.lexsort((place_H, print_H))
    print_H, place_H = print_H[order_H], place_H[order_H]
    first_H, end_H = place_H - window, place_H + window + 1
    is_same_H = print_H[1:] == print_H[:-1]
    end_H[:-1] = np.where(is_same_H, np.minimum(end_H[:-1], first_H[1:]), end_H[:-1])
    begun_U = np.searchsorted(np.sort(first_H), place_U, side="right")
    over_U = np.searchsorted(np.sort(end_H), place_U, side="right")
    return begun_U - over_U
