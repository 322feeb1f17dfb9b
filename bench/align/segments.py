"""Which peaks of a pair's correlations belong to one clock, and where that clock jumps.

A chain of peaks is found by dynamic programming: from window to window its lag changes no faster than a clock's, or it
jumps, at a cost, as where a recorder lost or inserted samples. A chance peak has no neighbours on such a line.

Shape legend: W windows, P peaks of a window, N = W x P peaks in all, K peaks of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bench.align.contract import Seconds
from bench.align.waves import WINDOW_S, WindowPeaks

CHANCE_HEIGHT = 7.0  # deviations: highest peaks of unrelated sound reach about nine
MOST_GAIN = 40.0  # of one peak: a loud moment does not outweigh all others
JUMP_COST = 15.0
LEAST_JUMP_S = 0.005  # what is smaller is the imprecision of a peak, or a drift
PEAK_S = 0.0006  # imprecision of a peak of a narrow-band sound
LEAST_GAIN = 12.0  # of a segment
LONE_GAIN, LONE_RATIO = 12.0, 1.5  # of one within a window: its highest gain, and that height over the next peak's
BESIDE_S = 0.005  # farther than this from the chain a peak says that the sound repeats itself
BIN_S = 0.001


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of a pair with one clock: the times (K,) of its windows, their lags and gains (K,)."""

    time0_K: Seconds
    lag_K: Seconds
    gain_K: npt.NDArray[np.float64]

    repetition: float
    """The gain of the best other lag as a share of this one's: near 1 where the sound repeats itself exactly."""

    @property
    def gain(self) -> float:
        """Return the sum of the gains."""
        return float(self.gain_K.sum())


def find_segments(peaks: WindowPeaks, max_drift: float) -> list[Segment]:
    """Return the segments of the best chain of peaks, in order of time; none where the recordings share no sound.

    `max_drift` is the largest change of the lag per second. Cost: N^2 comparisons, vectorised.
    """
    time_N = np.repeat(peaks.time0_W, peaks.lag_WP.shape[1])
    lag_N, height_N = peaks.lag_WP.reshape(-1), np.abs(peaks.height_WP.reshape(-1))
    gain_N = np.clip(height_N - CHANCE_HEIGHT, 0, MOST_GAIN)
    chain = _best_chain(time_N, lag_N, gain_N, max_drift)
    segments = []
    for part in _split_at_jumps(time_N, lag_N, chain, max_drift):
        segment = Segment(time_N[part], lag_N[part], gain_N[part], _repetition(peaks, time_N[part], lag_N[part]))
        if _is_believable(segment, peaks):
            segments.append(segment)
    return segments


def _best_chain(time_N: Seconds, lag_N: Seconds, gain_N: npt.NDArray[np.float64], max_drift: float) -> list[int]:
    """Return the numbers of the peaks of the best chain, in order of time."""
    usable = np.flatnonzero(gain_N > 0)
    score, before = gain_N.copy(), np.full(len(gain_N), -1)
    for number, n in enumerate(usable.tolist()):
        earlier = usable[:number]
        earlier = earlier[time_N[earlier] < time_N[n]]
        if not len(earlier):
            continue
        passed_s, change_s = time_N[n] - time_N[earlier], lag_N[n] - lag_N[earlier]
        cost = np.where(_is_steady(passed_s, change_s, max_drift), 0.0, JUMP_COST)
        is_possible = (cost == 0) | ((np.abs(change_s) >= LEAST_JUMP_S) & (passed_s + change_s > -WINDOW_S))
        value = np.where(is_possible, score[earlier] - cost, -np.inf)
        best = int(value.argmax())
        if value[best] > 0:
            score[n], before[n] = gain_N[n] + value[best], earlier[best]
    chain: list[int] = []
    n = int(score.argmax()) if len(usable) else -1
    while n >= 0:
        chain.append(n)
        n = int(before[n])
    return chain[::-1]


def _is_steady(passed_s: Seconds, change_s: Seconds, max_drift: float) -> npt.NDArray[np.bool_]:
    steady: npt.NDArray[np.bool_] = np.abs(change_s) <= max_drift * passed_s + PEAK_S
    return steady


def _split_at_jumps(time_N: Seconds, lag_N: Seconds, chain: list[int], max_drift: float) -> list[list[int]]:
    parts: list[list[int]] = [chain[:1]] if chain else []
    for n, following in pairwise(chain):
        passed_s, change_s = time_N[[following]] - time_N[n], lag_N[[following]] - lag_N[n]
        if _is_steady(passed_s, change_s, max_drift)[0]:
            parts[-1].append(following)
        else:
            parts.append([following])
    return parts


def _repetition(peaks: WindowPeaks, time_K: Seconds, lag_K: Seconds) -> float:
    """Return the gain of the best constant shift of a segment's lags as a share of its own."""
    window = np.searchsorted(peaks.time0_W, time_K)
    beside_KP = peaks.lag_WP[window] - lag_K[:, None]
    height_KP = np.abs(peaks.height_WP[window])
    own = np.clip(height_KP.max(axis=1), CHANCE_HEIGHT, None).sum()
    is_other = (np.abs(beside_KP) > BESIDE_S) & (height_KP > 0)
    if not is_other.any() or len(time_K) < 2:
        return 0.0
    bins = np.rint(beside_KP[is_other] / BIN_S).astype(np.int64)
    _, member = np.unique(bins, return_inverse=True)
    sums = np.bincount(member, weights=height_KP[is_other])
    return float(sums.max() / own)


def _is_believable(segment: Segment, peaks: WindowPeaks) -> bool:
    """Return whether a segment is more than chance: it has peaks of windows that do not overlap, or one high peak."""
    if segment.time0_K[-1] - segment.time0_K[0] >= WINDOW_S:
        return segment.gain >= LEAST_GAIN
    highest = int(segment.gain_K.argmax())
    window = np.searchsorted(peaks.time0_W, segment.time0_K[highest])
    beside_P = np.abs(peaks.lag_WP[window] - segment.lag_K[highest]) > BESIDE_S
    next_height = float(np.where(beside_P, np.abs(peaks.height_WP[window]), 0).max(initial=0.0))
    gain = float(segment.gain_K[highest])
    return gain >= LONE_GAIN and gain + CHANCE_HEIGHT >= LONE_RATIO * next_height
