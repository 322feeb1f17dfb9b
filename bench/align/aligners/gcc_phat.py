"""Generalised cross-correlation with phase transform at each keypoint: the challenge's baseline of 2026, corrected.

    R(f) = X1(f) conj(X0(f)) / |X1(f) conj(X0(f))|,    lag = argmax |IDFT(R)|

With this R an event that is later in channel 1 has a positive lag. The published code exchanges the two channels, so
that its predictions move away from the truth; `published_sign` reproduces this.

With `smoothness` > 0 the lags are smoothed to a path: on a grid of `step_s`, the path with the largest sum of
-|lag - grid| - smoothness |change|, all in seconds. `interpolate` puts a parabola through a peak and its two
neighbours, for a resolution below one sample (within 0.12 of a sample if all frequencies are equally strong); a lag
within one step of the path then stays unsmoothed.

The confidence is 1 - background / peak, at least 0, times the share of the window that both recordings cover. The
background is the expected maximum of as many values of Gaussian noise, whose deviation is estimated from the median
of all values. Unrelated windows correlate less where they overlap less (`overlap`).

DEVIATION: lags are searched up to the pair's largest lag, which its set guarantees, and never beyond the window's
length, where the two windows have no moment in common. (Published: 0.5 s for `aru`, 5 s for `zebra_finch`.)
DEVIATION: the window is centred on its keypoint (not stated). The mean that is subtracted from it is that of the
samples inside the recording, so that silence beyond an end adds no offset; published is the mean of the whole window.
A window without sound takes the lag of its neighbours.
DEVIATION: times of the map never fall; the published predictions may.

Source: Knapp and Carter 1976, table 1 (PHAT); the challenge's code of 2026 for windows, path and settings.

Shape legend: K keypoints, B keypoints of a block, T samples of a window, F frequencies, N lags, G lags of the grid.
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
SOURCE = "reimplementation of the published algorithm, its sign corrected"

BLOCK_SAMPLES = 1 << 20  # samples transformed at once: 50 MB in all
SMALLEST = 1e-12  # added to the magnitude of a cross-spectrum, as published
SILENT = 1e-6  # peak below which a window is silent: a thirtieth of one step of 16 bits
LEAST_OVERLAP = 0.5  # the background is measured at lags with at least this: below, numerical noise dominates
MEDIAN_OF_NORMAL = 0.6745  # median absolute value of a Gaussian, in deviations


@dataclass(frozen=True)
class Config:
    """Settings; the module docstring explains the method."""

    window_s: float = 2.5
    """Length of the window around a keypoint, in s, at least 0.01; silent beyond the ends of a recording."""

    smoothness: float = 0.0
    """Cost of changing the lag by a second, in seconds of distance from the measured lags, at least 0.

    0 uses the measured lags as they are.
    """

    step_s: float = 0.005
    """Step of the path's grid of lags, in s, at least a sample."""

    interpolate: bool = True
    """Whether a parabola through a peak and its neighbours refines a lag to a fraction of a sample."""

    hann: bool = True
    """Whether to fade a window in and out; the published code does not.

    Without it, both windows have edges at the same moments, and with low-frequency rumble these give a peak at lag 0.
    """

    published_sign: bool = False
    """Whether to exchange the channels, as the published code does, which moves predictions away from the truth."""

    def __post_init__(self) -> None:
        require(self.window_s >= 0.01, "window_s must be >= 0.01", self.window_s)
        require(self.smoothness >= 0, "smoothness must be >= 0", self.smoothness)
        require(self.step_s >= 1 / RATE_HZ, "step_s must be at least a sample", self.step_s)


def presets() -> dict[str, Config]:
    """Return the settings published for the two sets with the right sign, and as `-published` with the wrong one."""
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
    """Correlates the two channels around each keypoint. Memory is that of one block, for any length."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the map of the lag of each keypoint, with the confidence of its peak."""
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
        """Return lag in seconds and confidence at each keypoint, (K,) each."""
        num_samples = round(self.config.window_s * RATE_HZ)
        reach = min(round(pair.max_lag_s * RATE_HZ), num_samples - 1)
        start_K = np.rint(time0_K * RATE_HZ).astype(np.int64) - num_samples // 2
        lag_K, confidence_K = np.zeros((2, len(time0_K)))
        # 1. Peaks, block by block.
        overlap_N = overlap(_fade(self.config.hann, (np.arange(num_samples) + 0.5) / num_samples), reach)
        size = max(1, BLOCK_SAMPLES // _fft_length(num_samples))
        for start in range(0, len(time0_K), size):
            progress("gcc-phat", start, len(time0_K))
            block = slice(start, start + size)
            wave0_BT, wave1_BT = (
                self._centred_windows(wave_T, start_K[block], num_samples) for wave_T in (pair.wave0_T, pair.wave1_T)
            )
            correlation_BN = correlation(wave0_BT, wave1_BT, reach)
            lag_K[block], confidence_K[block] = find_peaks(correlation_BN, overlap_N, self.config.interpolate)
        # 2. Less confidence where a recording ends within the window; lags of silent windows from their neighbours.
        shortest = min(len(pair.wave0_T), len(pair.wave1_T))
        confidence_K *= _count_inside(start_K, num_samples, shortest) / num_samples
        progress("gcc-phat", len(time0_K), len(time0_K))
        found_K = np.isfinite(lag_K)
        if found_K.any():
            lag_K = np.interp(time0_K, time0_K[found_K], lag_K[found_K])
        return np.nan_to_num(lag_K) / RATE_HZ, confidence_K

    def _centred_windows(self, wave_T: Floats, start_B: Ints, num_samples: int) -> Floats:
        """Return windows (B, T) minus the mean of their samples inside the recording, faded, and silent outside it."""
        window_BT = windows(wave_T, start_B, num_samples)
        num_inside_B = _count_inside(start_B, num_samples, len(wave_T))
        # Counted from the first sample of the window that lies inside the recording.
        position_BT = np.arange(num_samples) - (-start_B).clip(0)[:, None]
        inside_BT = (position_BT >= 0) & (position_BT < num_inside_B[:, None])
        mean_B = window_BT.sum(axis=1, dtype=np.float64) / num_inside_B.clip(1)
        centred_BT: Floats = np.where(inside_BT, window_BT - mean_B[:, None], 0).astype(np.float32)
        centred_BT[np.abs(centred_BT).max(axis=1) < SILENT] = 0
        phase_BT = (position_BT + 0.5) / num_inside_B.clip(1)[:, None]
        return centred_BT * _fade(self.config.hann, phase_BT).astype(np.float32)


def correlation(wave0_BT: Floats, wave1_BT: Floats, reach: int) -> Floats:
    """Return the phase transform's correlation at lags -reach to reach samples, shape (B, 2 reach + 1).

    It is 1 at the lag by which one wave is the other delayed (circularly), and 0 for silence.
    """
    from scipy.fft import irfft, rfft

    length = _fft_length(wave0_BT.shape[1])
    assert reach < length // 2
    cross_BF = rfft(wave1_BT, length, axis=1) * rfft(wave0_BT, length, axis=1).conj()
    cross_BF /= np.abs(cross_BF) + SMALLEST
    circular_BT = irfft(cross_BF, length, axis=1)
    correlation_BN: Floats = np.concatenate([circular_BT[:, length - reach :], circular_BT[:, : reach + 1]], axis=1)
    return correlation_BN


def find_peaks(correlation_BN: Floats, overlap_N: Seconds, interpolate: bool) -> tuple[Seconds, Seconds]:
    """Return lag in samples (NaN where all is 0) and confidence of the largest magnitude of each row, (B,) each.

    The middle column is lag 0. `overlap_N` is the relative deviation of unrelated windows at each lag (`overlap`).
    """
    rows, last = np.arange(len(correlation_BN)), correlation_BN.shape[1] - 1
    height_BN = np.abs(correlation_BN)
    peak_column_B = height_BN.argmax(axis=1)
    peak_height_B = height_BN[rows, peak_column_B].astype(np.float64)
    lag_B = (peak_column_B - last // 2).astype(np.float64)
    if interpolate:
        # The parabola goes through the values, not their magnitudes, with signs such that the peak points up.
        sign_B = np.sign(correlation_BN[rows, peak_column_B])
        before_B, after_B = (sign_B * correlation_BN[rows, (peak_column_B + side).clip(0, last)] for side in (-1, 1))
        inner_B = (peak_column_B > 0) & (peak_column_B < last)
        lag_B += np.where(inner_B, vertex(before_B, peak_height_B, after_B), 0)
    measured_N = overlap_N >= LEAST_OVERLAP
    deviation_B = np.median(height_BN[:, measured_N] / overlap_N[measured_N], axis=1) / MEDIAN_OF_NORMAL
    # The highest of N values of Gaussian noise is near sqrt(2 ln N) deviations.
    background_B = deviation_B * np.sqrt(2 * np.log(last + 1)) * overlap_N[peak_column_B].clip(LEAST_OVERLAP)
    found_B = peak_height_B > 0
    confidence_B = np.where(found_B, 1 - background_B / np.where(found_B, peak_height_B, 1), 0).clip(0, 1)
    return np.where(found_B, lag_B, np.nan), confidence_B


def overlap(fade_T: Seconds, reach: int) -> Seconds:
    """Return the deviation of the correlation of unrelated windows at lags -reach to reach, relative to lag 0, (N,).

    The variance of a sum of products of independent values is the sum of the squared products of their weights, here
    the autocorrelation of the squared fade.
    """
    from scipy.signal import correlate

    variance = correlate(fade_T**2, fade_T**2, method="fft")
    middle = len(fade_T) - 1
    relative_N: Seconds = variance[middle - reach : middle + reach + 1] / variance[middle]
    deviation_N: Seconds = np.sqrt(relative_N.clip(0))
    return deviation_N


def smooth(lag_K: Seconds, smoothness: float, step_s: float, max_lag_s: float) -> Seconds:
    """Return the path of grid lags, (K,) in s, with the least sum of distances plus `smoothness` times changes."""
    most = max(1, round(max_lag_s / step_s))
    grid_G = np.arange(-most, most + 1, dtype=np.float64) * step_s
    score_KG = -np.abs(lag_K[:, None].astype(np.float32) - grid_G.astype(np.float32))
    path_K: Seconds = grid_G[best_path(score_KG, smoothness * step_s)]
    return path_K


def _fft_length(num_samples: int) -> int:
    """Return the smallest power of two that is at least twice a window."""
    return 1 << (2 * num_samples - 1).bit_length()


def _fade(hann: bool, phase: Seconds) -> Seconds:
    """Return the weight of samples at these phases, from 0 at the start of a window to 1 at its end: Hann's, or 1."""
    weight: Seconds = np.sin(np.pi * phase) ** 2 if hann else np.ones_like(phase)
    return weight


def _count_inside(start_B: Ints, num_samples: int, length: int) -> Ints:
    """Return how many samples of each window lie inside a recording of this length."""
    num_inside_B: Ints = (start_B + num_samples).clip(0, length) - start_B.clip(0, length)
    return num_inside_B
