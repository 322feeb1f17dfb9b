"""The best path through scores of lags: one lag for each row, changes of lag paid for.

The cost of a change is its absolute value times a penalty, so that a row's best predecessors come from two running
maxima (Felzenszwalb and Huttenlocher 2012, section 3.1: the distance transform of the absolute value) and not from a
comparison of every lag with every other.

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

    `penalty` is that of a change by one state: a penalty for each second times the seconds between two lags.
    `max_step` is the largest change from a row to the next, None if any is allowed. A score of -inf forbids a state.
    Of equal predecessors the nearest is taken (then the lower), of equal ends the lowest.
    Cost: time O(K L); memory a float64 copy of the scores.
    Raises: ConfigError if the penalty or the step is below 0.
    """
    require(penalty >= 0, "the penalty of a path must be >= 0", penalty)
    require(max_step is None or max_step >= 0, "the largest step of a path must be >= 0", max_step)
    num_rows, num_states = score_KL.shape
    if not num_rows:
        return np.zeros(0, dtype=np.int64)
    reach = num_states - 1 if max_step is None else min(max_step, num_states - 1)
    best_KL = score_KL.astype(np.float64)  # a copy: of the best path to each state, from the second row on
    for row in range(1, num_rows):
        best_KL[row] += _from_before(best_KL[row - 1], penalty, reach)
    path_K = np.empty(num_rows, dtype=np.int64)
    path_K[-1] = best_KL[-1].argmax()
    for row in range(num_rows - 2, -1, -1):
        path_K[row] = _predecessor(best_KL[row], int(path_K[row + 1]), penalty, reach)
    return path_K


def _from_before(best_L: Scores, penalty: float, reach: int) -> Scores:
    """Return for each state the maximum over states at most `reach` away of their value less the cost of the change."""
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
    found: Scores = maximum_filter1d(value_L, size, mode="constant", cval=-np.inf, origin=(size - 1) // 2)
    return found


def _predecessor(best_L: Scores, state: int, penalty: float, reach: int) -> int:
    """Return the state of the row before: no pointers are kept, for one row of them is cheap to find again."""
    first = max(0, state - reach)
    change_L = np.abs(np.arange(first, min(len(best_L), state + reach + 1)) - state)
    value_L = best_L[first : first + len(change_L)] - penalty * change_L
    equal = np.flatnonzero(value_L == value_L.max())
    return first + int(equal[change_L[equal].argmin()])
