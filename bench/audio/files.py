"""Data sets of audio files under one folder: listing, path checks and decoding."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.audio.decode import Decoded, decode_noted
from bench.audio.formats import FOREIGN, SUFFIXES, unreadable_format
from bench.errors import DataError
from bench.store import digest
from bench.values import Floats, Track


@dataclass(frozen=True)
class FileSource:
    """A fixed listing of audio files, with track paths relative to `root`.

    A path that leads outside `fence`, through a link or `..`, is never read; with None for it, the links that the user
    laid are followed. With `as_recorded`, samples are never mended, as a published benchmark needs it.
    """

    root: Path
    fence: Path | None
    listing: tuple[Track, ...]
    stamp: str
    as_recorded: bool = False

    def tracks(self) -> Sequence[Track]:
        """Return every track in the order of the listing."""
        return self.listing

    def load(self, track: Track) -> Floats:
        """Return the decoded audio of one track, shape (T,) at 16 kHz. Raises: DataError."""
        return self.load_noted(track).wave_T

    def load_noted(self, track: Track) -> Decoded:
        """Return the decoded audio of one track, and what was wrong with its file. Raises: DataError."""
        path = resolve_inside(self.root, track.path, self.fence) if self.fence else self.root / track.path
        return decode_noted(path, as_recorded=self.as_recorded)

    def digest(self) -> str:
        """Return the digest of every track's id, path, split, problem, size and modification time."""
        return self.stamp


def file_source(
    root: Path,
    tracks: Iterable[Track],
    fence: Path | None = None,
    *,
    follow_links: bool = False,
    as_recorded: bool = False,
) -> FileSource:
    """Return a source of these files, with missing ones marked; sizes and modification times go into its digest.

    `follow_links` is for listings of a folder itself: a name in a table from elsewhere must not lead out of `fence`, by
    default `root`.
    """
    listing: list[Track] = []
    stamps: list[tuple[object, ...]] = []
    for track in tracks:
        size, time_ns, problem = stamp_file(root / track.path)
        problem = track.problem or problem
        listing.append(Track(track.id, track.path, track.split, track.licence, track.label, problem))
        stamps.append((track.id, track.path, track.split, problem, size, time_ns))
    inside = None if follow_links else (fence or root).resolve()
    return FileSource(root, inside, tuple(listing), digest(stamps), as_recorded)


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

    The problem of a usable file is empty. Links are followed. Listed with their problem are audio and video in formats
    that cannot be read, folders that are not entered (without access, or a link back to where they lie in), links to
    nowhere, and names that are not UTF-8, which no manifest can hold.
    Raises: DataError naming the folder and the suffixes if there is no audio, or no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}; give the folder that holds the audio as --data-root")
    found: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        found[Path(error.filename).relative_to(folder).as_posix()] = f"a folder that cannot be read ({error.strerror})"

    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(parent)
        relative = here.relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        loops = [name for name in folders if _leads_back(here / name)]
        found |= {(relative / name).as_posix(): "a link to a folder that it lies in" for name in loops}
        folders[:] = [name for name in folders if name not in loops]
        problems = {name: _listing_problem(here / name) for name in files if not name.startswith(".")}
        found |= {(relative / name).as_posix(): problem for name, problem in problems.items() if problem is not None}
    if "" not in found.values():
        raise DataError(_no_audio(folder, found))
    return dict(sorted(_escape_name(path, problem) for path, problem in found.items()))


def _leads_back(path: Path) -> bool:
    """Return whether a path is a link to a folder that it lies in."""
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def _listing_problem(path: Path) -> str | None:
    """Return the problem of a file, empty if it is usable audio, None if it is no audio."""
    suffix = path.suffix.lower()
    if suffix in FOREIGN:
        return unreadable_format(path.name)
    if suffix in SUFFIXES:
        return ""
    return "a link to nowhere" if not suffix and path.is_symlink() and not path.exists() else None


def _no_audio(folder: Path, found: Mapping[str, str]) -> str:
    looked = f"no audio found in {folder}: looked in it and every folder below for {', '.join(SUFFIXES)}"
    problems = [f"{path} is {problem}" for path, problem in found.items()]
    return f"{looked}; {len(found)} left out, the first: {problems[0]}" if problems else looked


def _escape_name(path: str, problem: str) -> tuple[str, str]:
    printable = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return (path, problem) if printable == path else (printable, "its name is not UTF-8; rename it")


def normalise_path(path: str) -> str:
    """Return the path in Unicode NFC, so that its hash is the same on every system."""
    return unicodedata.normalize("NFC", path)


def stamp_file(path: Path) -> tuple[int, int, str]:
    """Return size, modification time and problem of a file: what a digest needs to notice that it is another, or back.

    The problem is empty, "missing", or that there is no permission.
    """
    try:
        info = path.stat()
    except OSError:
        return 0, 0, "missing"
    return info.st_size, info.st_mtime_ns, "" if os.access(path, os.R_OK) else "no permission to read it"
