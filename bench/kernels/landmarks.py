"""Peaks of a spectrogram above a threshold that decays, and pairs of peaks, each in one pass on the CPU.

Whether a value is a peak depends on the peaks before it, which an operation on whole arrays cannot see. Everything is
float64 and in the order of the original's sums, so that not one peak differs from it.

Shape legend: W frames, F bins, P peaks, L pairs, K peaks of a frame, D distances in bins.

Source: audfprint (Ellis, 2014), `_decaying_threshold_fwd_prune`, `_decaying_threshold_bwd_prune_peaks` and
`peaks2landmarks`, as they are in audfprint2 0.1.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bench.kernels.floats import kernel
from bench.values import Ints

FIRST_FRAMES = 10  # whose maximum the forward threshold starts from
EXACT: set[str] = set()  # sums are not reordered


def pick_peaks(
    level_WF: npt.NDArray[np.float64], decay: float, spread_bins: float, most_per_frame: int
) -> tuple[Ints, Ints]:
    """Return the frames and the bins of the peaks, both (P,), by frame and then by bin.

    A peak exceeds a threshold, which it then raises to its own value times a Gaussian over the bins, of which
    `spread_bins` is the standard deviation; from frame to frame the threshold is multiplied by `decay`. A second pass,
    from the end, removes the peaks below such a threshold of the peaks after them.
    """
    num_frames, num_bins = level_WF.shape
    near_D = np.exp(-0.5 * (np.arange(-num_bins, num_bins + 1) / spread_bins) ** 2)
    bin_WK = np.empty((num_frames, most_per_frame), np.int64)
    count_W = np.zeros(num_frames, np.int64)
    if num_frames:
        _pick_forward(level_WF, near_D, decay, bin_WK, count_W)
        _prune_backward(level_WF, near_D, decay, bin_WK, count_W)
    frame_P = np.repeat(np.arange(num_frames), count_W)
    return frame_P, bin_WK[np.arange(most_per_frame) < count_W[:, None]]


def pair_peaks(
    frame_P: Ints, bin_P: Ints, fan_out: int, frames_apart: tuple[int, int], most_bins_apart: int
) -> tuple[Ints, Ints]:
    """Return the numbers of the earlier and of the later peak of each pair, both (L,), by earlier peak.

    A peak is paired with the first `fan_out` peaks, by frame and then by bin, that come a number of frames later
    (from the first to the last of `frames_apart`) and lie at most `most_bins_apart` bins off.
    """
    earlier_L, later_L = np.empty((2, len(frame_P) * fan_out), np.int64)
    count = _pair(frame_P, bin_P, fan_out, *frames_apart, most_bins_apart, earlier_L, later_L)
    return earlier_L[:count], later_L[:count]


def _kernel(function: Any) -> Any:
    return kernel(function, EXACT)


@_kernel
def _pick_forward(level_WF, near_D, decay, bin_WK, count_W):  # type: ignore[no-untyped-def]
    """Write the highest local maxima of each frame above the threshold, highest first."""
    num_frames, num_bins = level_WF.shape
    most = bin_WK.shape[1]
    top_F, threshold_F = level_WF[0].copy(), np.zeros(num_bins)
    for w in range(1, min(FIRST_FRAMES, num_frames)):
        for f in range(num_bins):
            top_F[f] = max(top_F[f], level_WF[w, f])
    _raise_to_maxima(top_F, near_D, threshold_F)
    for w in range(num_frames):
        level_F, bin_K = level_WF[w], bin_WK[w]
        count = 0
        for f in range(num_bins):
            if level_F[f] > threshold_F[f] and _is_maximum(level_F, f):
                # Of equal peaks the later bin counts as higher. One that is too low for a full list is dropped.
                place = count
                while place > 0 and level_F[f] >= level_F[bin_K[place - 1]]:
                    place -= 1
                count = min(count + 1, most)
                for k in range(count - 1, place, -1):
                    bin_K[k] = bin_K[k - 1]
                if place < most:
                    bin_K[place] = f
        count_W[w] = count
        for k in range(count):
            _raise(threshold_F, near_D, bin_K[k], level_F[bin_K[k]])
        for f in range(num_bins):
            threshold_F[f] *= decay


@_kernel
def _prune_backward(level_WF, near_D, decay, bin_WK, count_W):  # type: ignore[no-untyped-def]
    """Keep the peaks that are not hidden by later ones, and write those of each frame by bin."""
    num_frames, num_bins = level_WF.shape
    threshold_F = np.zeros(num_bins)
    _raise_to_maxima(level_WF[num_frames - 1], near_D, threshold_F)
    for w in range(num_frames - 1, -1, -1):
        level_F, bin_K = level_WF[w], bin_WK[w]
        kept = 0
        for k in range(count_W[w]):
            f = bin_K[k]
            if level_F[f] >= threshold_F[f]:
                _raise(threshold_F, near_D, f, level_F[f])
                bin_K[kept] = f
                kept += 1
                if w + 1 < num_frames:
                    count_W[w + 1] = _remove(bin_WK[w + 1], count_W[w + 1], f)
        count_W[w] = kept
        for f in range(num_bins):
            threshold_F[f] *= decay
    for w in range(num_frames):
        bin_WK[w, : count_W[w]].sort()


@_kernel
def _pair(frame_P, bin_P, fan_out, least, most, most_bins, earlier_L, later_L):  # type: ignore[no-untyped-def]
    """Write all pairs, and return how many there are."""
    count, first = 0, 0
    for p in range(len(frame_P)):
        while first < len(frame_P) and frame_P[first] < frame_P[p] + least:
            first += 1
        left = fan_out
        for q in range(first, len(frame_P)):
            if left == 0 or frame_P[q] > frame_P[p] + most:
                break
            if abs(bin_P[q] - bin_P[p]) <= most_bins:
                earlier_L[count], later_L[count] = p, q
                count += 1
                left -= 1
    return count


@_kernel
def _is_maximum(level_F, f):  # type: ignore[no-untyped-def]
    """Return whether a bin is no lower than the one before it, and higher than the one after it; ends may be."""
    return (f == 0 or level_F[f] >= level_F[f - 1]) and (f == len(level_F) - 1 or level_F[f] > level_F[f + 1])


@_kernel
def _raise_to_maxima(level_F, near_D, threshold_F):  # type: ignore[no-untyped-def]
    for f in range(len(level_F)):
        if _is_maximum(level_F, f):
            _raise(threshold_F, near_D, f, level_F[f])


@_kernel
def _raise(threshold_F, near_D, peak, level):  # type: ignore[no-untyped-def]
    """Raise the threshold to a peak's level times the Gaussian around its bin."""
    near_F = near_D[len(threshold_F) - peak :][: len(threshold_F)]
    for f in range(len(threshold_F)):
        threshold_F[f] = max(threshold_F[f], level * near_F[f])


@_kernel
def _remove(bin_K, count, peak):  # type: ignore[no-untyped-def]
    """Remove a bin from the first `count`, if it is among them, and return how many are left."""
    left = 0
    for k in range(count):
        if bin_K[k] != peak:
            bin_K[left] = bin_K[k]
            left += 1
    return left
