"""The candidates of the challenge's baselines of 2025, all straight lines, and the best that any choice of one can do.

    time1 = clip(slope * time0 + offset, 0, duration)

Ten offsets and ten slopes, of which those are kept that never leave the largest lag: 70 of 100 at 115 s. Neither no
offset nor a slope of 1 is among them, and offsets are 1.11 s apart: whoever chooses among these is at best as good
as the `oracle`.

Shape legend: O offsets, S slopes, C candidates, K keypoints, T samples, B windows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.values import RATE_HZ, Floats, Ints

NUM_OFFSETS = 10
NUM_SLOPES = 10
ROUNDING_S = 1e-9  # the outermost lines touch the largest lag


def candidates(time0_K: Seconds, duration_s: float, max_lag_s: float) -> Seconds:
    """Return the times in channel 1 by each candidate, shape (C, K), offset by offset, and within each by slope.

    `duration_s` is that of channel 0: in the challenge both are of one file. Lines that fall (in a recording shorter
    than the largest lag) are left out; at least one line remains.
    DEVIATION: offsets and slopes span the largest lag of the set, which is 5 s in the baseline; for a set that
    promises 0.5 s a step of 1.11 s would hold no right answer.
    Source: code of the challenge's baselines, 2025.
    """
    offset_O = np.linspace(-max_lag_s, max_lag_s, NUM_OFFSETS)
    steepest = max_lag_s / max(duration_s, 1 / RATE_HZ)
    slope_S = np.linspace(1 - steepest, 1 + steepest, NUM_SLOPES)
    slope_S = slope_S[slope_S > 0]
    line_OSK = slope_S[None, :, None] * time0_K + offset_O[:, None, None]
    time1_CK: Seconds = line_OSK.clip(0, duration_s).reshape(NUM_OFFSETS * len(slope_S), len(time0_K))
    farthest_C = np.abs(time1_CK - time0_K).max(axis=1, initial=0.0)
    kept: Seconds = time1_CK[farthest_C <= max_lag_s + ROUNDING_S]
    return kept


def usable_mask(time1_K: Seconds) -> npt.NDArray[np.bool_]:
    """Say of each time of lines (..., K) whether it is used: the baselines leave out what clipping made equal.

    Of a run of equal times at either end the innermost is kept.
    """
    leading_K, trailing_K = time1_K == time1_K[..., :1], time1_K == time1_K[..., -1:]
    used_K = np.ones(time1_K.shape, dtype=bool)
    used_K[..., :-1] &= ~(leading_K[..., :-1] & leading_K[..., 1:])
    used_K[..., 1:] &= ~(trailing_K[..., 1:] & trailing_K[..., :-1])
    return used_K


def oracle(time0_K: Seconds, time1_K: Seconds, duration_s: float, max_lag_s: float) -> Seconds:
    """Return the times in channel 1 by the candidate with the least squared error, shape (K,): the grid's floor."""
    time1_CK = candidates(time0_K, duration_s, max_lag_s)
    best: Seconds = time1_CK[np.square(time1_CK - time1_K).mean(axis=1).argmin()]
    return best


def mean_prominence(score_C: Seconds, chosen: int) -> float:
    """Return a confidence: how far the chosen score is from the mean of all to 1, the best there can be; 0 to 1."""
    mean = float(score_C.mean())
    return float(np.clip((score_C[chosen] - mean) / max(1 - mean, np.finfo(np.float64).eps), 0, 1))


def windows(wave_T: Floats, first_B: Ints, num_samples: int) -> Floats:
    """Return what a recording holds from these samples on, shape (B, num_samples), silence where it has none.

    Samples that are not finite are silence too: they would spoil all that is computed with them.
    """
    cut_BT = np.zeros((len(first_B), num_samples), dtype=np.float32)
    for row, first in enumerate(first_B.tolist()):
        begin, end = max(first, 0), min(first + num_samples, len(wave_T))
        if begin < end:
            cut_BT[row, begin - first : end - first] = wave_T[begin:end]
    return np.nan_to_num(cut_BT, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
