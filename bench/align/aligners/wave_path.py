"""The aligner of `bench align`: lags from the waves over the whole overlap, with jumps; fingerprints where waves fail.

1. Windows of the shorter recording are correlated with the whole other one, at every lag, and then more densely near
   the best chain of their peaks (`bench.align.waves`). Chains of peaks on a clock's line are candidates
   (`bench.align.candidates`).
2. Each second is compared at the lag of each candidate, and a clock that rarely jumps decides which one it has
   (`bench.align.evidence`). The confidence is the probability of that.
3. Each stretch of one candidate is refined to a fraction of a sample (`bench.align.refine`), and each jump between two
   is placed (`bench.align.stretches`).
4. Where the waves say nothing at all, `fingerprint-path` answers, at a confidence below one half: its lags may be off
   by a hop.

The recordings are put in one order first, so that the answer does not depend on which of them is named first.
docs/metrics-alignment.md has the measured reliability.

Shape legend: K knots, C candidates, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bench.align.aligners import fingerprint_path
from bench.align.candidates import LEAST_JUMP_S, Candidate, find_candidates
from bench.align.contract import SPACING_S, Pair, PairEmbedder, Seconds, TimeMap
from bench.align.evidence import gather_evidence
from bench.align.refine import Correlogram, correlate_along, interpolate_peak
from bench.align.smooth import smooth
from bench.align.stretches import Stretch, cut_stretches, join
from bench.align.waves import Whitened, WindowPeaks, search_everywhere, search_near, spread_windows, whiten
from bench.settings import require
from bench.values import RATE_HZ, Ints, Progress

CITE = ""
LICENSE = "MIT"
SOURCE = "defined by this project"
NEEDS_ENCODER = True

ANCHORS = 48  # most windows that are searched at every lag
ANCHOR_SPACING_S = 4.0
SPACING_NEAR_S = 2.0
REACH_S = 0.5  # searched around the lags of the best chain
CHAINS = 3  # of peaks, whose parts between jumps are candidates
MOST_CANDIDATES = 12
LEAST_SPAN_S = 20.0  # of a candidate whose drift is known beyond its peaks
STEADY_JUMPS, STEADY_SHARE = 3, 0.5  # from that many jumps on, mostly one way, they may be a drift
ROUGH_REACH_S, ROUGH_BLUR_S, FINE_REACH_S = 0.004, 0.001, 0.0015  # of both passes of the refinement
FINE_WINDOW_S = 4.0
CLEARLY = 1.2  # by how much reversed waves must match better for the polarity to be told as reversed
LEAST_HEIGHT = 4.0  # of a second whose lag counts in the curve before the refinement,
LEAST_WEIGHT = 0.01  # and the weight of the others
STANDS_OUT = 5.5  # deviations from which on a peak is not chance, within the reach of the last pass
MOST_HEIGHT = 30.0
UNSURE = 0.45  # the most confidence of an answer by fingerprints alone


@dataclass(frozen=True)
class Config:
    """How fast and how smoothly a clock may change."""

    max_drift_ppm: float = 500.0
    """The largest drift, in parts per million, from 1 to 5,000; anything faster is a jump, or no clock."""

    bend_s: float = 25.0
    """Period, in s, of a swing of the clock that the curve keeps by half, above 0."""

    def __post_init__(self) -> None:
        require(1 <= self.max_drift_ppm <= 5_000, "wave-path: max_drift_ppm must be from 1 to 5000", self.max_drift_ppm)
        require(self.bend_s > 0, "wave-path: bend_s must be > 0", self.bend_s)


def build(config: Config) -> WavePath:
    """Return the aligner."""
    return WavePath(config)


@dataclass(frozen=True)
class WavePath:
    """Aligns as the module docstring says."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert embedder is not None
        if _is_swapped(pair):
            swapped = replace(pair, wave0_T=pair.wave1_T, wave1_T=pair.wave0_T, key=f"{pair.key}/swapped")
            return self._align(swapped, embedder, progress).inverse()
        return self._align(pair, embedder, progress)

    def _align(self, pair: Pair, embedder: PairEmbedder, progress: Progress) -> TimeMap:
        one, other = whiten(pair.wave0_T), whiten(pair.wave1_T)
        candidates = self._find_candidates(pair, one, other, progress)
        if not candidates:
            return _without_waves(pair, embedder, progress)
        time0_K = np.arange(0.0, pair.durations_s[0] + SPACING_S, SPACING_S)
        lag_KC = np.stack([self._extend(candidate, time0_K) for candidate in candidates], axis=1)
        stretches = cut_stretches(gather_evidence(one, other, time0_K, lag_KC), pair.durations_s[1])
        if not stretches:
            return _without_waves(pair, embedder, progress)
        refined, polarity = self._refine(pair, stretches)
        if _is_too_fast(refined, self._max_drift):
            return _without_waves(pair, embedder, progress)
        return join(one, other, refined, polarity)

    @property
    def _max_drift(self) -> float:
        return 1e-6 * self.config.max_drift_ppm

    def _find_candidates(self, pair: Pair, one: Whitened, other: Whitened, progress: Progress) -> list[Candidate]:
        """Return lags that the pair may have: of windows at every lag, and of windows near the best of those."""
        spacing_s = max(ANCHOR_SPACING_S, len(pair.wave0_T) / RATE_HZ / ANCHORS)
        anchors = search_everywhere(one, other, spread_windows(len(pair.wave0_T), spacing_s), progress)
        coarse = find_candidates(anchors, self._max_drift)
        if not coarse:
            return []
        centre_W = spread_windows(len(pair.wave0_T), SPACING_NEAR_S)
        near = search_near(one, other, centre_W, _lags_near(coarse, centre_W), round(REACH_S * RATE_HZ), progress)
        found = find_candidates(_both(anchors, near), self._max_drift, CHAINS)
        distinct: list[Candidate] = []
        for candidate in sorted(found, key=lambda candidate: -candidate.gain_K.sum()):
            beside_s = [np.median(np.abs(self._extend(each, candidate.time0_K) - candidate.lag_K)) for each in distinct]
            if min(beside_s, default=np.inf) > LEAST_JUMP_S:
                distinct.append(candidate)
        return distinct[:MOST_CANDIDATES]

    def _extend(self, candidate: Candidate, time0_K: Seconds) -> Seconds:
        """Return the lag of a candidate at all knots: beyond its peaks on a line, or the same where that is unsure."""
        time_K, lag_K = candidate.time0_K, candidate.lag_K
        if time_K[-1] - time_K[0] < LEAST_SPAN_S:
            return np.interp(time0_K, time_K, lag_K)
        slope, _intercept = np.polyfit(time_K, lag_K, 1)
        slope = float(np.clip(slope, -self._max_drift, self._max_drift))
        return slope * time0_K + np.interp(time0_K, time_K, lag_K - slope * time_K)

    def _refine(self, pair: Pair, stretches: list[Stretch]) -> tuple[list[Stretch], int]:
        """Return the stretches with their lags to a part of a sample, and the polarity of channel 1.

        A narrow-band peak may have either sign, so that both polarities are tried along all stretches.
        """
        rough = [self._refine_roughly(pair, stretch) for stretch in stretches]
        grams = [correlate_along(pair, each.time0_K, each.lag_K, FINE_REACH_S, FINE_WINDOW_S) for each in rough]
        tried = {}
        for polarity in (1, -1):
            signed = [replace(gram, height_KL=polarity * gram.height_KL) for gram in grams]
            fine = [self._follow_peaks(each, gram) for each, gram in zip(rough, signed, strict=True)]
            beside = [after.lag_K - before.lag_K for before, after in zip(rough, fine, strict=True)]
            heights = [_sum_heights(gram, beside_K) for gram, beside_K in zip(signed, beside, strict=True)]
            tried[polarity] = (sum(heights), fine)
        polarity = -1 if tried[-1][0] > CLEARLY * tried[1][0] else 1
        return tried[polarity][1], polarity

    def _refine_roughly(self, pair: Pair, stretch: Stretch) -> Stretch:
        """Return a stretch with its lags to a millisecond, of either polarity."""
        weight_K = np.maximum(stretch.height_K - LEAST_HEIGHT, 0) + LEAST_WEIGHT
        rough = replace(stretch, lag_K=self._smooth(stretch.lag_K, weight_K))
        gram = correlate_along(pair, rough.time0_K, rough.lag_K, ROUGH_REACH_S, FINE_WINDOW_S, ROUGH_BLUR_S)
        return self._follow_peaks(rough, gram)

    def _follow_peaks(self, stretch: Stretch, gram: Correlogram) -> Stretch:
        """Return a stretch with a smooth curve through the highest peaks of a correlogram along its lags."""
        beside_K, height_K = interpolate_peak(gram, gram.height_KL.argmax(axis=1))
        stands_out_K = height_K > STANDS_OUT
        weight_K = np.where(stands_out_K, np.minimum(height_K - STANDS_OUT + 0.5, MOST_HEIGHT) ** 2, 0.0)
        if not stands_out_K.any():
            return stretch
        return replace(stretch, lag_K=self._smooth(stretch.lag_K + beside_K, weight_K))

    def _smooth(self, lag_K: Seconds, weight_K: npt.NDArray[np.float64]) -> Seconds:
        """Return a smooth curve, a line of at most the largest drift where a bend cannot be told."""
        curve_K = smooth(lag_K, weight_K, SPACING_S, self.config.bend_s)
        known = np.flatnonzero(weight_K > 0)
        if len(known) < 2:
            return curve_K
        # Beyond its measured moments the curve keeps its lag: a slope from few peaks would be extended.
        return np.interp(np.arange(len(curve_K)), np.arange(known[0], known[-1] + 1), curve_K[known[0] : known[-1] + 1])


def _is_swapped(pair: Pair) -> bool:
    """Return whether channel 1 is the one that windows are cut from: the shorter, or the one with less energy."""
    if len(pair.wave0_T) != len(pair.wave1_T):
        return len(pair.wave0_T) > len(pair.wave1_T)
    energies = [float(np.abs(wave_T[: 60 * RATE_HZ]).sum(dtype=np.float64)) for wave_T in (pair.wave0_T, pair.wave1_T)]
    return energies[0] > energies[1]


def _lags_near(candidates: list[Candidate], centre_W: Ints) -> list[list[int]]:
    """Return for each window the lags, in samples, of the candidates before and after it."""
    time_K = np.concatenate([each.time0_K for each in candidates])
    lag_K = np.concatenate([each.lag_K for each in candidates])
    after_W = np.searchsorted(time_K, centre_W / RATE_HZ)
    both_2W = lag_K[np.clip([after_W - 1, after_W], 0, len(lag_K) - 1)]
    found = []
    for before_s, after_s in both_2W.T:
        lags = [round(before_s * RATE_HZ)]
        found.append(lags if abs(after_s - before_s) < REACH_S else [*lags, round(after_s * RATE_HZ)])
    return found


def _both(anchors: WindowPeaks, near: WindowPeaks) -> WindowPeaks:
    """Return the peaks of both searches, in order of time; a near window that is an anchor's as well is left out."""
    away_W = np.abs(near.time0_W[:, None] - anchors.time0_W).min(axis=1)
    is_new_W = away_W > SPACING_NEAR_S / 2
    time_W = np.concatenate([anchors.time0_W, near.time0_W[is_new_W]])
    order = np.argsort(time_W, kind="stable")
    lag_WP = np.concatenate([anchors.lag_WP, near.lag_WP[is_new_W]])[order]
    height_WP = np.concatenate([anchors.height_WP, near.height_WP[is_new_W]])[order]
    return WindowPeaks(time_W[order], lag_WP, height_WP)


def _is_too_fast(stretches: list[Stretch], max_drift: float) -> bool:
    """Return whether jumps one way belong to a drift faster than a clock's: the lag moves that way between them too."""
    jumped_s = np.array([other.lag_K[0] - one.lag_K[-1] for one, other in pairwise(stretches)])
    if len(jumped_s) < STEADY_JUMPS:
        return False
    drifted_s = sum(float(each.lag_K[-1] - each.lag_K[0]) for each in stretches)
    lasted_s = sum(float(each.time0_K[-1] - each.time0_K[0]) for each in stretches)
    is_one_way = abs(jumped_s.sum()) > STEADY_SHARE * np.abs(jumped_s).sum()
    return is_one_way and drifted_s * jumped_s.sum() > 0 and abs(drifted_s) > STEADY_SHARE * max_drift * lasted_s


def _sum_heights(gram: Correlogram, beside_K: Seconds) -> float:
    """Return the sum of the heights of a correlogram at lags beside its curve, each the highest within a sample."""
    middle = len(gram.around_L) // 2
    column_K = np.clip(middle + np.rint(beside_K * RATE_HZ).astype(np.int64), 1, len(gram.around_L) - 2)
    near_K3 = np.take_along_axis(gram.height_KL, column_K[:, None] + np.array([-1, 0, 1]), axis=1)
    return float(near_K3.max(axis=1).sum())


def _without_waves(pair: Pair, embedder: PairEmbedder, progress: Progress) -> TimeMap:
    """Return the answer of the fingerprints, as an unsure one."""
    found = fingerprint_path.build(fingerprint_path.Config()).align(pair, embedder, progress)
    return replace(found, confidence_K=UNSURE * found.confidence_K)
