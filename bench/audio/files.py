"""Data sets of audio files under one folder: listing, path checks and decoding."""

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
    """A fixed listing of audio files, with track paths relative to `root`.

    A path that leads outside `fence`, through a link or `..`, is never read.
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
        """Return the digest of every track's id, path, split, problem, size and modification time."""
        return self.stamp


def file_source(root: Path, tracks: Iterable[Track], fence: Path | None = None) -> FileSource:
    """Return a source of these files, with missing ones marked; sizes and modification times go into its digest."""
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

    Raises: DataError if that is outside the fence, by default `root` itself.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to((fence or root).resolve()):
        raise DataError(f"{relative!r} leads outside {root}; copy the file into the folder")
    return path


def find_audio(folder: Path) -> dict[str, str]:
    """Return {path: problem} of all audio files below a folder, sorted; paths are relative, with `/`.

    The problem of a usable file is empty. A folder that is not entered (a link, or unreadable) is listed with its
    problem, and so is a name that is not UTF-8, which no manifest can hold.
    Raises: DataError naming the folder and the suffixes if there is no audio, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}; give the folder that holds the audio as --data-root")
    found: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        found[Path(error.filename).relative_to(folder).as_posix()] = f"a folder that cannot be read ({error.strerror})"

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(folder)
        audio = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found |= {(relative / name).as_posix(): "" for name in audio}
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        found |= {(relative / name).as_posix(): "a link to a folder, which is not followed" for name in links}
    if "" not in found.values():
        raise DataError(f"no audio found in {folder}: looked in it and every folder below for {', '.join(SUFFIXES)}")
    return dict(sorted(_escape_name(path, problem) for path, problem in found.items()))


def _escape_name(path: str, problem: str) -> tuple[str, str]:
    printable = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (path, problem) if printable == path else (printable, "its name is not UTF-8; rename it")


def normalise_path(path: str) -> str:
    """Return the path in Unicode NFC, so that its hash is the same on every system."""
    return unicodedata.normalize("NFC", path)


def _stat(path: Path) -> tuple[int, int, str]:
    try:
        info = path.stat()
    except OSError:
        return 0, 0, "missing"
    return info.st_size, info.st_mtime_ns, ""
