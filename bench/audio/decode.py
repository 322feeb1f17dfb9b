"""Decoding of audio files to mono at 16 kHz. Decoders differ in delay, so all files go through the same one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import DataError
from bench.values import RATE_HZ, Floats

if TYPE_CHECKING:
    from soundfile import SoundFile

BLOCK_FRAMES = 1 << 18  # frames read at a time: an hour of 48 kHz stereo is never in memory at once


def decoder_version() -> str:
    """Return the name and versions of the decoder and the resampler: part of every corpus key."""
    import soundfile
    import soxr

    return f"soundfile {soundfile.__version__}/libsndfile {soundfile.__libsndfile_version__}/soxr {soxr.__version__} HQ"


def decode(path: Path) -> Floats:
    """Return the audio of a file as the mean of its channels at 16 kHz.

    A truncated mp3 or ogg is accepted with the audio that still decodes; a damaged file whose decoder
    reports the damage (flac) is refused.
    Shapes: (T,) float32.  Units: full scale is 1; resampling may overshoot it.
    Raises: DataError naming the file if it is missing, cannot be decoded, holds no samples, or holds
    NaN or infinite samples.
    """
    import soundfile

    if not path.is_file():
        raise DataError(f"no audio file at {path}; restore it or leave it out")
    try:
        with soundfile.SoundFile(path) as file:
            wave_T = np.concatenate([block_TC[:, 0] for block_TC in resample_blocks(file, 1)])
    except (RuntimeError, ValueError) as error:  # soundfile's errors are RuntimeErrors
        raise DataError(f"{path} cannot be decoded ({error}); restore the file or remove it") from error
    if len(wave_T) == 0:
        raise DataError(f"{path} holds no samples; restore the file or remove it")
    if not np.isfinite(wave_T).all():
        raise DataError(f"{path} holds NaN or infinite samples; export it again or remove it")
    return wave_T


def resample_blocks(file: SoundFile, num_channels: int) -> Iterator[Floats]:
    """Yield an open file's samples in blocks (T, C) at RATE_HZ: all channels, or their mean if `num_channels` is 1."""
    import soxr

    stream = None
    if file.samplerate != RATE_HZ:
        stream = soxr.ResampleStream(file.samplerate, RATE_HZ, num_channels, quality="HQ")
    last = False
    while not last:
        block_TC = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        last = len(block_TC) < BLOCK_FRAMES  # a truncated file gives less than its header says
        if num_channels == 1:
            block_TC = block_TC.mean(axis=1, dtype=np.float32, keepdims=True)
        yield block_TC if stream is None else stream.resample_chunk(block_TC, last=last).reshape(-1, num_channels)
