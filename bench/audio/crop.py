"""Pieces of tracks: with silence around a track's ends, or looped where a noise is too short."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bench.audio.pcm import Corpus


def read_padded(corpus: Corpus, track: int, first: int, last: int) -> npt.NDArray[np.int16]:
    """Return samples first to last (exclusive) of a track, silence where it has not begun or is over."""
    length = corpus.num_samples(track)
    begin, end = (min(max(sample, 0), length) for sample in (first, last))
    cut = np.zeros(last - first, dtype=np.int16)
    cut[begin - first : end - first] = corpus.read(track, begin, end - begin)
    return cut


def read_looped(corpus: Corpus, track: int, start: int, num_samples: int) -> npt.NDArray[np.int16]:
    """Return samples of a track from `start` on, beginning again at its end where it is too short."""
    length = corpus.num_samples(track)
    pieces = []
    while num_samples > 0:
        piece = corpus.read(track, start, min(num_samples, length - start))
        pieces.append(piece)
        num_samples -= len(piece)
        start = 0
    return np.concatenate(pieces)
