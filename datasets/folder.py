"""Any folder of music files (mp3, ogg, flac, wav, ...), at any depth and sample rate, with up to 8 channels.

A hash of the path decides the split, so splits are the same on every machine and do not change when files are added.
All files below one top-level folder (an album, an artist) are in the same split; with fewer than MIN_FOLDERS such
folders, the split of every file is drawn separately. The top-level folders `noise` and `rir` are not music.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from bench.audio.files import file_source, find_audio, normalise_path
from bench.errors import DataError
from bench.settings import require
from bench.values import Source, Split, Track

KIND = "music"
CITE = "the user's own collection"
LICENSE = "as stated by the owner of the collection"
SOURCE = "a folder given by the user"

NOT_MUSIC = ("noise", "rir")  # folders of noise and impulse responses in the same data root
MIN_FOLDERS = 10  # with fewer, the splits would be far from their shares


@dataclass(frozen=True)
class Config:
    """How the tracks are split; what the two shares leave is for training."""

    val_share: float = 0.05
    """Share of the validation split, at least 0; the sum of both shares must be below 1."""

    test_share: float = 0.3
    """Share of the test split, at least 0."""

    def __post_init__(self) -> None:
        shares = (self.val_share, self.test_share)
        require(min(shares) >= 0 and sum(shares) < 1, "val_share and test_share must be >= 0 and sum to < 1", shares)


def build(config: Config, root: Path | None) -> Source:
    """Return the audio files below `root`; the id and the path of a track are its path relative to `root`.

    Raises: DataError if the folder does not exist or has no music.
    """
    if root is None:
        raise DataError("folder needs a folder of audio files; give it as --data-root")
    found = {path: problem for path, problem in find_audio(root).items() if path.split("/")[0] not in NOT_MUSIC}
    if not found:
        raise DataError(
            f"no music in {root}: all its audio is in {' and '.join(NOT_MUSIC)}; give another folder as --data-root"
        )
    # What cannot be used is in the listing, but decides nothing about the splits of the rest.
    usable = {path: problem for path, problem in found.items() if not problem}
    groups = {path: path.split("/")[0] for path in found}
    if len({groups[path] for path in usable if path != groups[path]}) < MIN_FOLDERS:
        groups = {path: path for path in found}
    splits = _assign_splits({groups[path] for path in usable}, config)
    tracks = [Track(path, path, splits.get(groups[path], "train"), problem=problem) for path, problem in found.items()]
    return file_source(root, tracks, follow_links=True)


def _assign_splits(groups: set[str], config: Config) -> dict[str, Split]:
    """Return the split of every group, drawn by hash.

    With three groups or more, every split with a share above 0 has at least one group.
    """
    drawn = {group: int(hashlib.sha256(normalise_path(group).encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
    stop = config.test_share + config.val_share
    splits: dict[str, Split] = {
        group: "test" if value < config.test_share else "val" if value < stop else "train"
        for group, value in drawn.items()
    }
    ranked = sorted(groups, key=lambda group: (drawn[group], group))
    spare: dict[Split, str] = {"test": ranked[0], "val": ranked[len(ranked) // 2], "train": ranked[-1]}
    shares: dict[Split, float] = {"test": config.test_share, "val": config.val_share, "train": 1 - stop}
    required = {split for split, share in shares.items() if share > 0}
    if len(groups) >= len(spare) and not required <= set(splits.values()):
        splits |= {spare[split]: split for split in required}
    return splits
