"""Keeps whitened audio with one bit per sample: whether it is above zero. 1 kB holds a second of a track.

One bit costs about 2 dB of a correlation's signal-to-noise ratio; every sample then has the same power, so that no loud
passage of a track decides a correlation.

Shape legend: T samples, W windows, N samples of a window.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.audio.crop import read_tracks
from bench.audio.pcm import Corpus
from bench.audio.whiten import FLOOR, FRAME, SMOOTHING_HZ, halve_rate, whiten
from bench.errors import StoreError
from bench.store import Store, digest
from bench.values import Floats, Ints, Progress

FORMAT = 1
BITS = "bits.u8"
_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # of each byte
_MEANS = {step: _SIGNS.reshape(256, 8 // step, step).mean(axis=2) for step in (1, 2, 4, 8)}  # of every so many


@dataclass(frozen=True, eq=False)
class SignBits:
    """The signs of whole tracks, whitened, at `bench.audio.whiten.RATE_HZ`."""

    packed: npt.NDArray[np.uint8]
    """Eight samples a byte, the first in the highest bit, memory-mapped; each track begins with a byte of its own."""

    num_samples: Ints
    """Of each track, shape (tracks,)."""

    key: str
    """The content key."""

    @cached_property
    def first_byte(self) -> Ints:
        """Return shape (tracks + 1,): the bytes of track i are first_byte[i] up to first_byte[i + 1]."""
        return np.concatenate([[0], np.cumsum(_count_bytes(self.num_samples))]).astype(np.int64)

    def read_windows(self, row_W: Ints, first_W: Ints, length: int, step: int = 1) -> Floats:
        """Return samples (W, N) of tracks: 1 or -1, and 0 outside of a track; or the mean of every `step` of them.

        `first_W` is the first sample of each window, perhaps before the track; it and the length are multiples of 8.
        A step is 1, 2, 4 or 8. Of the last mean inside a track, a part may be a bit that stands for no sample.
        """
        first_byte_W = self.first_byte[row_W] + first_W // 8
        num_bytes = length // 8
        packed_WX = np.zeros((len(row_W), num_bytes), dtype=np.uint8)
        packed = self.packed.view(np.ndarray)  # a slice of a memmap takes three times what copying a window does
        for w, byte in enumerate(first_byte_W.tolist()):
            begin, end = max(0, byte), min(byte + num_bytes, len(packed))
            packed_WX[w, begin - byte : end - byte] = packed[begin:end]
        # Indexing by brackets gives the same and takes eight times as long.
        sign_WN: Floats = _MEANS[step].take(packed_WX, axis=0).reshape(len(row_W), length // step)
        # Beyond the ends of a track lie other tracks, and up to seven bits that stand for no sample.
        outside_W = (first_W < 0) | (first_W + length > self.num_samples[row_W])
        for w in np.flatnonzero(outside_W).tolist():
            sign_WN[w, : max(0, -int(first_W[w])) // step] = 0
            sign_WN[w, -(-max(0, int(self.num_samples[row_W[w]] - first_W[w])) // step) :] = 0
        return sign_WN


def make_sign_bits(wave_T: npt.NDArray[np.int16] | Floats) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the packed signs of audio at the corpus rate, and the number of samples they stand for."""
    white_T = whiten(halve_rate(wave_T))
    return np.packbits(white_T >= 0), len(white_T)


def prepare_sign_bits(store: Store, corpus: Corpus, tracks: Ints, progress: Progress) -> SignBits:
    """Return the sign bits of whole tracks of a corpus, from the store or made now."""
    key = digest(FORMAT, (SMOOTHING_HZ, FRAME, FLOOR), corpus.digest, tracks.tolist())
    num_samples = -(-corpus.lengths[tracks] // 2)

    def build(folder: Path) -> None:
        write_sign_bits(folder / BITS, read_tracks(corpus, tracks, "sign bits", progress))

    return read_sign_bits(store.fetch("sign-bits", key, build) / BITS, num_samples.tolist(), key)


def write_sign_bits(path: Path, waves: Iterator[npt.NDArray[np.int16]]) -> list[int]:
    """Write the sign bits of tracks at the corpus rate, one after another; return the number of samples of each."""
    counts = []
    with path.open("wb") as file:
        for wave_T in waves:
            packed, count = make_sign_bits(wave_T)
            file.write(packed.tobytes())
            counts.append(count)
        file.flush()
        os.fsync(file.fileno())
    return counts


def read_sign_bits(path: Path, num_samples: Sequence[int], key: str) -> SignBits:
    """Return the sign bits in a file, memory-mapped. Raises: StoreError if it is missing or of another size."""
    counts = np.array(num_samples, dtype=np.int64)
    expected = int(_count_bytes(counts).sum())
    size = path.stat().st_size if path.is_file() else -1
    if size != expected:
        raise StoreError(f"{path} is missing or cut off; delete the folder {path.parent} and run again")
    return SignBits(np.memmap(path, dtype=np.uint8, mode="r"), counts, key)


def _count_bytes(num_samples: Ints) -> Ints:
    return -(-num_samples // 8)
