"""Whitens audio: makes all frequencies equally strong, so that a recording and its copy correlate in one sharp peak.

The peak is as wide as one sample, and the direct sound in a room comes first, so that reverberation does not move it.
Source: the generalized cross-correlation with phase transform (Knapp and Carter 1976), with smoothed magnitudes.

Shape legend: T samples at RATE_HZ, F frequencies.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.values import RATE_HZ as CORPUS_RATE_HZ
from bench.values import Floats

RATE_HZ = CORPUS_RATE_HZ // 2
SMOOTHING_HZ = 40.0  # magnitudes are averaged over this width; chosen on held-out training tracks
FRAME = 1 << 15  # samples of a recording that are whitened together, 4 s; a shorter one is whitened as a whole
FLOOR = 1e-6  # of the mean power: a band that holds less, as above the cut-off of an MP3, is not raised to the others
ROUNDING = 1e-6  # of the peak: smaller variations are rounding of what is constant


def halve_rate(wave_T: npt.NDArray[np.int16] | Floats) -> Floats:
    """Return audio at the corpus rate resampled to RATE_HZ; sample i of the result is at sample 2 i."""
    from scipy.signal import resample_poly

    halved_T: Floats = resample_poly(wave_T.astype(np.float32), 1, CORPUS_RATE_HZ // RATE_HZ)
    return halved_T


def whiten(wave_T: Floats) -> Floats:
    """Return the wave with a flat spectrum and the same phases; silence and a constant become silence.

    A recording longer than FRAME is whitened frame by frame, each half over the next, so that loud passages do not
    decide what the spectrum of quiet ones is divided by.
    """
    if len(wave_T) <= FRAME:
        return _whiten_frame(wave_T) if len(wave_T) else wave_T
    hop = FRAME // 2
    window_T = np.sin(np.pi * (np.arange(FRAME) + 0.5) / FRAME).astype(np.float32)
    num_frames = -(-len(wave_T) // hop) + 1
    padded_T = np.zeros((num_frames + 1) * hop, dtype=np.float32)
    padded_T[hop : hop + len(wave_T)] = wave_T
    out_T = np.zeros_like(padded_T)
    for start in range(0, num_frames * hop, hop):
        out_T[start : start + FRAME] += _whiten_frame(padded_T[start : start + FRAME] * window_T) * window_T
    return out_T[hop : hop + len(wave_T)]


def _whiten_frame(wave_T: Floats) -> Floats:
    from scipy.fft import irfft, rfft
    from scipy.ndimage import uniform_filter1d

    sound_T = wave_T - wave_T.mean(dtype=np.float64).astype(np.float32)
    if np.abs(sound_T).max() <= ROUNDING * np.abs(wave_T).max():
        return np.zeros_like(wave_T)
    spectrum_F = rfft(sound_T)
    power_F = np.square(np.abs(spectrum_F))
    width = max(1, round(SMOOTHING_HZ * len(wave_T) / RATE_HZ))
    smooth_F = np.maximum(uniform_filter1d(power_F, width, mode="nearest"), FLOOR * power_F.mean())
    white_T: Floats = irfft(spectrum_F / np.sqrt(smooth_F), len(wave_T)).astype(np.float32)
    return white_T
