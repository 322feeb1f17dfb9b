"""The top of a parabola through three values, one step apart: where a peak lies between the places it was looked at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]


def vertex(before: Values, here: Values, after: Values) -> npt.NDArray[np.float64]:
    """Return by how many steps the top lies after `here`, of any shape; 0 where the values do not bend downwards.

    It is within half a step where `here` is the largest of the three. A value that is NaN gives 0.
    """
    before, here, after = (np.asarray(values, dtype=np.float64) for values in (before, here, after))
    bend = before - 2 * here + after
    down = bend < 0
    top: npt.NDArray[np.float64] = np.where(down, 0.5 * (before - after) / np.where(down, bend, 1.0), 0.0)
    return top
