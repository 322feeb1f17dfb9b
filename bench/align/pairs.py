"""Pairs of recordings: what a set of them promises, reading and writing the challenge's layout, opening two waves.

    formatted_data/<set>/<split>/annotations.csv      Filename, Time Channel 0, Time Channel 1 (seconds)
    formatted_data/<set>/<split>/audio/*.wav          two channels, any rate

A bad file never stops a set: it is a task with a `problem`, or a `Problem` when it is opened.
Source: BioDCASE 2025 and 2026, task 1.

Shape legend: T samples, C channels, K keypoints.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from bench.align.contract import Pair, Seconds
from bench.audio.decode import resample_blocks
from bench.errors import DataError
from bench.store import Store, digest, read_array, write_text
from bench.values import RATE_HZ, Floats, Progress

if TYPE_CHECKING:
    pass

LAYOUT = "formatted_data"
COLUMNS = ("Filename", "Time Channel 0", "Time Channel 1")
ANNOTATIONS = "annotations.csv"
UNLABELLED = "eval"  # the one split that may have no annotations
SUFFIX = ".wav"
MAX_PEAK = 0.9  # of full scale: the loudest sample of a written pair that would be louder


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Moments in both channels, in seconds, each (K,); those of channel 0 rise."""

    time0_K: Seconds
    time1_K: Seconds


@dataclass(frozen=True, eq=False)
class PairFile:
    """One file of a set. `truth` is None where nobody told it; `problem` says in a sentence why it cannot be used."""

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
        """Return the largest lag in seconds, of either sign, that the set promises."""
        ...

    def digest(self) -> str:
        """Return a digest of all that decides the audio and the annotations."""
        ...

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return a folder that holds LAYOUT, made in the store where it has to be."""
        ...


# Reading


def splits(folder: Path, set_name: str) -> tuple[str, ...]:
    """Return the names of the splits of a set, sorted. Raises: DataError if there is no such set."""
    place = folder / LAYOUT / set_name
    found = tuple(sorted(path.parent.name for path in place.glob("*/audio") if path.is_dir()))
    if not found:
        raise DataError(
            f"no split of the set {set_name!r} at {place}; give the folder above {LAYOUT}/, "
            f"in which <set>/<split>/audio/ stands, as the data root"
        )
    return found


def list_pair_files(folder: Path, set_name: str, split: str) -> list[PairFile]:
    """Return every file of a split by name, annotated or not; those that cannot be used have a `problem`.

    Where a time of channel 0 comes twice, its first row counts. The split UNLABELLED may have no annotations.
    Raises: DataError naming the path if set, split, annotations or audio folder are missing or have other columns.
    """
    if split not in splits(folder, set_name):
        raise DataError(
            f"no split {split!r} of the set {set_name!r} at {folder / LAYOUT / set_name}; "
            f"it has {', '.join(splits(folder, set_name))}"
        )
    place = folder / LAYOUT / set_name / split
    heard = {path.name: path for path in (place / "audio").iterdir() if _is_recording(path)}
    if not (place / ANNOTATIONS).is_file() and split == UNLABELLED:
        return [PairFile(name, heard[name]) for name in sorted(heard)]
    told = _annotations(place / ANNOTATIONS)
    return [
        _build_pair_file(name, place / "audio" / name, name in heard, told.get(name))
        for name in sorted({*heard, *told})
    ]


def _is_recording(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX and not path.name.startswith(".")


def _build_pair_file(name: str, path: Path, is_heard: bool, rows: Keypoints | str | None) -> PairFile:
    if not is_heard:
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
        # utf-8-sig: spreadsheets put a mark before the first column's name
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise DataError(f"{path} has the columns {reader.fieldnames}; {remedy}")
            rows: dict[str, list[tuple[int, str, str]]] = {}
            for row in reader:
                rows.setdefault(row[COLUMNS[0]] or "", []).append((reader.line_num, row[COLUMNS[1]], row[COLUMNS[2]]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}); {remedy}") from error
    return {name: _keypoints(some) for name, some in rows.items()}


def _keypoints(rows: Sequence[tuple[int, str, str]]) -> Keypoints | str:
    """Return the keypoints of one file's rows (line, time0, time1), or the first thing that is wrong with them."""
    times = []
    for line, *texts in rows:
        pair = [_seconds(text) for text in texts]
        if not all(map(math.isfinite, pair)):
            return (
                f"line {line} of {ANNOTATIONS} has the times {texts[0]!r} and {texts[1]!r}, which are not both numbers"
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
    """Write annotations or a submission, by name of the file, so that every time is read back as it was.

    Raises: DataError if a time is not finite: such a row would spoil a whole submission.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, keypoints in rows.items():
        time0_K, time1_K = keypoints.time0_K.tolist(), keypoints.time1_K.tolist()
        if not all(map(math.isfinite, [*time0_K, *time1_K])):
            raise DataError(f"the keypoints of {name} hold NaN or infinite times; leave the file out of {path}")
        writer.writerows((name, time0, time1) for time0, time1 in zip(time0_K, time1_K, strict=True))
    write_text(path, text.getvalue())


@dataclass(frozen=True)
class Recipe:
    """One pair to be written: its keypoints, known without its sound, and what makes both waves (T,) at RATE_HZ."""

    name: str
    keypoints: Keypoints
    make: Callable[[], tuple[Floats, Floats]]


def write_split(folder: Path, set_name: str, split: str, recipes: Sequence[Recipe], progress: Progress) -> None:
    """Write a split in the challenge's layout, 16 bit; files that are there already are kept, annotations come last."""
    place = folder / LAYOUT / set_name / split
    (place / "audio").mkdir(parents=True, exist_ok=True)
    for i, recipe in enumerate(recipes):
        progress(f"{set_name} {split}", i, len(recipes))
        if not (place / "audio" / recipe.name).is_file():
            write_pair(place / "audio" / recipe.name, *recipe.make())
    write_keypoints(place / ANNOTATIONS, {recipe.name: recipe.keypoints for recipe in recipes})
    progress(f"{set_name} {split}", len(recipes), len(recipes))


def write_pair(path: Path, wave0_T: Floats, wave1_T: Floats) -> None:
    """Write two waves as the channels of a 16-bit WAV file; where one is louder than full scale, both are lowered."""
    import soundfile

    wave_TC = np.stack([wave0_T, wave1_T], axis=1)
    peak = float(np.abs(wave_TC).max(initial=0.0))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    soundfile.write(temporary, wave_TC * min(1.0, MAX_PEAK / max(peak, MAX_PEAK)), RATE_HZ, "PCM_16", format="WAV")
    os.replace(temporary, path)


# Opening


def open_pair_file(task: PairFile, folder: Path, max_lag_s: float) -> Pair | Problem:
    """Return the pair of a task, or why it cannot be used."""
    if task.problem:
        return Problem(task.name, task.problem)
    try:
        return open_pair(task.path, folder, max_lag_s)
    except DataError as error:
        return Problem(task.name, str(error))


def open_pair(paths: Path | tuple[Path, Path], folder: Path, max_lag_s: float) -> Pair:
    """Return a pair from the two channels of one file, or from two files, each mixed to mono; of any rate and length.

    The waves are written below `folder` as they are decoded, and mapped: memory is flat in their length. They are
    named by their content, 4 bytes a sample; the caller deletes the folder when it has done with the pair.
    Raises: DataError naming the file if it is missing, cannot be decoded, holds no samples, NaN or infinite samples,
    or, given alone, has not two channels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as scratch:
        if isinstance(paths, tuple):
            name = f"{paths[0].name} and {paths[1].name}"
            parts = [_decode_file(path, Path(scratch), [f"{i}"])[0] for i, path in enumerate(paths)]
        else:
            name = paths.name
            parts = _decode_file(paths, Path(scratch), ["0", "1"])
        wave0_T, wave1_T = [_name_by_content(part, folder) for part in parts]
    return Pair(name, wave0_T, wave1_T, digest("pair", [part.sha256 for part in parts]), max_lag_s)


@dataclass(frozen=True)
class _ChannelFile:
    """One channel in a .npy file, and the sum of its samples."""

    path: Path
    sha256: str


def _name_by_content(part: _ChannelFile, folder: Path) -> Floats:
    """Return the channel, mapped, now that it has the name of its content."""
    path = folder / f"{part.sha256}.npy"
    os.replace(part.path, path)
    return read_array(path)


class _Channel:
    """Writes a .npy file whose length is known at its end."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.num_samples = 0
        self._sum = hashlib.sha256()
        self._file = file
        self._header()

    def write(self, wave_T: Floats) -> None:
        if not np.isfinite(wave_T).all():
            raise DataError("it holds NaN or infinite samples; export it again")
        samples = np.ascontiguousarray(wave_T, "<f4").tobytes()
        self._sum.update(samples)
        self._file.write(samples)
        self.num_samples += len(wave_T)

    def finish(self) -> _ChannelFile:
        """Return what was written, its header now saying how many samples there are."""
        if not self.num_samples:
            raise DataError("it holds no samples; restore the file or leave it out")
        start = self._file.tell() - 4 * self.num_samples
        self._file.seek(0)
        self._header()
        assert self._file.tell() == start, "numpy's headers leave room for the number of samples to grow"
        return _ChannelFile(self.path, self._sum.hexdigest())

    def _header(self) -> None:
        about = {"descr": "<f4", "fortran_order": False, "shape": (self.num_samples,)}
        np.lib.format.write_array_header_1_0(self._file, about)


def _decode_file(path: Path, scratch: Path, names: Sequence[str]) -> list[_ChannelFile]:
    """Return a file's channels at RATE_HZ, written into `scratch`: its two for two names, their mean for one."""
    import soundfile

    if not path.is_file():
        raise DataError(f"no audio file at {path}; restore it or leave it out")
    try:
        with soundfile.SoundFile(path) as file, ExitStack() as opened:
            if len(names) > 1 and file.channels != len(names):
                raise DataError(f"its channels are {file.channels}; give a file with two channels, or two files")
            places = [scratch / f"{name}.npy" for name in names]
            channels = [_Channel(place, opened.enter_context(place.open("wb"))) for place in places]
            for block_TC in resample_blocks(file, len(names)):
                for number, channel in enumerate(channels):
                    channel.write(block_TC[:, number])
            return [channel.finish() for channel in channels]
    except (DataError, RuntimeError, ValueError) as error:  # soundfile's errors are RuntimeErrors
        raise DataError(f"{path} cannot be used: {error}") from error
