"""Background noise recordings in `train/<category>/` and `test/<category>/`, directly or in a folder `noise`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.audio.files import file_source, find_audio
from bench.errors import DataError
from bench.values import Source, Track

KIND = "noise"
CITE = "the sources of the recordings, as named in the user's folder"
LICENSE = "each recording has its own licence"
SOURCE = "a folder given by the user"

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Config:
    """No settings: the folders define splits and categories."""


def build(config: Config, root: Path | None) -> Source:
    """Return the noise recordings below `root`; the label of a track is its category.

    Raises: DataError if the folder `train` or `test` is missing, or one of them has no audio.
    """
    if root is None:
        raise DataError("noise-folder needs a folder with noise/train and noise/test; give that folder as --data-root")
    home = next((h for h in (root / "noise", root) if all((h / split).is_dir() for split in SPLITS)), None)
    if home is None:
        raise DataError(
            f"no noise found in {root}: looked there and in its folder noise for train/<category>/ and "
            f"test/<category>/; give the folder that holds them as --data-root"
        )
    tracks = [
        Track(id=f"{split}/{path}", path=f"{split}/{path}", split=split, label=path.split("/")[0], problem=problem)
        for split in SPLITS
        for path, problem in find_audio(home / split).items()
    ]
    return file_source(home, tracks, follow_links=True)
