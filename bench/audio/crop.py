"""Whole tracks, and excerpts of them, padded with silence beyond the track's ends or looped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from bench.audio.pcm import Corpus
from bench.values import Ints, Progress


def read_tracks(corpus: Corpus, tracks: Ints, stage: str, progress: Progress) -> Iterator[npt.NDArray[np.int16]]:
    """Yield whole tracks by their numbers, reporting each as a step of a stage."""
    for i, track in enumerate(tracks):
        progress(stage, i, len(tracks))
        yield corpus.read(int(track), 0, corpus.num_samples(int(track)))
    progress(stage, len(tracks), len(tracks))


def read_padded(corpus: Corpus, track: int, first: int, last: int) -> npt.NDArray[np.int16]:
    """Return samples first to last (exclusive) of a track, with silence before its start and after its end."""
    length = corpus.num_samples(track)
    begin, end = (min(max(sample, 0), length) for sample in (first, last))
    excerpt = np.zeros(last - first, dtype=np.int16)
    excerpt[begin - first : end - first] = corpus.read(track, begin, end - begin)
    return excerpt


def read_looped(corpus: Corpus, track: int, start: int, num_samples: int) -> npt.NDArray[np.int16]:
    """Return samples of a track from `start` on, starting over at its end as often as needed."""
    length = corpus.num_samples(track)
    blocks = []
    while num_samples > 0:
        block = corpus.read(track, start, min(num_samples, length - start))
        blocks.append(block)
        num_samples -= len(block)
        start = 0
    return np.concatenate(blocks)
