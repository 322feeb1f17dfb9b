"""A coarse, robust hash of audio that finds the same recording twice, even where its samples differ.

Every 50 ms there is one 32-bit word. For each of 32 pairs of neighbouring bands, a bit holds in which of the
two the level rose more over the last 0.4 s. Level, equaliser, codec and sample rate hardly change it. Words from
the signs of band differences are Haitsma and Kalker's idea (ISMIR 2002). The parameters here are coarser, because
the hash only has to decide whether a few seconds of two files are the same recording.

Shape legend: T samples, F frames of 50 ms, B bands, W words, P candidate pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.values import RATE_HZ, Floats, Ints

VERSION = "words/1"
HOP_SAMPLES = 800  # 50 ms: two files are at most 25 ms out of step, little compared with means over 0.4 s
WINDOW_SAMPLES = 2048
SMOOTH_FRAMES = 8  # band levels are means over 0.4 s
LAG_FRAMES = 8  # a rise is measured over 0.4 s
NUM_BANDS = 33
LOW_HZ, HIGH_HZ = 200.0, 3800.0  # the range that survives even in an 8 kHz or 32 kbit/s copy
FLOOR = 1e-9  # re full-scale power: a band below it counts as silent
BATCH_FRAMES = 512  # frames transformed at a time, to bound memory

WORD_BITS = 32
CHANCE_BIT_ERRORS = WORD_BITS // 2  # by which two unrelated words differ
RUN_WORDS = 60  # 3 s: bit errors are averaged over a run of so many words
MAX_BIT_ERRORS = 0.22  # share of the bits: unrelated recordings differ in half of them, copies in less than 0.15
MIN_VOTES = 2  # equal words at the same lag that make a pair of tracks worth comparing
MAX_WORD_USES = 64  # a more frequent word (held tones, silence) is no evidence
MIN_SECONDS = 4.0  # in common: two tracks that share less are no duplicates

Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class WordList:
    """The words of many tracks, one after another: track i has words[first[i]:first[i + 1]]."""

    words: Words
    first: Ints


def num_words(num_samples: int) -> int:
    """Return how many words a track of this many samples has."""
    frames = 0 if num_samples < WINDOW_SAMPLES else 1 + (num_samples - WINDOW_SAMPLES) // HOP_SAMPLES
    return max(0, frames - SMOOTH_FRAMES + 1 - LAG_FRAMES)


def hash_words(pcm_T: npt.NDArray[np.int16]) -> Words:
    """Return the words of a track, shape (num_words(T),); a silent word is 0."""
    if num_words(len(pcm_T)) == 0:
        return np.zeros(0, np.uint32)
    power_FB = _band_power(pcm_T)
    running_sum_FB = np.cumsum(np.concatenate([np.zeros((1, NUM_BANDS)), power_FB]), axis=0)
    mean_FB = (running_sum_FB[SMOOTH_FRAMES:] - running_sum_FB[:-SMOOTH_FRAMES]) / SMOOTH_FRAMES
    rise_FB = np.diff(np.log(np.maximum(mean_FB, FLOOR)), axis=1)
    bits_WB = (rise_FB[LAG_FRAMES:] - rise_FB[:-LAG_FRAMES]) > 0
    return np.packbits(bits_WB, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)


def match_tracks(train: WordList, test: WordList) -> dict[tuple[int, int], float]:
    """Return {(train track, test track): shared seconds} of all pairs that share at least MIN_SECONDS."""
    shared: dict[tuple[int, int], float] = {}
    for i, j, lag in _candidates(train, test):
        seconds = _agreement(_track_words(train, i), _track_words(test, j), lag)
        if seconds >= MIN_SECONDS:
            shared[i, j] = max(seconds, shared.get((i, j), 0.0))
    return shared


def _band_power(pcm_T: npt.NDArray[np.int16]) -> Floats:
    from scipy.fft import rfft

    # Scaled so that a full-scale sine has power 1 in its bin.
    window = np.hanning(WINDOW_SAMPLES).astype(np.float32) / (2**15 * WINDOW_SAMPLES / 4)
    frames_FT = np.lib.stride_tricks.sliding_window_view(pcm_T, WINDOW_SAMPLES)[::HOP_SAMPLES]
    edges_hz = np.geomspace(LOW_HZ, HIGH_HZ, NUM_BANDS + 1)
    edges = np.round(edges_hz * WINDOW_SAMPLES / RATE_HZ).astype(np.int64)
    edges = np.maximum(edges, edges[0] + np.arange(NUM_BANDS + 1))  # the lowest bands are one bin wide
    power_FB = np.empty((len(frames_FT), NUM_BANDS), np.float32)
    for start in range(0, len(frames_FT), BATCH_FRAMES):
        spectrum = rfft(frames_FT[start : start + BATCH_FRAMES] * window, axis=1)[:, : edges[-1]]
        power = spectrum.real**2 + spectrum.imag**2
        power_FB[start : start + BATCH_FRAMES] = np.add.reduceat(power, edges[:-1], axis=1)
    return power_FB


def _candidates(train: WordList, test: WordList) -> Iterator[tuple[int, int, int]]:
    """Yield (train track, test track, lag in words) wherever several equal words have the same lag."""
    order = np.argsort(train.words, kind="stable")
    ranked = train.words[order]
    for j in range(len(test.first) - 1):
        # 1. every occurrence of each word of the test track among the sorted training words
        words = _track_words(test, j)
        low, high = np.searchsorted(ranked, words), np.searchsorted(ranked, words, side="right")
        uses = np.where((words == 0) | (high - low > MAX_WORD_USES), 0, high - low)
        position_P = np.repeat(np.arange(len(words)), uses)
        nth_P = np.arange(len(position_P)) - np.repeat(np.cumsum(uses) - uses, uses)
        train_word_P = order[np.repeat(low, uses) + nth_P]
        # 2. the training track and the lag of each occurrence; a lag counts if several words share it
        i_P = np.searchsorted(train.first, train_word_P, side="right") - 1
        lag_P = train_word_P - train.first[i_P] - position_P
        pairs, votes = np.unique(np.stack([i_P, lag_P], axis=1), axis=0, return_counts=True)
        yield from ((int(i), j, int(lag)) for i, lag in pairs[votes >= MIN_VOTES])


def _agreement(a: Words, b: Words, lag: int) -> float:
    """Return how many seconds of b, moved by `lag` words, lie in runs of 3 s that agree with a."""
    start, stop = max(0, -lag), min(len(b), len(a) - lag)
    if stop - start < RUN_WORDS:
        return 0.0
    a, b = a[start + lag : stop + lag], b[start:stop]
    errors = np.where((a == 0) | (b == 0), CHANCE_BIT_ERRORS, np.bitwise_count(a ^ b)).astype(np.int64)
    total = np.concatenate([[0], np.cumsum(errors)])
    agrees = total[RUN_WORDS:] - total[:-RUN_WORDS] <= MAX_BIT_ERRORS * WORD_BITS * RUN_WORDS
    covered = np.convolve(agrees, np.ones(RUN_WORDS)) > 0
    return float(covered.sum()) * HOP_SAMPLES / RATE_HZ


def _track_words(words: WordList, track: int) -> Words:
    return words.words[words.first[track] : words.first[track + 1]]
