"""Lags that a pair may have: chains of correlation peaks that one clock explains, with its jumps.

A chain is found by dynamic programming: from window to window its lag changes no faster than a clock's, or it jumps, at
a cost, as where a recorder lost or inserted samples. Which of them are true is for `bench.align.evidence` to say.

Shape legend: W windows, P peaks of a window, N = W x P peaks in all, K peaks of a candidate.
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


@dataclass(frozen=True, eq=False)
class Candidate:
    """A stretch of a pair with one clock: the times (K,) of its windows, their lags and gains (K,)."""

    time0_K: Seconds
    lag_K: Seconds
    gain_K: npt.NDArray[np.float64]


def find_candidates(peaks: WindowPeaks, max_drift: float, chains: int = 1) -> list[Candidate]:
    """Return the candidates of the best chains of peaks, each in order of time; none where no peak is high.

    Each chain is found without the peaks of those before it. `max_drift` is the largest change of the lag per second.
    Cost: N^2 comparisons for each chain, vectorised.
    """
    time_N = np.repeat(peaks.time0_W, peaks.lag_WP.shape[1])
    lag_N, height_N = peaks.lag_WP.reshape(-1), np.abs(peaks.height_WP.reshape(-1))
    gain_N = np.clip(height_N - CHANCE_HEIGHT, 0, MOST_GAIN)
    candidates = []
    for _ in range(chains):
        chain = _best_chain(time_N, lag_N, gain_N, max_drift)
        for part in _split_at_jumps(time_N, lag_N, chain, max_drift):
            candidates.append(Candidate(time_N[part], lag_N[part], gain_N[part]))
        gain_N[chain] = 0
    return candidates


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
