"""Soundscapes of the field: `train/` and `test/`, directly or in a folder `field`, with audio at any depth.

A share of `train/` is held out for validation, drawn by a hash of its group, so that it is the same on every
machine and stays when files are added. A group is a file, or three hours of one recorder where names are
RECORDER_YYYYMMDD_HHMMSS: recordings that follow each other share their birds and their background, and are on one
side but at a group's ends.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.audio.files import file_source, find_audio, normalise_path
from bench.errors import DataError
from bench.settings import require
from bench.values import Source, Split, Track

KIND = "music"  # what is trained on and searched; noise is what is mixed into it
CITE = "the recordings' own sources, as the user's folder names them"
LICENSE = "each recording has its own licence"
SOURCE = "a folder of the user"

RECORDING_STEM = re.compile(r"(?P<recorder>.+)_(?P<day>\d{8})_(?P<hour>\d{2})\d{4}$")
GROUP_HOURS = 3


@dataclass(frozen=True)
class Config:
    """The share of the groups of the training side that is held out."""

    val_share: float = 0.15

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, "val_share must be >= 0 and < 1", self.val_share)


def build(config: Config, root: Path | None) -> Source:
    """Return the recordings below `root`.

    Raises: DataError if there is no `train` and `test` folder, or no audio in one of them.
    """
    if root is None:
        raise DataError("field needs a folder with field/train and field/test; give it as --data-root")
    home = next((h for h in (root / "field", root) if (h / "train").is_dir() and (h / "test").is_dir()), None)
    if home is None:
        raise DataError(f"no field recordings in {root}: looked there and in its folder field for train/ and test/")
    found = {side: find_audio(home / side) for side in ("train", "test")}
    held_out = _choose_held_out({_group(path) for path in found["train"]}, config.val_share)
    tracks = [
        Track(
            f"{folder}/{path}", f"{folder}/{path}", _split_of(folder, path, held_out), label=_group(path), problem=told
        )
        for folder, paths in found.items()
        for path, told in paths.items()
    ]
    return file_source(home, tracks)


def _split_of(folder: str, path: str, held_out: set[str]) -> Split:
    if folder == "test":
        return "test"
    return "val" if _group(path) in held_out else "train"


def _group(path: str) -> str:
    """Return what a recording may not be parted from: three hours of its recorder, or itself."""
    stem = normalise_path(path).rpartition(".")[0]
    told = RECORDING_STEM.fullmatch(stem)
    return f"{told['recorder']}_{told['day']}_{int(told['hour']) // GROUP_HOURS * GROUP_HOURS:02d}h" if told else stem


def _choose_held_out(groups: Iterable[str], share: float) -> set[str]:
    """Return the groups whose hash is below the share; the lowest where none is and there are two."""
    drawn = {group: int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
    chosen = {group for group, value in drawn.items() if value < share}
    lowest = {min(drawn, key=lambda group: (drawn[group], group))} if len(drawn) > 1 and share > 0 else set()
    return chosen or lowest
