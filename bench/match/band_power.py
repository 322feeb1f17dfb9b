"""The power of a wave in bands, frame by frame: what both `philips` and `waveprint` see of it.

Haitsma-Kalker work at 5 kHz with frames of 0.37 s, each 1/32 of a frame after the last. At the corpus rate both are
whole numbers of samples, so that every frame starts at one; nothing above 2 kHz is used (our reading: the resampling is
left out, the rest is as implementations quote the paper).

Shape legend: T samples, N frames, F frequency bins, M bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from bench.values import RATE_HZ

FRAME_SAMPLES = 5_920  # 0.37 s
HOP_SAMPLES = 185  # 11.56 ms
FRAME_HOPS = FRAME_SAMPLES // HOP_SAMPLES  # 32: two frames this far apart share no sample
FFT_SIZE = 8_192
BLOCK_FRAMES = 16  # transformed at once: they fit into a processor's cache
Powers = npt.NDArray[np.float64]


def count_frames(num_samples: int) -> int:
    """Return how many whole frames a wave has."""
    return max(0, 1 + (num_samples - FRAME_SAMPLES) // HOP_SAMPLES)


def space_edges(low_hz: float, high_hz: float, num_bands: int) -> Powers:
    """Return the edges (M + 1,) of bands of equal width on a logarithmic scale, in Hz."""
    return np.geomspace(low_hz, high_hz, num_bands + 1)


def band_power(wave_T: npt.NDArray[Any], edges_hz: Powers) -> Powers:
    """Return the power (N, M) of each frame in each band: the sum of squared magnitudes of the bins from edge to edge.

    In double precision: neighbouring frames share 31/32 of their samples, and bits are signs of their differences.
    Cost: one transform of 8,192 points per frame, 16 to 27 us.
    """
    num_frames, num_bands = count_frames(len(wave_T)), len(edges_hz) - 1
    power_NM = np.empty((num_frames, num_bands))
    if not num_frames:
        return power_NM
    first_M = np.ceil(edges_hz * FFT_SIZE / RATE_HZ).astype(np.int64)
    assert np.all(np.diff(first_M) > 0) and first_M[-1] <= FFT_SIZE // 2
    # A periodic Hann window.
    window_T = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES)
    frame_NT = np.lib.stride_tricks.sliding_window_view(wave_T, FRAME_SAMPLES)[::HOP_SAMPLES]
    for start in range(0, num_frames, BLOCK_FRAMES):
        block = slice(start, start + BLOCK_FRAMES)
        bin_NF = scipy.fft.rfft(frame_NT[block] * window_T, FFT_SIZE, axis=1, workers=1)[:, : first_M[-1]]
        power_NM[block] = np.add.reduceat(bin_NF.real**2 + bin_NF.imag**2, first_M[:-1], axis=1)
    return power_NM
