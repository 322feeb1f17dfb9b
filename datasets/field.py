"""Field recordings (soundscapes): `train/` and `test/`, directly or in a folder `field`, with audio at any depth.

A share of the groups in `train/` is held out for validation. A hash of the group decides, so the choice is the same on
every machine and does not change when files are added. A group is a file; if names are RECORDER_YYYYMMDD_HHMMSS, it is
three hours of one recorder. Consecutive recordings share their birds and background, so they stay in the same split,
except across the boundary of two groups.
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

KIND = "music"  # the kind of all audio that is trained on and searched; noise is mixed into it
CITE = "the sources of the recordings, as named in the user's folder"
LICENSE = "each recording has its own licence"
SOURCE = "a folder given by the user"

RECORDING_STEM = re.compile(r"(?P<recorder>.+)_(?P<day>\d{8})_(?P<hour>\d{2})\d{4}$")
GROUP_HOURS = 3


@dataclass(frozen=True)
class Config:
    """How much of the training recordings is held out."""

    val_share: float = 0.15
    """Share of the groups in `train/` that is held out for validation, at least 0 and below 1."""

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, "val_share must be >= 0 and < 1", self.val_share)


def build(config: Config, root: Path | None) -> Source:
    """Return the recordings below `root`.

    Raises: DataError if the folder `train` or `test` is missing, or one of them has no audio.
    """
    if root is None:
        raise DataError("field needs a folder with field/train and field/test; give that folder as --data-root")
    home = next((h for h in (root / "field", root) if (h / "train").is_dir() and (h / "test").is_dir()), None)
    if home is None:
        raise DataError(
            f"no field recordings in {root}: looked there and in its folder field for train/ and test/; "
            f"give the folder that holds them as --data-root"
        )
    found = {side: find_audio(home / side) for side in ("train", "test")}
    held_out = _choose_held_out({_group(path) for path in found["train"]}, config.val_share)
    tracks = [
        Track(
            f"{folder}/{path}",
            f"{folder}/{path}",
            _split_of(folder, path, held_out),
            label=_group(path),
            problem=problem,
        )
        for folder, paths in found.items()
        for path, problem in paths.items()
    ]
    return file_source(home, tracks, follow_links=True)


def _split_of(folder: str, path: str, held_out: set[str]) -> Split:
    if folder == "test":
        return "test"
    return "val" if _group(path) in held_out else "train"


def _group(path: str) -> str:
    """Return the group of a recording: three hours of its recorder if the name says so, else the recording itself."""
    stem = normalise_path(path).rpartition(".")[0]
    match = RECORDING_STEM.fullmatch(stem)
    if match is None:
        return stem
    return f"{match['recorder']}_{match['day']}_{int(match['hour']) // GROUP_HOURS * GROUP_HOURS:02d}h"


def _choose_held_out(groups: Iterable[str], share: float) -> set[str]:
    """Return the groups whose hash is below the share; if there is none, the lowest of two or more groups."""
    drawn = {group: int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
    chosen = {group for group, value in drawn.items() if value < share}
    lowest = {min(drawn, key=lambda group: (drawn[group], group))} if len(drawn) > 1 and share > 0 else set()
    return chosen or lowest
