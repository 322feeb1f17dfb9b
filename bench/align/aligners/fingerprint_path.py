"""The aligner of this project: a path of lags from fingerprints, smoothed to a clock, refined by the waves.

1. Coarse. Each channel's mean fingerprint is subtracted: constant sound (wind, a hum) is alike at every lag and says
   nothing. A segment close to that mean is left with almost no length, hence almost no weight. The best path through
   the scores of all moments and lags may change its lag slightly from second to second, at a cost.
2. Smooth. A clock's lag bends slowly: a robust smooth curve is fitted to the path, after moving it to the tops of the
   scores.
3. Fine. The waves are correlated along that curve, within a hop of it, in three passes: first blurred, as the curve
   may be off by milliseconds, then sharp. A knot counts if its peak is higher than peaks at a lag where the channels
   have nothing in common; where no knot counts, the coarse curve stays.

Constants were chosen on the training split of `aru-sim` and on one pair made from the sounds of its test split
(docs/experiments.md).

The confidence compares the coarse path with null paths: paths through the same recording where nothing can match, as
the vectors of channel 1 are shifted by more than the largest lag. Agreeing peaks of the waves raise it, as far as more
of them agree than along curves that are seconds off.

Shape legend: N vectors, D dimensions, L lags, K knots, B null paths, W columns around a peak.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter1d

from bench.align.contract import SPACING_S, Pair, PairEmbedder, Seconds, TimeMap, make_monotonic
from bench.align.lags import most_lag, robust_z_scores, segment_starts, subtract_mean
from bench.align.refine import Correlogram, correlate_along, interpolate_peak
from bench.align.smooth import smooth
from bench.align.viterbi import best_path
from bench.settings import require
from bench.values import Floats, Ints, Progress

CITE = ""
LICENSE = "MIT"
SOURCE = "own definition"
NEEDS_ENCODER = True

NULL_PATHS = 16
SURE = 4.0  # deviations above the null paths that mean a confidence of one half
LEAST_SPREAD = 0.1  # lower limit of the deviation of the null paths
LEAST_WEIGHT = 0.05  # of a moment in the coarse curve
MAX_STEP = 1  # hops by which the coarse path may change from one second to the next
# A peak stands out if it is higher than this share of the peaks along the curve shifted by this lag.
NULL_SHIFT_S, NULL_SHARE = 1.37, 0.9
MOST_HEIGHT = 30.0  # limits the height of a knot, whose square is its weight
HEIGHT_MARGIN = 0.5  # added to the height of a peak that only just stands out
COARSE_WEIGHT = 0.02  # of the coarse lag at a knot without such a peak
AGREES_S = 0.002  # distance from the curve within which a peak agrees with it
FEWEST = 5  # knots for a confidence from waves: a curve through fewer passes through each of them
UNCONFIRMED = 0.7  # factor of the coarse confidence where no peak of the waves agrees
# Shares of the knots within a bend: the least that is assumed to agree by chance, and the surplus that means certainty.
CHANCE, ENOUGH = 0.2, 0.3
CHANCE_SHIFTS_S = (-4.57, -3.71, -2.83, -1.91, 1.91, 2.83, 3.71, 4.57)  # shifts at which chance agreement is measured
STRETCH = 40  # knots used for each of these shifts
PASSES_S = ((0.0, 0.004), (0.02, 0.001), (0.008, 0.0))  # reach (0 stands for REACH_HOPS) and blur of each pass
REACH_HOPS = 1.2  # of the first pass
PEAK_PENALTY, PEAK_MAX_STEP = 0.5, 15  # of the path through correlations, per ms and in ms


@dataclass(frozen=True)
class Config:
    """Settings of the three stages, which the module docstring explains."""

    hop_ms: float = 100.0
    """Time from one vector to the next, in ms, from 10 to 1,000."""

    window_s: float = 5.0
    """Length of the window over which a score is averaged, in s, above 0."""

    penalty: float = 4.0
    """Cost of changing the lag by one hop from one second to the next, in deviations of the scores, at least 0."""

    bend_s: float = 25.0
    """Period, in s, of a swing of the clock that the curve keeps by half, above 0; it keeps more of slower swings."""

    fine_window_s: float = 4.0
    """Length of the window over which the correlation of the waves is averaged, in s, at least 0.5."""

    refine: bool = True
    """Whether to refine the curve by the waves; if false, the coarse curve is the result."""

    def __post_init__(self) -> None:
        require(10 <= self.hop_ms <= 1_000, "fingerprint-path: hop_ms must be from 10 to 1000", self.hop_ms)
        require(self.window_s > 0, "fingerprint-path: window_s must be > 0", self.window_s)
        require(self.penalty >= 0, "fingerprint-path: penalty must be >= 0", self.penalty)
        require(self.bend_s > 0, "fingerprint-path: bend_s must be > 0", self.bend_s)
        require(self.fine_window_s >= 0.5, "fingerprint-path: fine_window_s must be >= 0.5", self.fine_window_s)


def build(config: Config) -> PathAligner:
    """Return the aligner."""
    return PathAligner(config)


@dataclass(frozen=True)
class PathAligner:
    """Aligns in the three stages of the module docstring."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert embedder is not None
        knot_K = pair.keypoints
        lag_K, confidence_K = self.coarse(pair, embedder)
        if self.config.refine:
            lag_K, confidence_K = self.refine(pair, lag_K, confidence_K, progress)
        return TimeMap(knot_K, make_monotonic(knot_K + lag_K), confidence_K)

    def coarse(self, pair: Pair, embedder: PairEmbedder) -> tuple[Seconds, Seconds]:
        """Return lag and confidence (K,) from fingerprints alone."""
        hop_s, knot_K = self.config.hop_ms / 1000, pair.keypoints
        vectors0_ND, vectors1_ND = (subtract_mean(vectors_ND) for vectors_ND in embedder(pair, hop_s))
        if min(len(vectors0_ND), len(vectors1_ND)) < 2:
            return np.zeros(len(knot_K)), np.zeros(len(knot_K))
        most = most_lag(pair.max_lag_s, hop_s)
        start_K = segment_starts(pair, len(vectors0_ND), hop_s, embedder.segment_s)
        score_KL = self._z_scores(vectors0_ND, vectors1_ND, most, start_K)
        column_K = best_path(score_KL, self.config.penalty, MAX_STEP)
        lag_K = (column_K - most + _tops(score_KL, column_K)) * hop_s
        height_K = score_KL[np.arange(len(column_K)), column_K]
        curve_K = smooth(lag_K, np.clip(height_K, LEAST_WEIGHT, None), SPACING_S, self.config.bend_s)
        null_B = self._null_heights(vectors0_ND, vectors1_ND, most, start_K)
        spread = max(float(null_B.std()), LEAST_SPREAD)
        confidence = _half_at((float(height_K.mean()) - float(null_B.mean())) / spread, SURE)
        return curve_K, np.full(len(knot_K), confidence)

    def refine(self, pair: Pair, lag_K: Seconds, confidence_K: Seconds, progress: Progress) -> tuple[Seconds, Seconds]:
        """Return lag and confidence (K,) after correlating the waves along the curve."""
        knot_K, curve_K, thresholds = pair.keypoints, lag_K, []
        for step, (reach_s, blur_s) in enumerate(self._passes()):
            progress("refining", step, len(PASSES_S) + 1)
            null_K = self._find_peaks(pair, knot_K, curve_K + NULL_SHIFT_S, reach_s, blur_s)[1]
            thresholds.append(float(np.quantile(null_K, NULL_SHARE)))
            curve_K, agrees_K = self._refine_once(pair, knot_K, lag_K, curve_K, thresholds[-1], reach_s, blur_s)
        progress("refining", len(PASSES_S), len(PASSES_S) + 1)
        chance = max(CHANCE, self._chance(pair, lag_K, thresholds))
        progress("refining", len(PASSES_S) + 1, len(PASSES_S) + 1)
        certain_K = np.clip((self._share(agrees_K) - chance) / ENOUGH, 0, 1) * (len(curve_K) >= FEWEST)
        # Where no peak stands out, the lag is the coarse one, or on a straight line across a silence.
        return curve_K, 1 - (1 - confidence_K * (UNCONFIRMED + (1 - UNCONFIRMED) * certain_K)) * (1 - certain_K)

    def _passes(self) -> list[tuple[float, float]]:
        return [(reach_s or REACH_HOPS * self.config.hop_ms / 1000, blur_s) for reach_s, blur_s in PASSES_S]

    def _refine_once(
        self,
        pair: Pair,
        knot_K: Seconds,
        lag_K: Seconds,
        curve_K: Seconds,
        threshold: float,
        reach_s: float,
        blur_s: float,
    ) -> tuple[Seconds, npt.NDArray[np.bool_]]:
        """Return the curve (K,) after one more pass, and the knots that agree: their peak stands out and is near it.

        `lag_K` are the coarse lags, `threshold` the height above which a peak stands out.
        """
        peak_K, height_K = self._find_peaks(pair, knot_K, curve_K, reach_s, blur_s)
        stands_out_K = height_K > threshold
        # Where no peak stands out the coarse lag gets a small weight: in a long silence nothing else is known.
        peak_weight_K = np.minimum(height_K - threshold + HEIGHT_MARGIN, MOST_HEIGHT) ** 2
        weight_K = np.where(stands_out_K, peak_weight_K, COARSE_WEIGHT)
        curve_K = smooth(np.where(stands_out_K, peak_K, lag_K), weight_K, SPACING_S, self.config.bend_s)
        # Chance peaks lie anywhere within the reach, peaks of one clock near one curve.
        agrees_K: npt.NDArray[np.bool_] = stands_out_K & (np.abs(peak_K - curve_K) <= AGREES_S)
        return curve_K, agrees_K

    def _chance(self, pair: Pair, lag_K: Seconds, thresholds: list[float]) -> float:
        """Return the largest share of knots that agree by chance: after the same passes at lags where nothing matches.

        The curve is fitted to the very peaks that it is then compared with, and the windows of neighbouring knots
        overlap, so that in a short recording a high share alone proves little. Only a stretch of knots is used for each
        shift, so that a long recording costs no more.
        """
        first_B = np.linspace(0, max(0, len(lag_K) - STRETCH), len(CHANCE_SHIFTS_S)).astype(int)
        shares = []
        for shift_s, first in zip(CHANCE_SHIFTS_S, first_B.tolist(), strict=True):
            stretch = slice(first, first + STRETCH)
            knot_K, shifted_K = pair.keypoints[stretch], lag_K[stretch] + shift_s
            curve_K = shifted_K
            for threshold, (reach_s, blur_s) in zip(thresholds, self._passes(), strict=True):
                curve_K, agrees_K = self._refine_once(pair, knot_K, shifted_K, curve_K, threshold, reach_s, blur_s)
            shares.append(float(self._share(agrees_K).max()))
        return max(shares)

    def _share(self, agrees_K: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return, for each knot, the share of the knots within a bend of it that agree."""
        bend = 2 * round(self.config.bend_s / 2) + 1
        share_K: npt.NDArray[np.float64] = uniform_filter1d(agrees_K.astype(np.float64), bend, mode="nearest")
        return share_K

    def _find_peaks(
        self, pair: Pair, knot_K: Seconds, lag_K: Seconds, reach_s: float, blur_s: float
    ) -> tuple[Seconds, Seconds]:
        """Return the lag and the height (K,) of the best path through the correlations along a curve."""
        correlogram = correlate_along(pair, knot_K, lag_K, reach_s, self.config.fine_window_s, blur_s)
        beside_K, height_K = interpolate_peak(correlogram, _trace_peak(correlogram))
        return lag_K + beside_K, height_K

    def _null_heights(
        self, vectors0_ND: Floats, vectors1_ND: Floats, most: int, start_K: Seconds
    ) -> npt.NDArray[np.float64]:
        """Return the mean heights (B,) of the best paths with channel 1 shifted out of reach of the largest lag."""
        # Nothing matches when shifted by over twice the largest lag; a recording too short for that is also reversed.
        least_shift, size = 2 * most + 1, len(vectors1_ND)
        if size < 3 * least_shift:
            vectors1_ND, shifts = vectors1_ND[::-1], np.linspace(0, size, NULL_PATHS, endpoint=False)
        else:
            shifts = np.linspace(least_shift, size - least_shift, NULL_PATHS)
        heights = []
        for shift in shifts.astype(int):
            score_KL = self._z_scores(vectors0_ND, np.roll(vectors1_ND, shift, axis=0), most, start_K)
            column_K = best_path(score_KL, self.config.penalty, MAX_STEP)
            heights.append(score_KL[np.arange(len(column_K)), column_K].mean())
        return np.array(heights)

    def _z_scores(self, vectors0_ND: Floats, vectors1_ND: Floats, most: int, start_K: Seconds) -> Floats:
        return robust_z_scores(vectors0_ND, vectors1_ND, most, self.config.hop_ms / 1000, start_K, self.config.window_s)


def _tops(score_KL: Floats, column_K: Ints) -> Seconds:
    """Return by what fraction of a hop the tops of parabolas differ from these columns (K,), from -0.5 to 0.5."""
    correlogram = Correlogram(np.arange(score_KL.shape[1], dtype=np.float64), score_KL)
    return np.clip(interpolate_peak(correlogram, column_K)[0] - column_K, -0.5, 0.5)


def _trace_peak(correlogram: Correlogram) -> Ints:
    """Return the columns of the best path through correlations, as a clock's lag does not jump between seconds."""
    step_s = correlogram.around_L[1] - correlogram.around_L[0]
    ms = max(1, round(0.001 / step_s))
    # 1. The path; square roots keep a single loud moment from outweighing the rest.
    column_K = best_path(np.sqrt(np.maximum(correlogram.height_KL, 0)), PEAK_PENALTY / ms, PEAK_MAX_STEP * ms)
    # 2. The highest column within 1 ms of it, as the path cuts corners.
    near_KW = np.clip(column_K[:, None] + np.arange(-ms, ms + 1), 0, correlogram.height_KL.shape[1] - 1)
    best: Ints = np.take_along_axis(
        near_KW, np.take_along_axis(correlogram.height_KL, near_KW, axis=1).argmax(axis=1)[:, None], axis=1
    )[:, 0]
    return best


def _half_at(value: npt.NDArray[np.float64] | float, middle: float) -> npt.NDArray[np.float64]:
    """Return the logistic function of a value, from 0 to 1, which is one half at `middle`."""
    logistic: npt.NDArray[np.float64] = 1 / (1 + np.exp(-(np.asarray(value, dtype=np.float64) - middle)))
    return logistic
