"""Lags to a part of a sample, around a curve that is known roughly: generalised cross-correlation along it.

The curve is taken off before spectra are averaged, so that a drift within the average does not smear the peak. What is
averaged is weighted by its coherence: bins where the channels have no common sound count little.
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
from bench.values import RATE_HZ, Floats, Ints

FRAME = 4_096
HOP = FRAME // 2
BAND_HZ = (150.0, 7_600.0)  # wind below; above, what is left of a resampler's edge
INDEPENDENT = 2 / 3  # of frames that overlap by half
MOST_COHERENCE = 0.98
KNOTS = 64  # looked at together: memory of one block, whatever the length


@dataclass(frozen=True, eq=False)
class Correlogram:
    """For each lag (L,), in seconds around the curve, how far each knot's correlation (K, L) stands out.

    A row is in deviations of what it has elsewhere: with nothing in common the largest of a row is about 4.
    """

    around_L: Seconds
    height_KL: Floats


def correlate_along(
    pair: Pair, knot_K: Seconds, lag_K: Seconds, reach_s: float, window_s: float, blur_s: float = 0.0
) -> Correlogram:
    """Return the correlations of a pair along a curve of lags (K,) at knots (K,), to `reach_s` on either side of it.

    Each knot averages the frames of `window_s` around it. `blur_s` makes the power of the correlation that wide
    where the curve is not known better. Time K L; memory one block of knots.
    """
    most = max(1, round(reach_s * RATE_HZ))
    around_L = np.arange(-most, most + 1) / RATE_HZ
    rows = []
    for some in _blocks(len(knot_K)):
        standing_KT = _robust_z_scores(
            _correlation(pair, knot_K[some], knot_K, lag_K, window_s), round(blur_s * RATE_HZ)
        )
        rows.append(standing_KT[:, FRAME - most : FRAME + most + 1])
    return Correlogram(around_L, np.concatenate(rows))


def interpolate_peak(found: Correlogram, column_K: Ints) -> tuple[Seconds, Seconds]:
    """Return the lag beside the curve and the height at these columns, moved to the top of a parabola.

    Shapes: (K,) each. The parabola goes through a column and its neighbours; at the ends of the reach there is none.
    """
    height_KL, last = found.height_KL, found.height_KL.shape[1] - 1
    inner_K = np.clip(column_K, 1, last - 1)
    rows_K = np.arange(len(column_K))
    before, here, after = (height_KL[rows_K, inner_K + i].astype(np.float64) for i in (-1, 0, 1))
    shift = vertex(before, here, after)
    shift = np.where((inner_K == column_K) & (np.abs(shift) <= 1), shift, 0.0)
    step_s = found.around_L[1] - found.around_L[0]
    return found.around_L[column_K] + shift * step_s, height_KL[rows_K, column_K].astype(np.float64)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, KNOTS):
        yield slice(start, min(count, start + KNOTS))


def _correlation(pair: Pair, own_K: Seconds, knot_K: Seconds, lag_K: Seconds, window_s: float) -> Floats:
    """Return the weighted correlation (K, 2 FRAME) of some knots; lag 0 is in column FRAME."""
    half_s = window_s / 2
    first, last = ((t * RATE_HZ) // HOP for t in (own_K[0] - half_s, own_K[-1] + half_s))
    centre_S = np.arange(int(first), int(last) + 1) * HOP
    time_S = centre_S / RATE_HZ
    at_S = centre_S + np.interp(time_S, knot_K, lag_K) * RATE_HZ
    whole_S = np.rint(at_S).astype(np.int64)
    spectrum0_SF, spectrum1_SF = _spectra(pair.wave0_T, centre_S), _spectra(pair.wave1_T, whole_S)
    # What a whole number of samples leaves of the curve's lag is taken off as a phase.
    turn_F = 2j * np.pi * rfftfreq(2 * FRAME)
    cross_SF = spectrum1_SF * spectrum0_SF.conj() * np.exp(turn_F * (at_S - whole_S)[:, None]).astype(np.complex64)
    near_KS = (np.abs(time_S - own_K[:, None]) <= half_s).astype(np.float32)
    count_K1 = np.maximum(near_KS.sum(axis=1, keepdims=True), 1)
    cross_KF = near_KS @ cross_SF
    power_KF = (near_KS @ np.square(np.abs(spectrum0_SF))) * (near_KS @ np.square(np.abs(spectrum1_SF)))
    weighted_KF = cross_KF * _weights(np.abs(cross_KF), power_KF, INDEPENDENT * count_K1)
    correlation_KT: Floats = fftshift(irfft(weighted_KF, 2 * FRAME, axis=1), axes=1)
    return correlation_KT


def _spectra(wave_T: Floats, centre_S: Ints) -> npt.NDArray[np.complex64]:
    """Return the spectra (S, F) of frames around these samples, of twice their length; silence beyond the ends."""
    frame_ST = windows(wave_T, centre_S - FRAME // 2, FRAME)
    frame_ST -= frame_ST.mean(axis=1, keepdims=True)
    frame_ST *= np.hanning(FRAME + 1)[:-1].astype(np.float32)
    spectra: npt.NDArray[np.complex64] = rfft(frame_ST, 2 * FRAME, axis=1)
    return spectra


def _weights(cross_KF: Floats, power_KF: Floats, independent_K1: npt.NDArray[np.floating]) -> Floats:
    """Return Hannan's and Thomson's weights over the magnitude, so that a product with a cross-spectrum is all phase.

    The coherence of n averages of unlike sounds is 1 / n, which is taken off.
    """
    coherence_KF = np.square(cross_KF) / np.maximum(power_KF, 1e-30)
    coherence_KF = np.clip(coherence_KF - 1 / np.maximum(independent_K1, 1), 0, MOST_COHERENCE)
    low_hz, high_hz = BAND_HZ
    hz_F = rfftfreq(2 * FRAME, 1 / RATE_HZ)
    inside_F = (hz_F >= low_hz) & (hz_F <= high_hz)
    weights: Floats = inside_F * coherence_KF / (1 - coherence_KF) / np.maximum(cross_KF, 1e-30)
    return weights


def _robust_z_scores(correlation_KT: Floats, blur: int) -> Floats:
    """Return rows in deviations from their middle, as medians tell them; zeros where a row is silent.

    The middle is that of lags to a quarter of a frame: of fewer, a peak and what rings beside it would be the
    deviation; of more, frames overlap less and less.
    """
    if blur > 1:
        power_KT = uniform_filter1d(np.square(correlation_KT), blur, axis=1, mode="wrap")
        correlation_KT = np.sqrt(np.maximum(power_KT, 0))
    middle = slice(FRAME - FRAME // 4, FRAME + FRAME // 4 + 1)
    off_KT = correlation_KT - np.median(correlation_KT[:, middle], axis=1, keepdims=True)
    scale_K1 = 1.4826 * np.median(np.abs(off_KT[:, middle]), axis=1, keepdims=True)
    heights: Floats = np.where(scale_K1 > 0, off_KT / np.where(scale_K1 > 0, scale_K1, 1), 0).astype(np.float32)
    return heights
