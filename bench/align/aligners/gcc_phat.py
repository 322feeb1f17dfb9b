"""Generalised cross-correlation with phase transform, at each keypoint: the challenge's baseline of 2026, put right.

    R(f) = X1(f) conj(X0(f)) / |X1(f) conj(X0(f))|,    lag = argmax |IDFT(R)|

With this R an event that is later in channel 1 has a positive lag. The published code has the two channels the other
way round, so that its predictions move away from the truth; `published_sign` does the same.

Lags may then be made a path (`smoothness` > 0): on a grid of `step_s`, the path with the largest sum of
-|lag - grid| - smoothness |change|, all in seconds. `interpolate` puts a parabola through a peak and its two
neighbours, for less than a sample (within 0.12 of one where all frequencies are heard alike); a lag within a step of
the path then stays as it is.

A confidence is 1 - background / peak, at least 0, times the share of the window that both recordings hold. The
background is what the highest of as many values of Gaussian noise is expected to be, its deviation taken from the
median of all. Unrelated windows correlate less where they overlap less (`overlap`).

DEVIATION: lags are looked for within the pair's largest one, which a set promises, and never beyond the window,
outside of which the two windows have no moment in common. (Published: 0.5 s for `aru`, 5 s for `zebra_finch`.)
DEVIATION: the window lies around its keypoint (not stated), and its mean is that of the samples it holds, so that
silence beyond an end is none within; published is the mean of all. A window without sound has its neighbours' lag.
DEVIATION: times of the map never fall; the published predictions may.

Source: Knapp and Carter 1976, table 1 (PHAT); the challenge's code of 2026 for windows, path and settings.

Shape legend: K keypoints, B of a block, T samples of a window, F frequencies, N lags, G lags of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bench.align.aligners.nosync import build_identity_map
from bench.align.baseline_grid import windows
from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap, make_monotonic
from bench.align.viterbi import best_path
from bench.parabola import vertex
from bench.settings import require
from bench.values import RATE_HZ, Floats, Ints, Progress

NEEDS_ENCODER = False
CITE = "Knapp and Carter, The generalized correlation method for estimation of time delay, IEEE TASSP 1976"
LICENSE = "MIT"
SOURCE = "own writing of the published algorithm, its sign corrected"

BLOCK_SAMPLES = 1 << 20  # transformed at a time: 50 MB in all
SMALLEST = 1e-12  # of a cross spectrum's magnitude, as published
SILENT = 1e-6  # largest deviation from the mean: a thirtieth of the least step of 16 bits
LEAST_OVERLAP = 0.5  # where a background is measured: the transform's own noise hides less
MEDIAN_OF_NORMAL = 0.6745  # of the absolute value, in deviations


@dataclass(frozen=True)
class Config:
    """Settings; see the module's text."""

    window_s: float = 2.5
    """Length of the window around a keypoint, in s, at least 0.01; beyond a recording's ends it holds silence."""

    smoothness: float = 0.0
    """Cost of a second of change of lag, in seconds of distance from the keypoints' own lags, at least 0.

    0 takes these lags as they are.
    """

    step_s: float = 0.005
    """Step of the grid of lags of the path, in s, at least a sample."""

    interpolate: bool = True
    """Whether a parabola through a peak and its neighbours gives a lag to less than a sample."""

    hann: bool = True
    """Whether to fade a window in and out; the published code does not.

    Both channels are cut at the same moments, and where they rumble the two cuts are alike: a peak at no lag.
    """

    published_sign: bool = False
    """Whether to exchange the channels, as the published code does: its predictions move away from the truth."""

    def __post_init__(self) -> None:
        require(self.window_s >= 0.01, "window_s must be >= 0.01", self.window_s)
        require(self.smoothness >= 0, "smoothness must be >= 0", self.smoothness)
        require(self.step_s >= 1 / RATE_HZ, "step_s must be at least a sample", self.step_s)


def presets() -> dict[str, Config]:
    """Return the settings published for the two sets, with the right sign; `-published` with the wrong one."""
    aru = Config(window_s=0.27, smoothness=10.83, step_s=0.005, interpolate=False, hann=False)
    zebra_finch = Config(window_s=2.5, interpolate=False, hann=False)
    return {
        "aru": aru,
        "zebra-finch": zebra_finch,
        "aru-published": replace(aru, published_sign=True),
        "zebra-finch-published": replace(zebra_finch, published_sign=True),
    }


def build(config: Config) -> GccPhat:
    """Return the aligner."""
    return GccPhat(config)


@dataclass(frozen=True)
class GccPhat:
    """Correlates the two channels around each keypoint. Memory is that of a block, whatever the length."""

    config: Config

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the lag of each keypoint as a map; its confidence is that of each keypoint's peak."""
        time0_K = pair.keypoints
        if not len(time0_K):
            return build_identity_map(pair)
        lag_K, confidence_K = self._lags(pair, time0_K, progress)
        if self.config.published_sign:
            lag_K = -lag_K
        if self.config.smoothness > 0:
            path_K = smooth(lag_K, self.config.smoothness, self.config.step_s, pair.max_lag_s)
            near_K = self.config.interpolate & (np.abs(lag_K - path_K) <= self.config.step_s)
            lag_K = np.where(near_K, lag_K, path_K)
        return TimeMap(time0_K, make_monotonic(time0_K + lag_K), confidence_K)

    def _lags(self, pair: Pair, time0_K: Seconds, progress: Progress) -> tuple[Seconds, Seconds]:
        """Return lag in seconds and confidence of each keypoint, (K,) each."""
        num_samples = round(self.config.window_s * RATE_HZ)
        reach = min(round(pair.max_lag_s * RATE_HZ), num_samples - 1)
        first_K = np.rint(time0_K * RATE_HZ).astype(np.int64) - num_samples // 2
        lag_K, confidence_K = np.zeros((2, len(time0_K)))
        overlap_N = overlap(_fade(self.config.hann, (np.arange(num_samples) + 0.5) / num_samples), reach)
        size = max(1, BLOCK_SAMPLES // _fft_length(num_samples))
        for start in range(0, len(time0_K), size):
            progress("gcc-phat", start, len(time0_K))
            block = slice(start, start + size)
            wave0_BT, wave1_BT = (
                self._cut(wave_T, first_K[block], num_samples) for wave_T in (pair.wave0_T, pair.wave1_T)
            )
            value_BN = correlation(wave0_BT, wave1_BT, reach)
            lag_K[block], confidence_K[block] = find_peaks(value_BN, overlap_N, self.config.interpolate)
        shortest = min(len(pair.wave0_T), len(pair.wave1_T))
        confidence_K *= _count_held(first_K, num_samples, shortest) / num_samples
        progress("gcc-phat", len(time0_K), len(time0_K))
        heard_K = np.isfinite(lag_K)
        if heard_K.any():
            lag_K = np.interp(time0_K, time0_K[heard_K], lag_K[heard_K])
        return np.nan_to_num(lag_K) / RATE_HZ, confidence_K

    def _cut(self, wave_T: Floats, first_B: Ints, num_samples: int) -> Floats:
        """Return windows (B, T) less the mean of what they hold, silence where the recording has none."""
        cut_BT = windows(wave_T, first_B, num_samples)
        held_B = _count_held(first_B, num_samples, len(wave_T))
        place_BT = np.arange(num_samples) - (-first_B).clip(0)[:, None]  # in what is held
        inside_BT = (place_BT >= 0) & (place_BT < held_B[:, None])
        mean_B = cut_BT.sum(axis=1, dtype=np.float64) / held_B.clip(1)
        centred_BT: Floats = np.where(inside_BT, cut_BT - mean_B[:, None], 0).astype(np.float32)
        centred_BT[np.abs(centred_BT).max(axis=1) < SILENT] = 0
        phase_BT = (place_BT + 0.5) / held_B.clip(1)[:, None]
        return centred_BT * _fade(self.config.hann, phase_BT).astype(np.float32)


def correlation(wave0_BT: Floats, wave1_BT: Floats, reach: int) -> Floats:
    """Return the phase transform's correlation at lags -reach to reach samples, shape (B, 2 reach + 1).

    It is 1 at the lag of a wave that is the other one delayed (in a circle), 0 for silence.
    """
    from scipy.fft import irfft, rfft

    length = _fft_length(wave0_BT.shape[1])
    assert reach < length // 2
    cross_BF = rfft(wave1_BT, length, axis=1) * rfft(wave0_BT, length, axis=1).conj()
    cross_BF /= np.abs(cross_BF) + SMALLEST
    circle_BT = irfft(cross_BF, length, axis=1)
    whole_BN: Floats = np.concatenate([circle_BT[:, length - reach :], circle_BT[:, : reach + 1]], axis=1)
    return whole_BN


def find_peaks(value_BN: Floats, overlap_N: Seconds, interpolate: bool) -> tuple[Seconds, Seconds]:
    """Return lag in samples (NaN where all is 0) and confidence of the largest magnitude of each row, (B,) each.

    The middle column is no lag. `overlap_N` is how large unrelated values are at each lag, beside each other.
    """
    rows, last = np.arange(len(value_BN)), value_BN.shape[1] - 1
    height_BN = np.abs(value_BN)
    at_B = height_BN.argmax(axis=1)
    peak_B = height_BN[rows, at_B].astype(np.float64)
    lag_B = (at_B - last // 2).astype(np.float64)
    if interpolate:
        # Neighbours of either sign: the parabola goes through the values, turned so that the peak is up.
        sign_B = np.sign(value_BN[rows, at_B])
        before_B, after_B = (sign_B * value_BN[rows, (at_B + side).clip(0, last)] for side in (-1, 1))
        inner_B = (at_B > 0) & (at_B < last)
        lag_B += np.where(inner_B, vertex(before_B, peak_B, after_B), 0)
    near_N = overlap_N >= LEAST_OVERLAP
    deviation_B = np.median(height_BN[:, near_N] / overlap_N[near_N], axis=1) / MEDIAN_OF_NORMAL
    # Of N values of Gaussian noise the highest is near sqrt(2 ln N) deviations.
    background_B = deviation_B * np.sqrt(2 * np.log(last + 1)) * overlap_N[at_B].clip(LEAST_OVERLAP)
    heard_B = peak_B > 0
    confidence_B = np.where(heard_B, 1 - background_B / np.where(heard_B, peak_B, 1), 0).clip(0, 1)
    return np.where(heard_B, lag_B, np.nan), confidence_B


def overlap(fade_T: Seconds, reach: int) -> Seconds:
    """Return the deviation of unrelated windows' correlation at lags -reach to reach over that at none, (N,).

    A sum of products of independent values has the variance of the products' squares: the correlation of the squared
    fade with itself.
    """
    from scipy.signal import correlate

    variance = correlate(fade_T**2, fade_T**2, method="fft")
    middle = len(fade_T) - 1
    around_N: Seconds = variance[middle - reach : middle + reach + 1] / variance[middle]
    deviation_N: Seconds = np.sqrt(around_N.clip(0))
    return deviation_N


def smooth(lag_K: Seconds, smoothness: float, step_s: float, max_lag_s: float) -> Seconds:
    """Return lags of a grid, (K,) in seconds, whose sum of distances and of `smoothness` times changes is least."""
    most = max(1, round(max_lag_s / step_s))
    grid_G = np.arange(-most, most + 1, dtype=np.float64) * step_s
    score_KG = -np.abs(lag_K[:, None].astype(np.float32) - grid_G.astype(np.float32))
    path_K: Seconds = grid_G[best_path(score_KG, smoothness * step_s)]
    return path_K


def _fft_length(num_samples: int) -> int:
    """Return the power of two that is at least two windows."""
    return 1 << (2 * num_samples - 1).bit_length()


def _fade(hann: bool, phase: Seconds) -> Seconds:
    """Return the weight of samples at these shares of what a window holds: Hann's, or 1."""
    faded: Seconds = np.sin(np.pi * phase) ** 2 if hann else np.ones_like(phase)
    return faded


def _count_held(first_B: Ints, num_samples: int, length: int) -> Ints:
    """Return how many samples of each window a recording of this length holds."""
    held_B: Ints = (first_B + num_samples).clip(0, length) - first_B.clip(0, length)
    return held_B
