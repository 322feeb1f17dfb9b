"""Tells to the sample where a stretch of a recording lies in its track, if the catalogue holds the tracks' sign bits.

Fingerprints find the track; a piece of the stretch, as signs of the whitened recording, is then correlated with the
signs of the track around the place they told (`bench.search.verify` has the reasons). A piece is short, so that the
clocks of two recorders, which differ by some ten millionths, do not blur it.

Shape legend: T samples of a piece, N samples of the transform, L lags; all at `bench.audio.whiten.RATE_HZ`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.audio.whiten import RATE_HZ
from bench.search.sign_bits import SignBits
from bench.values import RATE_HZ as CORPUS_RATE_HZ

LONGEST_S, SHORTEST_S = 2.0, 1.0  # of a piece
MOST_PIECES = 8  # tried, in order of time, until one is certain
REACH = round(0.15 * RATE_HZ)  # before and after the place that the fingerprints told
# Deviations of what chance gives. Normal numbers reach it once in 4e11 lags, so in one of twenty million stretches.
CERTAIN = 7.0


@dataclass(frozen=True)
class HeardSigns:
    """The sign bits of a recording, cut into windows that overlap: row i of the bits begins at sample i x step."""

    bits: SignBits
    step_samples: int
    """At the corpus rate."""


def refine_offset(
    heard: HeardSigns, tracks: SignBits, row: int, offset_samples: int, begin_samples: int, end_samples: int
) -> int | None:
    """Return where in its track the recording's first sample lies, to the sample; None if the wave does not tell.

    `offset_samples` is what the fingerprints told; the stretch is from `begin_samples` to `end_samples` of the
    recording. All are at the corpus rate. None also means that the stretch is a recording of other samples, as a live
    performance is, or plays at another speed.
    """
    halving = CORPUS_RATE_HZ // RATE_HZ
    begin, end, offset, step = (
        value // halving for value in (begin_samples, end_samples, offset_samples, heard.step_samples)
    )
    tried = 0
    for window, window_samples in enumerate(heard.bits.num_samples.tolist()):
        first = -(-max(begin - window * step, 0) // 8) * 8  # signs are read in whole bytes
        length = min(end - window * step, window_samples, first + round(LONGEST_S * RATE_HZ)) - first
        if tried == MOST_PIECES:
            break
        if length < SHORTEST_S * RATE_HZ:
            continue
        tried += 1
        told = window * step + first + offset
        found = _correlate(heard.bits, window, first, length // 8 * 8, tracks, row, told)
        if found is not None:
            return (found - window * step - first) * halving
    return None


def _correlate(
    heard: SignBits, window: int, first: int, length: int, tracks: SignBits, row: int, told: int
) -> int | None:
    """Return the start in the track of the piece, within REACH of what was told; None if it is not certain."""
    from scipy.fft import irfft, next_fast_len, rfft

    lowest = (told - REACH) // 8 * 8
    num_lags = 2 * REACH + 8
    span = -(-(length + num_lags) // 8) * 8
    piece_T = heard.read_windows(np.array([window]), np.array([first]), length)[0]
    track_N = tracks.read_windows(np.array([row]), np.array([lowest]), span)[0]
    size = next_fast_len(span, real=True)
    score_L = np.abs(irfft(rfft(track_N, size) * rfft(piece_T, size).conj(), size)[:num_lags]) / np.sqrt(length)
    best = int(score_L.argmax())
    return lowest + best if score_L[best] >= CERTAIN else None
