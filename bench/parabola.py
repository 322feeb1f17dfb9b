"""Finds a peak between samples, as the vertex of the parabola through three equally spaced values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]


def vertex(before: Values, here: Values, after: Values) -> npt.NDArray[np.float64]:
    """Return the offset of the maximum from `here`, in steps; 0 where the three values do not curve downwards.

    Shapes: any, the same for all three. The offset is within half a step where `here` is the largest of the three.
    A NaN gives 0.
    """
    before, here, after = (np.asarray(values, dtype=np.float64) for values in (before, here, after))
    curvature = before - 2 * here + after
    has_peak = curvature < 0
    offset: npt.NDArray[np.float64] = np.where(
        has_peak, 0.5 * (before - after) / np.where(has_peak, curvature, 1.0), 0.0
    )
    return offset
