"""Pairs of recordings: the contract of a source of pairs, the challenge's file layout, and opening a pair as waves.

    formatted_data/<set>/<split>/annotations.csv      Filename, Time Channel 0, Time Channel 1 (seconds)
    formatted_data/<set>/<split>/audio/*.wav          two channels, any rate

A bad file never stops a set: it is listed with a `problem`, or opening it returns a `Problem`.
Source: BioDCASE 2025 and 2026, task 1.

Shape legend: T samples, C channels, K keypoints.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Protocol

import numpy as np

from bench.align.contract import Pair, Seconds
from bench.audio.decode import UnreadableNowError, decode_blocks
from bench.errors import DataError
from bench.store import Store, digest, read_array, write_text, write_whole
from bench.values import RATE_HZ, Floats, Progress

LAYOUT = "formatted_data"
COLUMNS = ("Filename", "Time Channel 0", "Time Channel 1")
ANNOTATIONS = "annotations.csv"
UNLABELLED = "eval"  # the only split that may lack annotations
SUFFIX = ".wav"
MAX_PEAK = 0.9  # of full scale: a louder pair is scaled down to it when written


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Moments in both channels, in seconds, each (K,); those of channel 0 rise."""

    time0_K: Seconds
    time1_K: Seconds


@dataclass(frozen=True, eq=False)
class PairFile:
    """One file of a set. `truth` is None without annotations; `problem` says in a sentence why it cannot be used."""

    name: str
    path: Path
    truth: Keypoints | None = None
    problem: str = ""


@dataclass(frozen=True)
class Problem:
    """A file that could not be used, and why, in one sentence."""

    name: str
    reason: str


class PairSource(Protocol):
    """What a plug-in of kind `pairs` returns from `build(config, root)`."""

    def sets(self) -> tuple[str, ...]:
        """Return the names of its sets, such as `aru`."""
        ...

    def max_lag_s(self, set_name: str) -> float:
        """Return the largest lag in seconds, of either sign, that the set guarantees."""
        ...

    def digest(self) -> str:
        """Return a digest of everything that determines the audio and the annotations."""
        ...

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return a folder that contains LAYOUT, in the store if it has to be generated."""
        ...


# Reading


def splits(folder: Path, set_name: str) -> tuple[str, ...]:
    """Return the names of the splits of a set, sorted. Raises: DataError if there is no such set."""
    set_folder = folder / LAYOUT / set_name
    found = tuple(sorted(path.parent.name for path in set_folder.glob("*/audio") if path.is_dir()))
    if not found:
        raise DataError(
            f"no split of the set {set_name!r} at {set_folder}; give the folder above {LAYOUT}/, "
            f"which contains <set>/<split>/audio/, as the data root"
        )
    return found


def list_pair_files(folder: Path, set_name: str, split: str) -> list[PairFile]:
    """Return every file of a split, ordered by name, annotated or not; those that cannot be used have a `problem`.

    If a time of channel 0 is repeated, its first row counts. The split UNLABELLED may lack annotations.
    Raises: DataError naming the path if set, split, annotations or audio folder is missing, or columns are.
    """
    if split not in splits(folder, set_name):
        raise DataError(
            f"no split {split!r} of the set {set_name!r} at {folder / LAYOUT / set_name}; "
            f"it has {', '.join(splits(folder, set_name))}"
        )
    split_folder = folder / LAYOUT / set_name / split
    recordings = {path.name: path for path in (split_folder / "audio").iterdir() if _is_recording(path)}
    if not (split_folder / ANNOTATIONS).is_file() and split == UNLABELLED:
        return [PairFile(name, recordings[name]) for name in sorted(recordings)]
    annotated = _annotations(split_folder / ANNOTATIONS)
    return [
        _build_pair_file(name, split_folder / "audio" / name, name in recordings, annotated.get(name))
        for name in sorted({*recordings, *annotated})
    ]


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and not path.name.startswith(".")


def _build_pair_file(name: str, path: Path, has_audio: bool, rows: Keypoints | str | None) -> PairFile:
    if not has_audio:
        return PairFile(name, path, problem=f"{name} is annotated, but there is no such file in {path.parent}")
    if rows is None:
        return PairFile(name, path, problem=f"{name} has no row in {ANNOTATIONS}")
    if isinstance(rows, str):
        return PairFile(name, path, problem=f"{name} cannot be used: {rows}")
    return PairFile(name, path, rows)


def _annotations(path: Path) -> dict[str, Keypoints | str]:
    """Return for each annotated file its keypoints, or what is wrong with its rows."""
    remedy = f"restore it, or export it as CSV with the columns {', '.join(COLUMNS)}"
    try:
        # utf-8-sig: spreadsheets write a byte-order mark before the first column's name
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{path} has the columns {reader.fieldnames}; {remedy}")
            rows: dict[str, list[tuple[int, str, str]]] = {}
            for row in reader:
                rows.setdefault(row[COLUMNS[0]] or "", []).append((reader.line_num, row[COLUMNS[1]], row[COLUMNS[2]]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
    return {name: _keypoints(of_file) for name, of_file in rows.items()}


def _keypoints(rows: Sequence[tuple[int, str, str]]) -> Keypoints | str:
    """Return the keypoints of one file's rows (line, time0, time1), or the first thing that is wrong with them."""
    times = []
    for line, *cells in rows:
        pair = [_seconds(text) for text in cells]
        if not all(map(math.isfinite, pair)):
            return (
                f"line {line} of {ANNOTATIONS} has the times {cells[0]!r} and {cells[1]!r}, which are not both numbers"
            )
        times.append(pair)
    time0_K, first_K = np.unique([time0 for time0, _time1 in times], return_index=True)
    return Keypoints(time0_K, np.array([time1 for _time0, time1 in times])[first_K])


def _seconds(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


# Writing


def write_keypoints(path: Path, rows: Mapping[str, Keypoints]) -> None:
    """Write annotations or a submission from keypoints by file name; every time is read back exactly.

    Raises: DataError if a time is not finite: one such row would spoil a whole submission.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, keypoints in rows.items():
        time0_K, time1_K = keypoints.time0_K.tolist(), keypoints.time1_K.tolist()
        if not all(map(math.isfinite, [*time0_K, *time1_K])):
            raise DataError(f"the keypoints of {name} hold NaN or infinite times; leave the file out of {path}")
        writer.writerows((name, time0, time1) for time0, time1 in zip(time0_K, time1_K, strict=True))
    write_text(path, buffer.getvalue())


@dataclass(frozen=True)
class Recipe:
    """One pair to be written: its keypoints, known without its audio, and a function that makes its audio."""

    name: str
    keypoints: Keypoints
    make: Callable[[], tuple[Floats, Floats]]
    """Returns both waves (T,) at RATE_HZ."""


def write_split(folder: Path, set_name: str, split: str, recipes: Sequence[Recipe], progress: Progress) -> None:
    """Write a split in the challenge's layout, 16 bit: existing audio files are kept, annotations are written last."""
    split_folder = folder / LAYOUT / set_name / split
    (split_folder / "audio").mkdir(parents=True, exist_ok=True)
    for i, recipe in enumerate(recipes):
        progress(f"{set_name} {split}", i, len(recipes))
        if not (split_folder / "audio" / recipe.name).is_file():
            write_pair(split_folder / "audio" / recipe.name, *recipe.make())
    write_keypoints(split_folder / ANNOTATIONS, {recipe.name: recipe.keypoints for recipe in recipes})
    progress(f"{set_name} {split}", len(recipes), len(recipes))


def write_pair(path: Path, wave0_T: Floats, wave1_T: Floats) -> None:
    """Write two waves as the channels of a 16-bit WAV file; a peak above MAX_PEAK scales both down to it."""
    import soundfile

    wave_TC = np.stack([wave0_T, wave1_T], axis=1)
    peak = float(np.abs(wave_TC).max(initial=0.0))
    with write_whole(path) as temporary:
        soundfile.write(temporary, wave_TC * min(1.0, MAX_PEAK / max(peak, MAX_PEAK)), RATE_HZ, "PCM_16", format="WAV")


# Opening


def open_pair_file(file: PairFile, folder: Path, max_lag_s: float) -> Pair | Problem:
    """Return the pair in a file, or why it cannot be used."""
    if file.problem:
        return Problem(file.name, file.problem)
    try:
        return open_pair(file.path, folder, max_lag_s)
    except DataError as error:
        return Problem(file.name, str(error))


def open_pair(paths: Path | tuple[Path, Path], folder: Path, max_lag_s: float) -> Pair:
    """Return a pair from the two channels of one file, or from two files, each mixed to mono; of any rate and length.

    The waves are decoded into files below `folder` and memory-mapped, so that memory does not grow with their length.
    These files are named by their content, 4 bytes per sample; the caller deletes the folder after use.
    Raises: DataError naming the file if it is missing, cannot be decoded, holds no samples, NaN or infinite samples,
    or if a single file does not have two channels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        if isinstance(paths, tuple):
            name = f"{paths[0].name} and {paths[1].name}"
            decoded = [_decode_file(path, Path(scratch), [f"{i}"]) for i, path in enumerate(paths)]
        else:
            name = paths.name
            decoded = [_decode_file(paths, Path(scratch), ["0", "1"])]
        channels = [channel for of_file, _note in decoded for channel in of_file]
        wave0_T, wave1_T = [_name_by_content(channel, folder) for channel in channels]
    notes = tuple(note for _of_file, note in decoded if note)
    return Pair(name, wave0_T, wave1_T, digest("pair", [channel.sha256 for channel in channels]), max_lag_s, notes)


@dataclass(frozen=True)
class _ChannelFile:
    """One channel in a .npy file, and the hash of its samples."""

    path: Path
    sha256: str


def _name_by_content(channel: _ChannelFile, folder: Path) -> Floats:
    """Rename the file of a channel to its hash, and return the channel memory-mapped."""
    path = folder / f"{channel.sha256}.npy"
    os.replace(channel.path, path)
    return read_array(path)


class _Channel:
    """Writes a .npy file whose length is known only when it is finished."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.num_samples = 0
        self._hash = hashlib.sha256()
        self._file = file
        self._write_header()

    def write(self, wave_T: Floats) -> None:
        if not np.isfinite(wave_T).all():
            raise DataError("it holds NaN or infinite samples; export it again")
        samples = np.ascontiguousarray(wave_T, "<f4").tobytes()
        self._hash.update(samples)
        self._file.write(samples)
        self.num_samples += len(wave_T)

    def finish(self) -> _ChannelFile:
        """Complete the header with the number of samples, and return the file."""
        if not self.num_samples:
            raise DataError("it holds no samples; restore the file or leave it out")
        start = self._file.tell() - 4 * self.num_samples
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == start, "numpy's headers leave room for the number of samples to grow"
        return _ChannelFile(self.path, self._hash.hexdigest())

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.num_samples,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _decode_file(path: Path, scratch: Path, names: Sequence[str]) -> tuple[list[_ChannelFile], str]:
    """Return a file's channels at RATE_HZ, written to `scratch` (both for two names, else their mean), and a note."""

    def write(blocks: Iterator[Floats]) -> list[_ChannelFile]:
        with ExitStack() as opened:
            paths = [scratch / f"{name}.npy" for name in names]
            channels = [_Channel(target, opened.enter_context(target.open("wb"))) for target in paths]
            for block_TC in blocks:
                if block_TC.shape[1] != len(names):
                    raise DataError(
                        f"it must have two channels, got {block_TC.shape[1]}; give such a file, or two files"
                    )
                for number, channel in enumerate(channels):
                    channel.write(block_TC[:, number])
            return [channel.finish() for channel in channels]

    try:
        written, note = decode_blocks(path, len(names), write)
    except UnreadableNowError:
        raise
    except DataError as error:
        reason = str(error).replace(f"{path} ", "it ", 1)
        raise DataError(f"{path} cannot be used: {reason}") from error
    return written, f"{path} {note}" if note else ""
