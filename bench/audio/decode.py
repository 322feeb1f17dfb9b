"""Decoding of audio files to mono at 16 kHz. Decoders differ in delay, so all files go through the same one.

Shape legend: T samples, C channels.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from bench.audio.containers import StreamFile, inspect
from bench.audio.formats import unreadable_format
from bench.errors import DataError
from bench.values import RATE_HZ, Floats, Progress, no_progress

if TYPE_CHECKING:
    from soundfile import SoundFile

BLOCK_FRAMES = 1 << 18  # frames read at a time: an hour of 48 kHz stereo is never in memory at once
PASSING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR)
SYSTEM_ERROR = 2  # libsndfile's code
READER = "reader 3"  # raised when the same file gives other samples
LOWEST_RATE_HZ = 1_000  # a header with less would make hours, and gigabytes, of a small file
SOUND_POWER = 1e-8  # -80 dB re full scale: below it a channel is silent
DEAD_POWER = 2.0**-30  # one step of 16 bits: a channel with an offset and less sound than that is a dead input
CANCELLED = 0.01  # power of the mean of the channels, over that of the channels, below which they cancel each other
LEAST_OFFSET = 1e-3  # of full scale; a smaller constant offset is left in
LEAST_OFFSET_SHARE = 0.05  # of the deviation from it; a smaller constant offset is left in

T = TypeVar("T")


class UnreadableNowError(DataError):
    """A file that could not be read this time, such as one without permission or on a drive that is away."""


@dataclass(frozen=True)
class Decoded:
    """The audio of a file (T,) at RATE_HZ, and what was wrong with it, as the rest of a sentence ("" if nothing)."""

    wave_T: Floats
    note: str


def decoder_version() -> str:
    """Return the name and versions of the decoder and the resampler: part of every corpus key."""
    import soundfile
    import soxr

    versions = (
        f"soundfile {soundfile.__version__}/libsndfile {soundfile.__libsndfile_version__}/soxr {soxr.__version__}"
    )
    return f"{versions} HQ/{READER}"


def decode(path: Path) -> Floats:
    """Return the audio of a file as the mean of its channels at 16 kHz; as `decode_noted`, without the note."""
    return decode_noted(path).wave_T


def decode_noted(path: Path, *, as_recorded: bool = False) -> Decoded:
    """Return the audio of a file as the mean of its channels at 16 kHz, and what was wrong with it.

    All that is in the file is read, even where its header says less. A truncated file is accepted with the audio that
    still decodes; a damaged file whose decoder reports the damage (flac) is refused. A constant offset is removed, and
    of channels that cancel each other the loudest is taken, unless the audio is wanted `as_recorded`.
    Shapes: (T,) float32.  Units: full scale is 1; resampling may overshoot it.
    Raises: DataError naming the file if it cannot be decoded, holds no samples, or holds NaN or infinite samples;
    UnreadableNowError, which is one, if it is missing or may not be read.
    """
    wave_T, note = decode_stream(path, lambda blocks: np.concatenate(list(blocks)), as_recorded=as_recorded)
    return Decoded(wave_T, note)


def decode_stream(
    path: Path,
    consume: Callable[[Iterator[Floats]], T],
    *,
    as_recorded: bool = False,
    progress: Progress = no_progress,
) -> tuple[T, str]:
    """Return what `consume` makes of the blocks (T,) that `decode_noted` joins, and what was wrong with the file.

    Memory does not grow with the length of the file. `consume` may be called twice, as in `decode_blocks`.
    Raises: DataError as `decode_noted`.
    """

    def check(blocks: Iterator[Floats]) -> Iterator[Floats]:
        num_samples = 0
        for block_TC in blocks:
            if not np.isfinite(block_TC).all():
                raise DataError(f"{path} holds NaN or infinite samples; export it again or remove it")
            num_samples += len(block_TC)
            yield block_TC[:, 0]
        if num_samples == 0:
            raise DataError(f"{path} holds no samples; restore the file or remove it")

    return decode_blocks(path, 1, lambda blocks: consume(check(blocks)), as_recorded=as_recorded, progress=progress)


def decode_blocks(
    path: Path,
    num_channels: int,
    consume: Callable[[Iterator[Floats]], T],
    *,
    as_recorded: bool = False,
    progress: Progress = no_progress,
) -> tuple[T, str]:
    """Return what `consume` makes of a file's blocks (T, C) at RATE_HZ, and what was wrong with the file.

    The blocks have all channels, or their mean if `num_channels` is 1. Where an offset or channels that cancel each
    other are found, `consume` is called once more, with blocks that are mended.
    Raises: DataError as `decode_noted`, of a file only.
    """
    with ExitStack() as opened:
        with _name_errors(path):
            recording = opened.enter_context(Recording(path))
        levels = _Levels(recording.num_channels)
        result = consume(_named_blocks(path, _resample(recording, num_channels, progress, levels=levels)))
        note = recording.note
    mending = levels.choose_mending(num_channels)
    if mending is None or as_recorded:
        return result, note
    with ExitStack() as opened:
        with _name_errors(path):
            recording = opened.enter_context(Recording(path))
        result = consume(_named_blocks(path, _resample(recording, num_channels, progress, mending)))
    return result, "; it ".join(filter(None, (note, mending.note)))


def _named_blocks(path: Path, blocks: Iterator[Floats]) -> Iterator[Floats]:
    """Yield the blocks, with the errors of the decoder as DataErrors: those of who consumes them are not the file's."""
    with _name_errors(path):
        yield from blocks


@contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in PASSING:
            raise  # such as a drive that drops out: nothing can be said about this file
        raise UnreadableNowError(f"{path} cannot be read ({error.strerror}); restore access to it") from error
    except (RuntimeError, ValueError) as error:  # soundfile's errors are RuntimeErrors
        raise _build_error(path, error) from error


def _build_error(path: Path, error: Exception) -> DataError:
    if getattr(error, "code", None) == SYSTEM_ERROR:
        return UnreadableNowError(f"{path} cannot be read ({error}); run again when its drive is back")
    if isinstance(error, UnicodeEncodeError):
        return DataError(f"{path} cannot be read: its name is not UTF-8; rename it")
    reason = unreadable_format(path.name)
    if reason:
        return DataError(f"{path} is in {reason}")
    # What libsndfile says of a file in which it finds no frame of mp3 is not so.
    told = "no audio was found in it" if "possibly a pipe" in str(error) else error
    return DataError(f"{path} cannot be decoded ({told}); restore the file or remove it")


class Recording:
    """An audio file, open from its true beginning to its true end. Errors of the decoder are RuntimeErrors.

    Raises: UnreadableNowError if there is no such file; DataError if it is empty; OSError if it cannot be read;
    RuntimeError if it is not audio that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        import soundfile

        if not path.is_file():
            raise UnreadableNowError(f"no audio file at {path}; restore it or leave it out")
        with path.open("rb") as file:  # the decoder's own error would not tell why it cannot be opened
            if not file.read(1):
                raise DataError(f"{path} is empty (0 bytes); restore the file or remove it")
        self._opened = ExitStack()
        self._files: list[SoundFile] = []
        failure = None
        try:
            self._files = [self._opened.enter_context(soundfile.SoundFile(path))]
        except soundfile.LibsndfileError as error:
            failure = error
        contents = inspect(path, self._files[0].frames / self._files[0].samplerate if self._files else 0.0)
        if contents.streams:
            inner = [self._opened.enter_context(StreamFile(path, stream)) for stream in contents.streams]
            self._files = [self._opened.enter_context(soundfile.SoundFile(file)) for file in inner]
        elif failure is not None:
            raise failure
        self.note = contents.note
        self.rate_hz = int(self._files[0].samplerate)
        if self.rate_hz < LOWEST_RATE_HZ:
            raise DataError(
                f"{path} says that its sample rate is {self.rate_hz} Hz, less than the {LOWEST_RATE_HZ} Hz of any "
                "sound; correct its header or remove it"
            )
        self.num_channels = int(self._files[0].channels)
        self.subtype = str(self._files[0].subtype)
        seconds = sum(file.frames / file.samplerate for file in self._files)
        self.most_frames = round(seconds * self.rate_hz) + len(self._files)

    def __enter__(self) -> Recording:
        """Return the recording."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self._opened.close()

    def blocks(self, block_frames: int | None = None) -> Iterator[Floats]:
        """Yield the samples in blocks (T, C) at `rate_hz`; streams of another rate or number of channels are fitted."""
        for file in self._files:
            yield from self._blocks_of(file, block_frames or BLOCK_FRAMES)

    def _blocks_of(self, file: SoundFile, block_frames: int) -> Iterator[Floats]:
        import soxr

        stream = None
        if file.samplerate != self.rate_hz:
            stream = soxr.ResampleStream(file.samplerate, self.rate_hz, self.num_channels, quality="HQ")
        last = False
        while not last:
            block_TC: Floats = file.read(block_frames, dtype="float32", always_2d=True)
            last = len(block_TC) < block_frames  # a truncated file gives less than its header says
            if block_TC.shape[1] != self.num_channels:
                block_TC = np.repeat(block_TC.mean(axis=1, dtype=np.float32, keepdims=True), self.num_channels, axis=1)
            if stream is not None:
                block_TC = stream.resample_chunk(block_TC, last=last).reshape(-1, self.num_channels)
            yield block_TC


@dataclass(frozen=True)
class _Mending:
    """What is done to a file's channels before they are mixed."""

    offset_C: Floats
    """Subtracted."""

    is_alive_C: npt.NDArray[np.bool_]
    """False for channels that hold only an offset and rounding noise; they are made silent."""

    channel: int | None
    """The only channel that is taken, None to take the mean."""

    note: str

    def mix(self, block_TC: Floats) -> Floats:
        """Return the samples with the offsets removed, of one channel if only that is taken."""
        mended_TC = (block_TC - self.offset_C) * self.is_alive_C
        return mended_TC if self.channel is None else mended_TC[:, self.channel, None]


class _Levels:
    """Sums over all samples of a file, which tell an offset, and channels that cancel each other."""

    def __init__(self, num_channels: int) -> None:
        self._num_samples = 0
        self._sum_C = np.zeros(num_channels)
        self._products_CC = np.zeros((num_channels, num_channels))

    def add(self, block_TC: Floats) -> None:
        """Add a block."""
        self._num_samples += len(block_TC)
        self._sum_C += block_TC.sum(axis=0, dtype=np.float64)
        exact_TC = block_TC.astype(np.float64)
        self._products_CC += exact_TC.T @ exact_TC

    def choose_mending(self, num_channels: int) -> _Mending | None:
        """Return what must be mended, None if nothing must be, as in nearly all files."""
        if not np.isfinite(self._products_CC).all():
            return None  # refused later
        mean_C = self._sum_C / max(self._num_samples, 1)
        covariance_CC = self._products_CC / max(self._num_samples, 1) - np.outer(mean_C, mean_C)
        power_C = np.maximum(covariance_CC.diagonal(), 0)
        is_offset_C = (np.abs(mean_C) > LEAST_OFFSET) & (np.abs(mean_C) > LEAST_OFFSET_SHARE * np.sqrt(power_C))
        offset_C = np.where(is_offset_C, mean_C, 0).astype(np.float32)
        is_alive_C = ~is_offset_C | (power_C > DEAD_POWER)
        cancel = power_C.mean() > SOUND_POWER and covariance_CC.mean() < CANCELLED * power_C.mean()
        channel = int(power_C.argmax()) if num_channels == 1 and cancel else None
        notes = []
        if is_offset_C.any():
            notes.append(f"has a constant offset of {offset_C[np.abs(offset_C).argmax()]:.3f}, which was removed")
        if channel is not None:
            notes.append(f"has channels that cancel each other out; channel {channel + 1} alone was taken")
        return _Mending(offset_C, is_alive_C, channel, "; it ".join(notes)) if notes else None


def _resample(
    recording: Recording,
    num_channels: int,
    progress: Progress,
    mending: _Mending | None = None,
    *,
    levels: _Levels | None = None,
) -> Iterator[Floats]:
    """Yield the samples of a recording in blocks (T, C) at RATE_HZ."""
    import soxr

    stream = None
    if recording.rate_hz != RATE_HZ:
        stream = soxr.ResampleStream(recording.rate_hz, RATE_HZ, num_channels, quality="HQ")
    done = 0
    for block_TC, last in _mark_last(recording.blocks()):
        progress("decode (s)", done // recording.rate_hz, recording.most_frames // recording.rate_hz)
        done += len(block_TC)
        if levels is not None:
            levels.add(block_TC)
        if mending is not None:
            block_TC = mending.mix(block_TC)
        if num_channels == 1:
            block_TC = block_TC.mean(axis=1, dtype=np.float32, keepdims=True)
        yield block_TC if stream is None else stream.resample_chunk(block_TC, last=last).reshape(-1, num_channels)


def _mark_last(blocks: Iterator[Floats]) -> Iterator[tuple[Floats, bool]]:
    """Yield each block, and whether it is the last."""
    block_TC = next(blocks)
    for following_TC in blocks:
        yield block_TC, False
        block_TC = following_TC
    yield block_TC, True
