"""Lags to a fraction of a sample: generalised cross-correlation of two waves along a roughly known curve of lags.

The curve is removed before spectra are averaged, so that a drift within the average does not smear the peak. The
averaged cross-spectrum is weighted by its coherence: bins where the channels have no sound in common count little.
Source: Knapp and Carter, The generalized correlation method for estimation of time delay, 1976, table 1 (the processor
of Hannan and Thomson).

Shape legend: K knots, S frames, T samples of a frame, F bins, L lags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import fftshift, irfft, rfft, rfftfreq
from scipy.ndimage import uniform_filter1d

from bench.align.baseline_grid import windows
from bench.align.contract import Pair, Seconds
from bench.parabola import vertex
from bench.score.statistics import MAD_TO_DEVIATION
from bench.values import RATE_HZ, Floats, Ints

FRAME = 4_096  # samples
HOP = FRAME // 2
BAND_HZ = (150.0, 7_600.0)  # wind lies below, the transition band of resamplers above
INDEPENDENT = 2 / 3  # effective number of independent frames per frame, at an overlap of one half
MOST_COHERENCE = 0.98  # limits the weight of a bin
KNOTS = 64  # per block, so that memory does not grow with the length
LEAST_POWER = 1e-30  # avoids division by zero


@dataclass(frozen=True, eq=False)
class Correlogram:
    """The correlation at each knot, by lag relative to a curve."""

    around_L: Seconds
    """Lags in s relative to the curve."""

    height_KL: Floats
    """How far the correlation stands out, in deviations of its row.

    Where the channels have nothing in common, the maximum of a row is about 4.
    """


def correlate_along(
    pair: Pair, knot_K: Seconds, lag_K: Seconds, reach_s: float, window_s: float, blur_s: float = 0.0
) -> Correlogram:
    """Return the correlations of a pair along a curve of lags (K,) at knots (K,), up to `reach_s` to either side.

    Each knot averages the frames in a window of `window_s` around it. `blur_s` smooths the power of the correlation
    over that width, for a curve that is not known more precisely. Cost: time K L; memory one block of knots.
    """
    most = max(1, round(reach_s * RATE_HZ))
    around_L = np.arange(-most, most + 1) / RATE_HZ
    rows = []
    for block in _blocks(len(knot_K)):
        height_KT = _robust_z_scores(
            _correlation(pair, knot_K[block], knot_K, lag_K, window_s), round(blur_s * RATE_HZ)
        )
        rows.append(height_KT[:, FRAME - most : FRAME + most + 1])
    return Correlogram(around_L, np.concatenate(rows))


def interpolate_peak(correlogram: Correlogram, column_K: Ints) -> tuple[Seconds, Seconds]:
    """Return the lag relative to the curve, and the height, of the peaks in these columns.

    A parabola through a column and its neighbours moves the lag to its top, except in the first and last column; the
    height stays that of the column. Shapes: (K,) each.
    """
    height_KL, last = correlogram.height_KL, correlogram.height_KL.shape[1] - 1
    inner_K = np.clip(column_K, 1, last - 1)
    rows_K = np.arange(len(column_K))
    before, here, after = (height_KL[rows_K, inner_K + i].astype(np.float64) for i in (-1, 0, 1))
    shift = vertex(before, here, after)
    shift = np.where((inner_K == column_K) & (np.abs(shift) <= 1), shift, 0.0)
    step_s = correlogram.around_L[1] - correlogram.around_L[0]
    return correlogram.around_L[column_K] + shift * step_s, height_KL[rows_K, column_K].astype(np.float64)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, KNOTS):
        yield slice(start, min(count, start + KNOTS))


def _correlation(pair: Pair, block_K: Seconds, knot_K: Seconds, lag_K: Seconds, window_s: float) -> Floats:
    """Return the weighted correlation (K, 2 FRAME) at the knots of a block; lag 0 is in column FRAME."""
    # 1. Frames that the windows of the block cover, those of channel 1 moved along the curve.
    half_s = window_s / 2
    first, last = ((t * RATE_HZ) // HOP for t in (block_K[0] - half_s, block_K[-1] + half_s))
    centre_S = np.arange(int(first), int(last) + 1) * HOP
    time_S = centre_S / RATE_HZ
    position_S = centre_S + np.interp(time_S, knot_K, lag_K) * RATE_HZ
    whole_S = np.rint(position_S).astype(np.int64)
    spectrum0_SF, spectrum1_SF = _spectra(pair.wave0_T, centre_S), _spectra(pair.wave1_T, whole_S)
    # The frames of channel 1 start at whole samples; the remaining fraction of the lag is removed as a phase.
    turn_F = 2j * np.pi * rfftfreq(2 * FRAME)
    turn_SF = np.exp(turn_F * (position_S - whole_S)[:, None]).astype(np.complex64)
    cross_SF = spectrum1_SF * spectrum0_SF.conj() * turn_SF
    # 2. Cross-spectrum and power averaged over each knot's window, weighted and transformed back.
    near_KS = (np.abs(time_S - block_K[:, None]) <= half_s).astype(np.float32)
    count_K1 = np.maximum(near_KS.sum(axis=1, keepdims=True), 1)
    cross_KF = near_KS @ cross_SF
    power_KF = (near_KS @ np.square(np.abs(spectrum0_SF))) * (near_KS @ np.square(np.abs(spectrum1_SF)))
    weighted_KF = cross_KF * _weights(np.abs(cross_KF), power_KF, INDEPENDENT * count_K1)
    correlation_KT: Floats = fftshift(irfft(weighted_KF, 2 * FRAME, axis=1), axes=1)
    return correlation_KT


def _spectra(wave_T: Floats, centre_S: Ints) -> npt.NDArray[np.complex64]:
    """Return the spectra (S, F) of frames centred on these samples, zero-padded to twice their length."""
    frame_ST = windows(wave_T, centre_S - FRAME // 2, FRAME)
    frame_ST -= frame_ST.mean(axis=1, keepdims=True)
    frame_ST *= np.hanning(FRAME + 1)[:-1].astype(np.float32)
    spectra: npt.NDArray[np.complex64] = rfft(frame_ST, 2 * FRAME, axis=1)
    return spectra


def _weights(cross_KF: Floats, power_KF: Floats, independent_K1: npt.NDArray[np.floating]) -> Floats:
    """Return Hannan's and Thomson's weights divided by the magnitude, so that a weighted cross-spectrum is pure phase.

    The average of n unrelated spectra has an expected coherence of 1 / n, which is subtracted.
    """
    coherence_KF = np.square(cross_KF) / np.maximum(power_KF, LEAST_POWER)
    coherence_KF = np.clip(coherence_KF - 1 / np.maximum(independent_K1, 1), 0, MOST_COHERENCE)
    low_hz, high_hz = BAND_HZ
    hz_F = rfftfreq(2 * FRAME, 1 / RATE_HZ)
    inside_F = (hz_F >= low_hz) & (hz_F <= high_hz)
    weights: Floats = inside_F * coherence_KF / (1 - coherence_KF) / np.maximum(cross_KF, LEAST_POWER)
    return weights


def _robust_z_scores(correlation_KT: Floats, blur: int) -> Floats:
    """Return each row minus its median, divided by its deviation; 0 where a row is silent.

    The deviation is estimated from the median absolute deviation. Both are measured at lags up to a quarter of a frame:
    at fewer lags, a peak and its side lobes would dominate; at more, the frames overlap less and less.
    """
    if blur > 1:
        power_KT = uniform_filter1d(np.square(correlation_KT), blur, axis=1, mode="wrap")
        correlation_KT = np.sqrt(np.maximum(power_KT, 0))
    middle = slice(FRAME - FRAME // 4, FRAME + FRAME // 4 + 1)
    off_KT = correlation_KT - np.median(correlation_KT[:, middle], axis=1, keepdims=True)
    scale_K1 = MAD_TO_DEVIATION * np.median(np.abs(off_KT[:, middle]), axis=1, keepdims=True)
    height_KT: Floats = np.where(scale_K1 > 0, off_KT / np.where(scale_K1 > 0, scale_K1, 1), 0).astype(np.float32)
    return height_KT
