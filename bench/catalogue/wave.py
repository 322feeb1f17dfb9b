"""Tells by the wave what a recording is, and where in its track it lies, if the catalogue holds the tracks' sign bits.

Fingerprints find the track; a piece of the stretch, as signs of the whitened recording, is then correlated with the
signs of the track around the place they told (`bench.search.verify` has the reasons). A piece is short, so that the
clocks of two recorders, which differ by some ten millionths, do not blur it.
Where fingerprints are not sure enough, all pieces of a window are compared with many places that they propose.

Shape legend: T samples of a piece, N samples of the transform, L lags, all at `bench.audio.whiten.RATE_HZ`; P pieces,
C candidates, R ranked answers of a piece, A answers of all pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.audio.whiten import RATE_HZ
from bench.search.sign_bits import SignBits, make_sign_bits
from bench.search.verify import Candidates, verify_white
from bench.values import RATE_HZ as CORPUS_RATE_HZ
from bench.values import Floats, Ints

LONGEST_S, SHORTEST_S = 2.0, 1.0  # of a piece
LEAST_S = 0.8  # of a recording that is one piece
MOST_PIECES = 8  # tried, in order of time, until one is certain
REACH = round(0.15 * RATE_HZ)  # before and after the place that the fingerprints told
# Deviations of what chance gives. Normal numbers reach it once in 4e11 lags, so in one of twenty million stretches.
CERTAIN = 7.0
SAME_START = round(0.010 * CORPUS_RATE_HZ)  # within which two pieces tell the same start of the recording
ANSWERS = 20  # of each piece


@dataclass(frozen=True)
class HeardSigns:
    """The sign bits of a recording, cut into windows that overlap: row i of the bits begins at sample i x step."""

    bits: SignBits
    step_samples: int
    """At the corpus rate."""


@dataclass(frozen=True)
class HeardLine:
    """What the wave says a stretch is."""

    row: int
    """Of the track."""

    offset_samples: int
    """Where in the track the recording's first sample lies, at the corpus rate."""

    score: float
    """The median over the pieces of the stretch of their correlation here, in deviations of what chance gives."""


def hear(wave_T: Floats) -> HeardSigns:
    """Return the sign bits of a recording of up to a window, at the corpus rate."""
    packed, count = make_sign_bits(wave_T)
    return HeardSigns(SignBits(packed, np.array([count]), ""), 0)


def find_line(
    heard: HeardSigns, tracks: SignBits, begin_samples: int, end_samples: int, row_C: Ints, offset_C: Ints
) -> HeardLine | None:
    """Return the best of the lines near these candidates; None if no piece has an answer.

    A candidate is a track and where in it the recording's first sample would lie; the stretch is from `begin_samples`
    to `end_samples` of the recording. All are at the corpus rate. A line has to be in half of the pieces: a loop that
    two works share, and that is heard for a moment, is in fewer.
    """
    window_P, first_P, length = _cut_pieces(heard, begin_samples, end_samples)
    if not len(window_P) or not len(row_C):
        return None
    sign_PT = heard.bits.read_windows(window_P, first_P, length) / np.float32(np.sqrt(length))
    begin_P = window_P * heard.step_samples + first_P * (CORPUS_RATE_HZ // RATE_HZ)
    start_PC = begin_P[:, None] + offset_C
    is_inside_PC = (start_PC >= 0) & (start_PC < tracks.num_samples[row_C] * (CORPUS_RATE_HZ // RATE_HZ))
    candidates = Candidates(np.where(is_inside_PC, row_C, -1), start_PC)
    found = verify_white([[sign_T] for sign_T in sign_PT], [candidates], tracks, ANSWERS)[0]
    offset_PR = found.start_QR - begin_P[:, None]
    row_A, offset_A = found.row_QR[found.row_QR >= 0], offset_PR[found.row_QR >= 0]
    if not len(row_A):
        return None
    same_APR = (found.row_QR == row_A[:, None, None]) & (np.abs(offset_PR - offset_A[:, None, None]) <= SAME_START)
    score_A = np.median(np.where(same_APR, found.score_QR, 0).max(axis=2), axis=1)
    best = int(score_A.argmax())
    return HeardLine(int(row_A[best]), int(offset_A[best]), float(score_A[best]))


def _cut_pieces(heard: HeardSigns, begin_samples: int, end_samples: int) -> tuple[Ints, Ints, int]:
    """Return window and first sample of each piece (P,), and the length of all; no piece if the stretch is short."""
    halving = CORPUS_RATE_HZ // RATE_HZ
    begin, end, step = (value // halving for value in (begin_samples, end_samples, heard.step_samples))
    spans, done = [], begin
    for window, window_samples in enumerate(heard.bits.num_samples.tolist()):
        first = -(-max(done - window * step, 0) // 8) * 8  # signs are read in whole bytes
        last = min(end - window * step, window_samples)
        if last > first:
            spans.append((window, first, last - first))
            done = window * step + last
    length = min(round(LONGEST_S * RATE_HZ), max((each for _window, _first, each in spans), default=0)) // 8 * 8
    pieces = [(window, first + i * length) for window, first, each in spans for i in range(each // max(length, 1))]
    if length < LEAST_S * RATE_HZ or not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64), length
    window_P, first_P = np.array(pieces, dtype=np.int64).T
    return window_P, first_P, length


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
