"""The loops of Waveprint on the CPU: signs of the largest wavelets, Min-Hash of the bits, and pictures that meet.

NumPy would sort all wavelets of a picture, copy a row of ranks for each bit, and sort all hits.

Shape legend: Q pictures of a query, W wavelets, K largest of them, B = 2 W + 1 bits, P permutations, N stored pictures,
H hits of a query, M pairs of pictures that meet.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.kernels.floats import kernel
from bench.values import Floats, Ints

BIN_BITS = 20  # of the 31 of a positive float, the lower ones: an eighth of an octave is sorted at a time
BINS = 1 << (31 - BIN_BITS)


def find_signs(wavelet_QW: Floats, num_largest: int) -> Ints:
    """Return the bits (Q, K) that are set: 2 w if wavelet w is positive, 2 w + 1 if it is negative, of the largest.

    Of equal magnitudes the first is larger. A wavelet of 0 has no sign: its bit is 2 W, which stands for none.
    """
    bits_QK = np.full((len(wavelet_QW), num_largest), 2 * wavelet_QW.shape[1], dtype=np.int64)
    magnitude_QW = np.abs(wavelet_QW).view(np.int32)  # positive floats have the order of their bits
    _find_signs(magnitude_QW, np.signbit(wavelet_QW), bits_QK)
    return bits_QK


def find_least_ranks(bits_QK: Ints, rank_BP: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return for each picture and permutation the least rank of its bits, (Q, P)."""
    least_QP = np.full((len(bits_QK), rank_BP.shape[1]), 255, dtype=np.uint8)
    _find_least_ranks(bits_QK, rank_BP, least_QP)
    return least_QP


def find_meetings(picture_H: Ints, position_H: Ints, num_stored: int, least: int) -> tuple[Ints, Ints]:
    """Return the pairs (M,) of a picture and a stored position that are among the hits at least `least` times.

    The pictures come in ascending order. `least` is from 1 to 255; nothing is hit more often than that.
    """
    is_meeting_H = np.zeros(len(picture_H), dtype=np.bool_)
    _find_meetings(picture_H, position_H, np.zeros(num_stored, np.uint8), least, is_meeting_H)
    return picture_H[is_meeting_H], position_H[is_meeting_H]


@kernel
def _find_signs(magnitude_QW, is_negative_QW, bits_QK):  # type: ignore[no-untyped-def]
    num_wavelets, num_largest = magnitude_QW.shape[1], bits_QK.shape[1]
    in_bin, candidates = np.empty(BINS, np.int32), np.empty(num_wavelets, np.int64)
    for q in range(len(magnitude_QW)):
        magnitude_W = magnitude_QW[q]
        in_bin[:] = 0
        for w in range(num_wavelets):
            in_bin[magnitude_W[w] >> BIN_BITS] += 1
        # The last bin that holds some of the largest, and how many the bins above it hold.
        last, above = BINS - 1, 0
        while last > 0 and above + in_bin[last] < num_largest:
            above += in_bin[last]
            last -= 1
        written, found = 0, 0
        for w in range(num_wavelets):
            if magnitude_W[w] >> BIN_BITS > last:
                bits_QK[q, written] = 2 * w + is_negative_QW[q, w]
                written += 1
            elif magnitude_W[w] >> BIN_BITS == last and magnitude_W[w] > 0:
                candidates[found] = -np.int64(magnitude_W[w]) * num_wavelets + w
                found += 1
        candidates[:found].sort()
        for i in range(min(found, num_largest - written)):
            w = candidates[i] % num_wavelets
            bits_QK[q, written + i] = 2 * w + is_negative_QW[q, w]


@kernel
def _find_least_ranks(bits_QK, rank_BP, least_QP):  # type: ignore[no-untyped-def]
    num_permutations = rank_BP.shape[1]
    for q in range(len(bits_QK)):
        least_P = least_QP[q]
        for k in range(bits_QK.shape[1]):
            rank_P = rank_BP[bits_QK[q, k]]
            for p in range(num_permutations):
                rank, least = rank_P[p], least_P[p]
                least_P[p] = rank if rank < least else least  # uses all lanes; `min` would not


@kernel
def _find_meetings(picture_H, position_H, times_N, least, is_meeting_H):  # type: ignore[no-untyped-def]
    first = 0
    for h in range(len(picture_H)):
        if picture_H[h] != picture_H[first]:
            for before in range(first, h):
                times_N[position_H[before]] = 0
            first = h
        times_N[position_H[h]] += 1
        is_meeting_H[h] = times_N[position_H[h]] == least
