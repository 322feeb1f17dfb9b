"""Ours: a path of fingerprints, smoothed to a clock, refined by the waves themselves.

1. Coarse. Fingerprints less their channel's mean: what is always there (wind, a hum) is alike at every lag, and
   says nothing. A segment like that mean has next to no length left, and so no vote. The best path through the scores
   of all moments and lags may change its lag a little from second to second, and pays for it.
2. Smooth. A clock's lag bends slowly: a curve through the path, moved to the tops of the scores, robustly.
3. Fine. The correlation of the waves along that curve, within a hop of it, three times: first blurred, as the curve
   may be off by milliseconds, then sharp. A knot has a say if its peak is higher than those found where the channels
   have nothing in common; where none is, the coarse curve stays.

Constants were chosen on the training side of `aru-sim` and on one pair made from its test side's sounds (docs/log.md).

Confidence is that of the coarse path against paths through the same recording where nothing can match (its vectors
moved by more than the largest lag), and is raised by peaks of waves, as far as more of them agree than along curves
that are seconds off.

Shape legend: N vectors, D dimensions, L lags, K knots, B blinds.
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

BLINDS = 16
SURE = 4.0  # deviations above blind paths that mean a confidence of one half
BLIND_S, BLIND_SHARE = 1.37, 0.9  # a peak stands out that is higher than so many of those at a lag so far off
MOST_HEIGHT = 30.0  # of a knot: its weight is the square
COARSE_WEIGHT = 0.02
AGREES_S = 0.002
FEWEST = 5  # knots: a curve through fewer agrees with any of them, which makes nobody sure
UNCONFIRMED = 0.7  # of the confidence is left where no peak of the waves agrees
CHANCE, ENOUGH = 0.2, 0.3  # of the knots within a bend: what agrees by chance at least, how many more make one sure
STRANGERS_S = (-4.57, -3.71, -2.83, -1.91, 1.91, 2.83, 3.71, 4.57)  # how far off it is measured what agrees by chance
STRETCH = 40  # knots, for each of them
PASSES_S = ((0.0, 0.004), (0.02, 0.001), (0.008, 0.0))  # reach (0: a hop and a fifth) and blur of each pass


@dataclass(frozen=True)
class Config:
    """Settings of the three stages; see the module's text."""

    hop_ms: float = 100.0
    """Time from one vector to the next, in ms, from 10 to 1,000."""

    window_s: float = 5.0
    """Length of the window over which the score of a moment and lag is averaged, in s, above 0."""

    penalty: float = 4.0
    """Cost of a change of lag by one hop from one second to the next, in deviations of scores, at least 0."""

    bend_s: float = 25.0
    """Period of the swing of a clock that the curve follows by half, in s, above 0; it follows slower ones further."""

    fine_window_s: float = 4.0
    """Length of the window over which a correlation of waves is averaged, in s, at least 0.5."""

    refine: bool = True
    """Whether to refine by the waves; false ends with the curve through the path."""

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
    """See the top of the file."""

    config: Config

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert ears is not None
        knot_K = pair.keypoints
        lag_K, confidence_K = self.coarse(pair, ears)
        if self.config.refine:
            lag_K, confidence_K = self.refine(pair, lag_K, confidence_K, progress)
        return TimeMap(knot_K, make_monotonic(knot_K + lag_K), confidence_K)

    def coarse(self, pair: Pair, ears: PairEmbedder) -> tuple[Seconds, Seconds]:
        """Return lag and confidence (K,) by fingerprints alone."""
        hop_s, knot_K = self.config.hop_ms / 1000, pair.keypoints
        vectors0_ND, vectors1_ND = (subtract_mean(vectors_ND) for vectors_ND in ears(pair, hop_s))
        if min(len(vectors0_ND), len(vectors1_ND)) < 2:
            return np.zeros(len(knot_K)), np.zeros(len(knot_K))
        most = most_lag(pair.max_lag_s, hop_s)
        at_K = segment_starts(pair, len(vectors0_ND), hop_s, ears.segment_s)
        score_KL = self._z_scores(vectors0_ND, vectors1_ND, most, at_K)
        column_K = best_path(score_KL, self.config.penalty, 1)
        lag_K = (column_K - most + _tops(score_KL, column_K)) * hop_s
        height_K = score_KL[np.arange(len(column_K)), column_K]
        curve_K = smooth(lag_K, np.clip(height_K, 0.05, None), SPACING_S, self.config.bend_s)
        blind_B = self._null_heights(vectors0_ND, vectors1_ND, most, at_K)
        spread = max(float(blind_B.std()), 0.1)
        sure = _half_at((float(height_K.mean()) - float(blind_B.mean())) / spread, SURE)
        return curve_K, np.full(len(knot_K), sure)

    def refine(self, pair: Pair, lag_K: Seconds, confidence_K: Seconds, progress: Progress) -> tuple[Seconds, Seconds]:
        """Return lag and confidence (K,) after the waves were correlated along the curve."""
        knot_K, found_K, leasts = pair.keypoints, lag_K, []
        for step, (reach_s, blur_s) in enumerate(self._passes()):
            progress("refining", step, len(PASSES_S) + 1)
            blind_K = self._find_peaks(pair, knot_K, found_K + BLIND_S, reach_s, blur_s)[1]
            leasts.append(float(np.quantile(blind_K, BLIND_SHARE)))
            found_K, agrees_K = self._nearer(pair, knot_K, lag_K, found_K, leasts[-1], reach_s, blur_s)
        progress("refining", len(PASSES_S), len(PASSES_S) + 1)
        chance = max(CHANCE, self._chance(pair, lag_K, leasts))
        progress("refining", len(PASSES_S) + 1, len(PASSES_S) + 1)
        sure_K = np.clip((self._share(agrees_K) - chance) / ENOUGH, 0, 1) * (len(found_K) >= FEWEST)
        # Where the waves say nothing the lag is that of the fingerprints, or of a line through a silence.
        return found_K, 1 - (1 - confidence_K * (UNCONFIRMED + (1 - UNCONFIRMED) * sure_K)) * (1 - sure_K)

    def _passes(self) -> list[tuple[float, float]]:
        return [(reach_s or 1.2 * self.config.hop_ms / 1000, blur_s) for reach_s, blur_s in PASSES_S]

    def _nearer(
        self, pair: Pair, knot_K: Seconds, lag_K: Seconds, found_K: Seconds, least: float, reach_s: float, blur_s: float
    ) -> tuple[Seconds, npt.NDArray[np.bool_]]:
        """Return the curve (K,) after one more pass, and which knots agree with it: they stand out, and lie near it."""
        near_K, height_K = self._find_peaks(pair, knot_K, found_K, reach_s, blur_s)
        heard_K = height_K > least
        # Where no peak stands out the coarse lag has a small say: in a long silence it is all there is.
        weight_K = np.where(heard_K, np.minimum(height_K - least + 0.5, MOST_HEIGHT) ** 2, COARSE_WEIGHT)
        found_K = smooth(np.where(heard_K, near_K, lag_K), weight_K, SPACING_S, self.config.bend_s)
        # Peaks by chance lie anywhere within the reach, those of one clock near one curve.
        agrees_K: npt.NDArray[np.bool_] = heard_K & (np.abs(near_K - found_K) <= AGREES_S)
        return found_K, agrees_K

    def _chance(self, pair: Pair, lag_K: Seconds, leasts: list[float]) -> float:
        """Return the largest share of knots that agree by chance: after the same passes where nothing matches.

        A curve is drawn through the peaks that it is then said to agree with, and neighbouring knots hear much of the
        same, so that a share alone says little in a short recording. Stretches, so that it costs no more in a long one.
        """
        first_B = np.linspace(0, max(0, len(lag_K) - STRETCH), len(STRANGERS_S)).astype(int)
        shares = []
        for moved_s, first in zip(STRANGERS_S, first_B.tolist(), strict=True):
            some = slice(first, first + STRETCH)
            knot_K, moved_K = pair.keypoints[some], lag_K[some] + moved_s
            found_K = moved_K
            for least, (reach_s, blur_s) in zip(leasts, self._passes(), strict=True):
                found_K, agrees_K = self._nearer(pair, knot_K, moved_K, found_K, least, reach_s, blur_s)
            shares.append(float(self._share(agrees_K).max()))
        return max(shares)

    def _share(self, agrees_K: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """Return the share of the knots within a bend of each that agree."""
        bend = 2 * round(self.config.bend_s / 2) + 1
        share_K: npt.NDArray[np.float64] = uniform_filter1d(agrees_K.astype(np.float64), bend, mode="nearest")
        return share_K

    def _find_peaks(
        self, pair: Pair, knot_K: Seconds, lag_K: Seconds, reach_s: float, blur_s: float
    ) -> tuple[Seconds, Seconds]:
        """Return the lag and the height (K,) of the best path through the correlations along a curve."""
        found = correlate_along(pair, knot_K, lag_K, reach_s, self.config.fine_window_s, blur_s)
        beside_K, height_K = interpolate_peak(found, _trace_peak(found))
        return lag_K + beside_K, height_K

    def _null_heights(
        self, vectors0_ND: Floats, vectors1_ND: Floats, most: int, at_K: Seconds
    ) -> npt.NDArray[np.float64]:
        """Return the mean heights (B,) of the best paths where the other channel is moved out of reach."""
        # Moved by more than two lags nothing matches; in a recording too short for that, backwards it does not either.
        least, size = 2 * most + 1, len(vectors1_ND)
        if size < 3 * least:
            vectors1_ND, turns = vectors1_ND[::-1], np.linspace(0, size, BLINDS, endpoint=False)
        else:
            turns = np.linspace(least, size - least, BLINDS)
        found = []
        for turn in turns.astype(int):
            score_KL = self._z_scores(vectors0_ND, np.roll(vectors1_ND, turn, axis=0), most, at_K)
            column_K = best_path(score_KL, self.config.penalty, 1)
            found.append(score_KL[np.arange(len(column_K)), column_K].mean())
        return np.array(found)

    def _z_scores(self, vectors0_ND: Floats, vectors1_ND: Floats, most: int, at_K: Seconds) -> Floats:
        return robust_z_scores(vectors0_ND, vectors1_ND, most, self.config.hop_ms / 1000, at_K, self.config.window_s)


def _tops(score_KL: Floats, column_K: Ints) -> Seconds:
    """Return by how much of a hop the tops of parabolas lie beside these columns (K,), between -0.5 and 0.5."""
    found = Correlogram(np.arange(score_KL.shape[1], dtype=np.float64), score_KL)
    return np.clip(interpolate_peak(found, column_K)[0] - column_K, -0.5, 0.5)


def _trace_peak(found: Correlogram) -> Ints:
    """Return the columns of the best path through correlations: a clock's lag does not jump from second to second."""
    step_s = found.around_L[1] - found.around_L[0]
    ms = max(1, round(0.001 / step_s))
    # Roots, so that no single loud moment outvotes the rest; then to the nearest top, for the path cuts corners.
    column_K = best_path(np.sqrt(np.maximum(found.height_KL, 0)), 0.5 / ms, 15 * ms)
    near_KW = np.clip(column_K[:, None] + np.arange(-ms, ms + 1), 0, found.height_KL.shape[1] - 1)
    best: Ints = np.take_along_axis(
        near_KW, np.take_along_axis(found.height_KL, near_KW, axis=1).argmax(axis=1)[:, None], axis=1
    )[:, 0]
    return best


def _half_at(value: npt.NDArray[np.float64] | float, middle: float) -> npt.NDArray[np.float64]:
    """Return a confidence between 0 and 1 that is one half at `middle`."""
    logistic: npt.NDArray[np.float64] = 1 / (1 + np.exp(-(np.asarray(value, dtype=np.float64) - middle)))
    return logistic
