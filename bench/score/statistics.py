"""Intervals. A share comes with Wilson's interval; any other mean with a bootstrap's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054  # standard normal quantile at 0.975
RESAMPLES = 2_000


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share hits / n, within [0, 1]; (0, 1) for n = 0.

    Why not Wald: at a share of 0 or 1 Wald's interval has no width. Source: Wilson 1927, equation 4.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = hits / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At 0 and n the formula gives the bound itself, but for rounding.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == n else centre + half)


def bootstrap_mean(values: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of a mean, from a fixed seed; (nan, nan) of nothing."""
    if len(values) == 0:
        return math.nan, math.nan
    # A resample is how often each distinct value is drawn: few values, so ten thousand queries cost no more than ten.
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    means = drawn @ distinct / len(values)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
