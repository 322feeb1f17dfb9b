"""The best path through a matrix of scores: one lag per moment, where every change of lag costs something.

The cost of a change is its absolute value times a penalty. The best predecessors of a whole row are therefore two
running maxima (Felzenszwalb and Huttenlocher 2012, section 3.1: the distance transform of the absolute value) instead
of a comparison of every lag with every other.

Shape legend: K rows (moments), L states (lags).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.settings import require
from bench.values import Ints

Scores = npt.NDArray[np.floating]


def best_path(score_KL: Scores, penalty: float, max_step: int | None = None) -> Ints:
    """Return the state of each row, shape (K,), whose sum of scores - penalty * |change of state| is largest.

    `penalty` is that of a change by one state: the penalty per second times the seconds between two lags.
    `max_step` is the largest change from one row to the next, None for no limit. A score of -inf forbids a state.
    Among equal predecessors the nearest wins (then the lower), among equal ends the lowest.
    Cost: time O(K L); memory one float64 copy of the scores.
    Raises: ConfigError if the penalty or the step is below 0.
    """
    require(penalty >= 0, "the penalty of a path must be >= 0", penalty)
    require(max_step is None or max_step >= 0, "the largest step of a path must be >= 0", max_step)
    num_rows, num_states = score_KL.shape
    if not num_rows:
        return np.zeros(0, dtype=np.int64)
    reach = num_states - 1 if max_step is None else min(max_step, num_states - 1)
    # 1. Forwards: best_KL becomes the score of the best path that ends in each state.
    best_KL = score_KL.astype(np.float64)
    for row in range(1, num_rows):
        best_KL[row] += _from_before(best_KL[row - 1], penalty, reach)
    # 2. Backwards from the best end.
    path_K = np.empty(num_rows, dtype=np.int64)
    path_K[-1] = best_KL[-1].argmax()
    for row in range(num_rows - 2, -1, -1):
        path_K[row] = _predecessor(best_KL[row], int(path_K[row + 1]), penalty, reach)
    return path_K


def _from_before(best_L: Scores, penalty: float, reach: int) -> Scores:
    """Return for each state the maximum of value minus cost of the change, over states at most `reach` away."""
    cost_L = penalty * np.arange(len(best_L))
    below_L = _running_maximum(best_L + cost_L, reach) - cost_L
    above_L = _running_maximum((best_L - cost_L)[::-1], reach)[::-1] + cost_L
    return np.maximum(below_L, above_L)


def _running_maximum(value_L: Scores, reach: int) -> Scores:
    """Return the maximum of each value and the `reach` values before it."""
    if reach >= len(value_L) - 1:
        whole: Scores = np.maximum.accumulate(value_L)
        return whole
    from scipy.ndimage import maximum_filter1d

    size = reach + 1
    # The filter is centred; this origin moves its window to end at the value itself.
    maximum_L: Scores = maximum_filter1d(value_L, size, mode="constant", cval=-np.inf, origin=(size - 1) // 2)
    return maximum_L


def _predecessor(best_L: Scores, state: int, penalty: float, reach: int) -> int:
    """Return the state of the previous row: recomputed instead of stored, as one predecessor per row is cheap."""
    first = max(0, state - reach)
    change_L = np.abs(np.arange(first, min(len(best_L), state + reach + 1)) - state)
    value_L = best_L[first : first + len(change_L)] - penalty * change_L
    tied = np.flatnonzero(value_L == value_L.max())
    return first + int(tied[change_L[tied].argmin()])
