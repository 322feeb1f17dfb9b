"""Any folder of audio files: mp3, ogg, flac or wav, at any depth, any rate, mono or stereo.

Sides are drawn by a hash of the path, so they are the same on every machine and stay when files are
added. All files below one top-level folder (an album, an artist) are on one side; with few such
folders every file is drawn for itself. The top-level folders `noise` and `rir` are not music.
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
LICENSE = "as the collection's owner says"
SOURCE = "a folder of the user"

NOT_MUSIC = ("noise", "rir")  # where noise and impulse responses of the same data root are looked for
MIN_FOLDERS = 10  # with fewer, the drawn sides would be far from their shares


@dataclass(frozen=True)
class Config:
    """How the tracks are divided; what the two shares leave is the training side."""

    val_share: float = 0.05
    """Share of the validation side, at least 0; the sum of both shares is below 1."""

    test_share: float = 0.3
    """Share of the test side, at least 0."""

    def __post_init__(self) -> None:
        shares = (self.val_share, self.test_share)
        require(min(shares) >= 0 and sum(shares) < 1, "val_share and test_share must be >= 0 and sum to < 1", shares)


def build(config: Config, root: Path | None) -> Source:
    """Return the audio files below `root`; a track's id and path are its relative path.

    Raises: DataError if there is no such folder or no audio in it.
    """
    if root is None:
        raise DataError("folder needs a folder of audio files; give it as --data-root")
    found = {path: told for path, told in find_audio(root).items() if path.split("/")[0] not in NOT_MUSIC}
    if not found:
        raise DataError(
            f"no music in {root}: all its audio is below {' and '.join(NOT_MUSIC)}; give the folder above it"
        )
    groups = {path: path.split("/")[0] for path in found}
    if len({group for path, group in groups.items() if path != group}) < MIN_FOLDERS:
        groups = {path: path for path in found}
    sides = _assign_splits(set(groups.values()), config)
    return file_source(root, [Track(path, path, sides[groups[path]], problem=told) for path, told in found.items()])


def _assign_splits(groups: set[str], config: Config) -> dict[str, Split]:
    """Return the side of every group, drawn by hash; a wanted side never stays empty where three groups are."""
    drawn = {group: int(hashlib.sha256(normalise_path(group).encode()).hexdigest()[:8], 16) / 2**32 for group in groups}
    stop = config.test_share + config.val_share
    sides: dict[str, Split] = {
        group: "test" if value < config.test_share else "val" if value < stop else "train"
        for group, value in drawn.items()
    }
    ranked = sorted(groups, key=lambda group: (drawn[group], group))
    spare: dict[Split, str] = {"test": ranked[0], "val": ranked[len(ranked) // 2], "train": ranked[-1]}
    shares: dict[Split, float] = {"test": config.test_share, "val": config.val_share, "train": 1 - stop}
    wanted = {side for side, share in shares.items() if share > 0}
    if len(groups) >= len(spare) and not wanted <= set(sides.values()):
        sides |= {spare[side]: side for side in wanted}
    return sides
