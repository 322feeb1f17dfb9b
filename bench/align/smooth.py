"""A smooth curve through lags that were measured one by one, some of them wrongly.

Shape legend: K knots, evenly spaced.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.score.statistics import MAD_TO_DEVIATION

ROUNDS = 10  # of reweighting
HUBER = 1.35  # deviations beyond which the pull of a residual no longer grows
LEAST_SCALE_S = 5e-5  # lower limit of the deviation, below a sample
LEAST_RESIDUAL_S = 1e-12  # avoids division by zero


def smooth(lag_K: Seconds, weight_K: Seconds, spacing_s: float, period_s: float) -> Seconds:
    """Return the curve (K,) that bends little and follows the lags where their weights are high.

    Minimises sum w (lag - curve)^2 + (period / (2 pi spacing))^4 sum (second difference of the curve)^2. With
    weights of 1 the curve keeps half the amplitude of a swing of `period_s`, and more of slower ones. Outliers are
    weighted down iteratively with Huber's weights. Where weights are 0 the curve is straight. Time and memory are
    linear in K.
    Source: Whittaker 1923; Eilers, A perfect smoother, 2003; Huber 1964.
    """
    if len(lag_K) < 3 or (weight_K > 0).sum() < 2:  # a straight line needs two
        mean = np.average(lag_K, weights=weight_K) if (weight_K > 0).any() else lag_K.mean()
        return np.full(len(lag_K), mean)
    stiffness = (period_s / (2 * math.pi * spacing_s)) ** 4
    robust_weight_K = weight_K
    curve_K = _solve(lag_K, robust_weight_K, stiffness)
    for _ in range(ROUNDS):
        residual_K = np.abs(lag_K - curve_K)
        scale_s = max(LEAST_SCALE_S, MAD_TO_DEVIATION * _weighted_median(residual_K, weight_K))
        robust_weight_K = weight_K * np.minimum(1.0, HUBER * scale_s / np.maximum(residual_K, LEAST_RESIDUAL_S))
        curve_K = _solve(lag_K, robust_weight_K, stiffness)
    return curve_K


def _solve(lag_K: Seconds, weight_K: Seconds, stiffness: float) -> Seconds:
    """Return the curve at the minimum, from a symmetric linear system with five diagonals."""
    from scipy.linalg import solveh_banded

    difference = np.array([1.0, -2.0, 1.0])
    size = len(lag_K)
    upper = np.zeros((3, size))  # row 2 is the diagonal, row 1 the one above it, row 0 the next
    for shift in range(3):
        for i in range(3 - shift):
            upper[2 - shift, i + shift : size - 2 + i + shift] += stiffness * difference[i] * difference[i + shift]
    upper[2] += weight_K
    solved: Seconds = solveh_banded(upper, weight_K * lag_K)
    return solved


def _weighted_median(value_K: Seconds, weight_K: npt.NDArray[np.float64]) -> float:
    order_K = np.argsort(value_K)
    cumulative_K = np.cumsum(weight_K[order_K])
    return float(value_K[order_K[np.searchsorted(cumulative_K, cumulative_K[-1] / 2)]])
