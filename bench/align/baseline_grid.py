"""The grid of straight lines that the challenge's baselines of 2025 choose from, and the best choice there is.

    time1 = clip(slope * time0 + offset, 0, duration)

Ten offsets times ten slopes; only lines that stay within the largest lag are candidates: 70 of 100 at 115 s. The grid
has no offset of 0 and no slope of 1, and its offsets are 1.11 s apart, so that an aligner that chooses from it is at
best as good as the `oracle`.

Shape legend: O offsets, S slopes, C candidates, K keypoints, T samples, B windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.values import RATE_HZ, Floats, Ints

NUM_OFFSETS = 10
NUM_SLOPES = 10
ROUNDING_S = 1e-9  # tolerance, as the outermost lines touch the largest lag


def candidates(time0_K: Seconds, duration_s: float, max_lag_s: float) -> Seconds:
    """Return the times in channel 1 by each candidate, shape (C, K), ordered by offset, then by slope.

    `duration_s` is that of channel 0: in the challenge both channels are in one file. Falling lines (possible in a
    recording shorter than the largest lag) are left out; at least one line remains.
    DEVIATION: offsets and slopes span the largest lag of the set instead of always 5 s: for a set that guarantees
    0.5 s, offsets in steps of 1.11 s would hold no right answer.
    Source: code of the challenge's baselines, 2025.
    """
    offset_O = np.linspace(-max_lag_s, max_lag_s, NUM_OFFSETS)
    steepest = max_lag_s / max(duration_s, 1 / RATE_HZ)
    slope_S = np.linspace(1 - steepest, 1 + steepest, NUM_SLOPES)
    slope_S = slope_S[slope_S > 0]
    line_OSK = slope_S[None, :, None] * time0_K + offset_O[:, None, None]
    time1_CK: Seconds = line_OSK.clip(0, duration_s).reshape(NUM_OFFSETS * len(slope_S), len(time0_K))
    farthest_C = np.abs(time1_CK - time0_K).max(axis=1, initial=0.0)
    within_CK: Seconds = time1_CK[farthest_C <= max_lag_s + ROUNDING_S]
    return within_CK


def usable_mask(time1_K: Seconds) -> npt.NDArray[np.bool_]:
    """Return which times of lines (..., K) count: the baselines leave out times that clipping made equal.

    Of a run of equal times at either end, the innermost one counts.
    """
    leading_K, trailing_K = time1_K == time1_K[..., :1], time1_K == time1_K[..., -1:]
    used_K = np.ones(time1_K.shape, dtype=bool)
    used_K[..., :-1] &= ~(leading_K[..., :-1] & leading_K[..., 1:])
    used_K[..., 1:] &= ~(trailing_K[..., 1:] & trailing_K[..., :-1])
    return used_K


def oracle(time0_K: Seconds, time1_K: Seconds, duration_s: float, max_lag_s: float) -> Seconds:
    """Return the times in channel 1 by the candidate with the least squared error, shape (K,): the best of the grid."""
    time1_CK = candidates(time0_K, duration_s, max_lag_s)
    best: Seconds = time1_CK[np.square(time1_CK - time1_K).mean(axis=1).argmin()]
    return best


def mean_prominence(score_C: Seconds, chosen: int) -> float:
    """Return a confidence from 0 to 1: how far the chosen score is on the way from the mean of all to 1, the best."""
    mean = float(score_C.mean())
    return float(np.clip((score_C[chosen] - mean) / max(1 - mean, np.finfo(np.float64).eps), 0, 1))


def windows(wave_T: Floats, start_B: Ints, num_samples: int) -> Floats:
    """Return the windows of a recording that start at these samples, shape (B, num_samples); silence beyond its ends.

    Samples that are not finite become silence too: they would spoil everything computed from them.
    """
    window_BT = np.zeros((len(start_B), num_samples), dtype=np.float32)
    for row, start in enumerate(start_B.tolist()):
        begin, end = max(start, 0), min(start + num_samples, len(wave_T))
        if begin < end:
            window_BT[row, begin - start : end - start] = wave_T[begin:end]
    return np.nan_to_num(window_BT, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
