"""Tracks that are audio files under one folder: what every data set of files shares."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.audio.decode import decode
from bench.errors import DataError
from bench.store import digest
from bench.values import Floats, Track

SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")


@dataclass(frozen=True)
class FileSource:
    """Audio files listed once. Track paths are relative to `root`.

    No file is read whose real place is outside `fence`, whatever links or `..` a path holds.
    """

    root: Path
    fence: Path
    listing: tuple[Track, ...]
    stamp: str

    def tracks(self) -> Sequence[Track]:
        """Return every track in the order of the listing."""
        return self.listing

    def load(self, track: Track) -> Floats:
        """Return the decoded audio of one track, shape (T,) at 16 kHz. Raises: DataError."""
        return decode(resolve_inside(self.root, track.path, self.fence))

    def digest(self) -> str:
        """Return the digest of all listed paths, sides, sizes and times."""
        return self.stamp


def file_source(root: Path, tracks: Iterable[Track], fence: Path | None = None) -> FileSource:
    """Return a source of files with each missing one marked, and their sizes and times taken."""
    listing: list[Track] = []
    stamps: list[tuple[object, ...]] = []
    for track in tracks:
        size, time_ns, problem = _stat(root / track.path)
        problem = track.problem or problem
        listing.append(Track(track.id, track.path, track.split, track.licence, track.label, problem))
        stamps.append((track.id, track.path, track.split, problem, size, time_ns))
    return FileSource(root, (fence or root).resolve(), tuple(listing), digest(stamps))


def resolve_inside(root: Path, relative: str, fence: Path | None = None) -> Path:
    """Return root/relative with every link followed.

    Raises: DataError if that lies outside the fence (the root itself where none is given).
    """
    place = (root / relative).resolve()
    if not place.is_relative_to((fence or root).resolve()):
        raise DataError(f"{relative!r} leads outside {root}; copy the file into the folder")
    return place


def find_audio(folder: Path) -> dict[str, str]:
    """Return {path: problem} of all audio files below a folder, sorted; paths are relative, with `/`.

    The problem is empty but for a folder that is not entered (a link, or one that may not be read) and
    for a name that is not UTF-8, which no manifest can hold.
    Raises: DataError naming the folder and the suffixes if there is no audio, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}; give the folder that holds the audio as --data-root")
    found: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        found[Path(error.filename).relative_to(folder).as_posix()] = f"a folder that cannot be read ({error.strerror})"

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(place).relative_to(folder)
        audio = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found |= {(here / name).as_posix(): "" for name in audio}
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found |= {(here / name).as_posix(): "a link to a folder, which is not followed" for name in links}
    if "" not in found.values():
        raise DataError(f"no audio found in {folder}: looked in it and every folder below for {', '.join(SUFFIXES)}")
    return dict(sorted(_escape_name(path, problem) for path, problem in found.items()))


def _escape_name(path: str, problem: str) -> tuple[str, str]:
    shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (path, problem) if shown == path else (shown, "its name is not UTF-8; rename it")


def normalise_path(path: str) -> str:
    """Return the path's spelling that every system agrees on, for hashing."""
    return unicodedata.normalize("NFC", path)


def _stat(path: Path) -> tuple[int, int, str]:
    try:
        info = path.stat()
    except OSError:
        return 0, 0, "missing"
    return info.st_size, info.st_mtime_ns, ""
