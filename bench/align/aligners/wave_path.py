"""The aligner of `bench align`: lags from the waves over the whole overlap, with jumps; fingerprints where waves fail.

1. Windows of the shorter recording are correlated with the whole other one, at every lag (`bench.align.waves`). A chain
   of their peaks on a clock's line is more than chance (`bench.align.segments`), and may jump where a recorder lost or
   inserted samples.
2. Windows every two seconds are correlated near that chain, so that a jump between two windows is seen.
3. Each segment is refined to a fraction of a sample (`bench.align.refine`), and each jump is placed.
4. Where the waves say nothing at all, `fingerprint-path` answers, at a confidence below one half: its lags may be off
   by a hop.

The recordings are put in one order first, so that the answer does not depend on which of them is named first.

The confidence is that of the segment (the gain of its chain, less where the sound repeats itself) at moments whose own
peak lies on the curve, and between them; it falls within seconds where no peak does. docs/metrics-alignment.md has the
measured reliability.

Shape legend: K knots, W windows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from bench.align.aligners import fingerprint_path
from bench.align.contract import SPACING_S, Jump, Pair, PairEmbedder, Seconds, TimeMap
from bench.align.refine import correlate_along, interpolate_peak
from bench.align.segments import Segment, find_segments
from bench.align.smooth import smooth
from bench.align.waves import (
    WINDOW_S,
    JumpTime,
    Whitened,
    WindowPeaks,
    find_jump,
    search_everywhere,
    search_near,
    spread_windows,
    whiten,
)
from bench.settings import require
from bench.values import RATE_HZ, Ints, Progress

CITE = ""
LICENSE = "MIT"
SOURCE = "defined by this project"
NEEDS_ENCODER = True

ANCHORS = 48  # most windows that are searched at every lag
ANCHOR_SPACING_S = 4.0
SPACING_NEAR_S = 2.0
REACH_S = 0.5  # searched around the lags of the chain
PASSES_S = ((0.004, 0.001), (0.0015, 0.0))  # reach and blur of each pass of the refinement
FINE_WINDOW_S = 4.0
STANDS_OUT = 5.5  # deviations from which on a peak is not chance, within the reach of the last pass
MOST_HEIGHT = 30.0
AGREES_S = 0.001
EVIDENCE = 8.0  # gain at which the confidence of a segment is 1 - 1/e
REPEATS_FROM, REPEATS_AT = 0.6, 0.85  # repetition between which the confidence falls to 0
HOLDS_S, FADES_S = 3.0, 3.0  # how long a lag is believed beyond its last peak, and how fast belief then falls
FADED_S = 15.0  # beyond which it is 0
BRIDGE_S = 60.0  # silence between two peaks of one clock over which its lag is believed
UNSURE = 0.45  # the most confidence of an answer by fingerprints alone
STEADY_JUMPS = 3  # as many small jumps one way are a drift
EPSILON_S = 1e-4  # between two knots at a jump
MAY_HOLD_S = WINDOW_S + SPACING_S  # of a segment at a jump, from its end on
EDGE_S = WINDOW_S / 2  # doubted on either side of a jump beyond its likely moments: a window there holds both lags


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
        segments = self._find_segments(pair, one, other, progress)
        if not segments or _is_too_fast(segments, self._max_drift):
            return _without_waves(pair, embedder, progress)
        pair, polarity = _with_polarity(pair, segments)
        parts = [self._refine(pair, segment) for segment in segments]
        return _join(pair, parts, polarity)

    @property
    def _max_drift(self) -> float:
        return 1e-6 * self.config.max_drift_ppm

    def _find_segments(self, pair: Pair, one: Whitened, other: Whitened, progress: Progress) -> list[Segment]:
        """Return the segments, from windows at every lag and then from windows near those lags."""
        spacing_s = max(ANCHOR_SPACING_S, len(pair.wave0_T) / RATE_HZ / ANCHORS)
        anchors = search_everywhere(one, other, spread_windows(len(pair.wave0_T), spacing_s), progress)
        coarse = find_segments(anchors, self._max_drift)
        if not coarse:
            return []
        centre_W = spread_windows(len(pair.wave0_T), SPACING_NEAR_S)
        near = search_near(one, other, centre_W, _candidates(coarse, centre_W), round(REACH_S * RATE_HZ), progress)
        return find_segments(_both(anchors, near), self._max_drift)

    def _refine(self, pair: Pair, segment: Segment) -> _Part:
        """Return the curve of a segment at whole seconds, and its confidence."""
        first_s, last_s = segment.time0_K[0] - WINDOW_S / 2, segment.time0_K[-1] + WINDOW_S / 2
        knot_K = np.arange(max(0.0, np.floor(first_s)), min(last_s, pair.durations_s[0]) + SPACING_S, SPACING_S)
        weight_K, lag_K = np.zeros(len(knot_K)), np.interp(knot_K, segment.time0_K, segment.lag_K)
        nearest = np.abs(knot_K - segment.time0_K[:, None]).argmin(axis=1)
        np.maximum.at(weight_K, nearest, segment.gain_K)
        lag_K[nearest] = segment.lag_K
        curve_K = self._smooth(lag_K, weight_K)
        agrees_K = np.zeros(len(knot_K), dtype=bool)
        for reach_s, blur_s in PASSES_S:
            correlogram = correlate_along(pair, knot_K, curve_K, reach_s, FINE_WINDOW_S, blur_s)
            beside_K, height_K = interpolate_peak(correlogram, correlogram.height_KL.argmax(axis=1))
            stands_out_K = height_K > STANDS_OUT
            weight_K = np.where(stands_out_K, np.minimum(height_K - STANDS_OUT + 0.5, MOST_HEIGHT) ** 2, 0.0)
            if stands_out_K.any():
                previous_K, curve_K = curve_K, self._smooth(curve_K + beside_K, weight_K)
                agrees_K = stands_out_K & (np.abs(previous_K + beside_K - curve_K) <= AGREES_S)
        return _Part(knot_K, curve_K, _confidence(segment, knot_K, agrees_K))

    def _smooth(self, lag_K: Seconds, weight_K: npt.NDArray[np.float64]) -> Seconds:
        """Return a smooth curve, a line of at most the largest drift where a bend cannot be told."""
        curve_K = smooth(lag_K, weight_K, SPACING_S, self.config.bend_s)
        known = np.flatnonzero(weight_K > 0)
        if len(known) < 2:
            return curve_K
        # Beyond its measured moments the curve keeps its lag: a slope from few peaks would be extended.
        return np.interp(np.arange(len(curve_K)), np.arange(known[0], known[-1] + 1), curve_K[known[0] : known[-1] + 1])


@dataclass(frozen=True, eq=False)
class _Part:
    """A refined segment: times in channel 0, lags and confidences (K,)."""

    knot_K: Seconds
    lag_K: Seconds
    confidence_K: npt.NDArray[np.float64]


def _is_swapped(pair: Pair) -> bool:
    """Return whether channel 1 is the one that windows are cut from: the shorter, or the one with less energy."""
    if len(pair.wave0_T) != len(pair.wave1_T):
        return len(pair.wave0_T) > len(pair.wave1_T)
    energies = [float(np.abs(wave_T[: 60 * RATE_HZ]).sum(dtype=np.float64)) for wave_T in (pair.wave0_T, pair.wave1_T)]
    return energies[0] > energies[1]


def _candidates(segments: list[Segment], centre_W: Ints) -> list[list[int]]:
    """Return for each window the lags, in samples, of the segments before and after it."""
    time_K = np.concatenate([segment.time0_K for segment in segments])
    lag_K = np.concatenate([segment.lag_K for segment in segments])
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


def _is_too_fast(segments: list[Segment], max_drift: float) -> bool:
    """Return whether many small jumps one way are a drift faster than a clock's."""
    changes = np.array([other.lag_K[0] - one.lag_K[-1] for one, other in pairwise(segments)])
    if len(changes) < STEADY_JUMPS:
        return False
    time_K, lag_K = (np.concatenate([getattr(s, n) for s in segments]) for n in ("time0_K", "lag_K"))
    slope, intercept = np.polyfit(time_K, lag_K, 1)
    off_s = float(np.median(np.abs(lag_K - slope * time_K - intercept)))
    return abs(slope) > max_drift and off_s < float(np.median(np.abs(changes)))


def _with_polarity(pair: Pair, segments: list[Segment]) -> tuple[Pair, int]:
    """Return the pair with channel 1 in the polarity of channel 0, and that polarity: 1, or -1 where it is reversed.

    A narrow-band peak may have either sign, so that both polarities are tried along the whole chain.
    """
    time_K = np.concatenate([segment.time0_K for segment in segments])
    lag_K = np.concatenate([segment.lag_K for segment in segments])
    correlogram = correlate_along(pair, time_K, lag_K, 0.002, FINE_WINDOW_S)
    if correlogram.height_KL.max(axis=1).sum() >= -correlogram.height_KL.min(axis=1).sum():
        return pair, 1
    return replace(pair, wave1_T=-pair.wave1_T), -1


def _confidence(segment: Segment, knot_K: Seconds, agrees_K: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the confidence (K,) of a segment: high at and between agreeing peaks, falling away from them."""
    if not agrees_K.any():
        return np.zeros(len(knot_K))
    sure = 1 - np.exp(-segment.gain / EVIDENCE)
    sure *= float(np.clip((REPEATS_AT - segment.repetition) / (REPEATS_AT - REPEATS_FROM), 0, 1))
    peak_K = knot_K[agrees_K]
    after = np.searchsorted(peak_K, knot_K).clip(0, len(peak_K) - 1)
    before = (np.searchsorted(peak_K, knot_K, side="right") - 1).clip(0)
    away_K = np.minimum(np.abs(knot_K - peak_K[after]), np.abs(knot_K - peak_K[before]))
    is_between_K = (knot_K >= peak_K[0]) & (knot_K <= peak_K[-1]) & (peak_K[after] - peak_K[before] <= BRIDGE_S)
    fading_K = np.exp(-np.maximum(0, away_K - HOLDS_S) / FADES_S)
    confidence_K: npt.NDArray[np.float64] = sure * np.where(is_between_K, 1.0, fading_K)
    return confidence_K


def _join(pair: Pair, parts: list[_Part], polarity: int) -> TimeMap:
    """Return the map of all segments, with a jump from each to the next."""
    joined, jumps = parts[0], []
    for part in parts[1:]:
        lag0_s, lag1_s = float(joined.lag_K[-1]), float(part.lag_K[0])
        # The outermost windows of both segments may hold the jump themselves.
        first_s = min(joined.knot_K[-1] - MAY_HOLD_S, part.knot_K[0])
        last_s = max(part.knot_K[0] + MAY_HOLD_S, joined.knot_K[-1])
        jump = find_jump(pair, first_s, last_s, lag0_s, lag1_s)
        jumps.append(Jump(jump.time0_s, lag1_s - lag0_s))
        joined = _join_two(joined, part, jump)
    joined = _fade_out(joined)
    time1_K = joined.knot_K + joined.lag_K
    return TimeMap.of_knots(joined.knot_K, time1_K, joined.confidence_K, tuple(jumps), polarity)


def _fade_out(part: _Part) -> _Part:
    """Return a segment that keeps its lag beyond both ends, with a confidence that falls to 0."""
    away_F = np.arange(SPACING_S, FADED_S + SPACING_S, SPACING_S)
    fading_F = np.exp(-away_F / FADES_S) * (away_F < FADED_S)
    first, last = part.confidence_K[0] * fading_F[::-1], part.confidence_K[-1] * fading_F
    return _Part(
        np.concatenate([part.knot_K[0] - away_F[::-1], part.knot_K, part.knot_K[-1] + away_F]),
        np.pad(part.lag_K, len(away_F), mode="edge"),
        np.concatenate([first, part.confidence_K, last]),
    )


def _join_two(one: _Part, other: _Part, jump: JumpTime) -> _Part:
    """Return both segments as one, with no confidence in the moments at which the jump may be."""
    lag0_s, lag1_s = one.lag_K[-1], other.lag_K[0]
    resumes_s = jump.time0_s + max(EPSILON_S, lag0_s - lag1_s)
    sure_s = resumes_s + jump.latest_s - jump.time0_s + EDGE_S
    doubt_s = jump.earliest_s - EDGE_S
    before, after = one.knot_K < doubt_s - EPSILON_S, other.knot_K > sure_s + EPSILON_S
    sure0, sure1 = float(one.confidence_K[-1]), float(other.confidence_K[0])
    edge = [doubt_s - EPSILON_S, doubt_s, jump.time0_s, resumes_s, sure_s, sure_s + EPSILON_S]
    return _Part(
        np.concatenate([one.knot_K[before], edge, other.knot_K[after]]),
        np.concatenate([one.lag_K[before], [lag0_s] * 3, [lag1_s] * 3, other.lag_K[after]]),
        np.concatenate([one.confidence_K[before], [sure0, 0, 0, 0, 0, sure1], other.confidence_K[after]]),
    )


def _without_waves(pair: Pair, embedder: PairEmbedder, progress: Progress) -> TimeMap:
    """Return the answer of the fingerprints, as an unsure one."""
    found = fingerprint_path.build(fingerprint_path.Config()).align(pair, embedder, progress)
    return replace(found, confidence_K=UNSURE * found.confidence_K)
