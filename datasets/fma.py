"""FMA, the Free Music Archive data set, in its official layout.

The data root, or a folder `fma` in it, holds `fma_metadata/tracks.csv` and one of the audio folders. With `fma_large`
or `fma_full`, the subset medium (which includes small) is the test split and the rest is for training; of that rest,
the tracks that the column `set, split` marks as validation are the validation split. With `fma_medium` or `fma_small`
alone, the splits are the official ones of `set, split`. If the column marks no validation tracks, a share of the
training albums is held out, chosen by a hash.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench.audio.files import file_source
from bench.errors import DataError
from bench.settings import require
from bench.values import Source, Split, Track

KIND = "music"
CITE = "Defferrard, Benzi, Vandergheynst, Bresson: FMA: A Dataset for Music Analysis. ISMIR 2017"
LICENSE = "metadata CC BY 4.0; each track has the licence of its artist, recorded in the manifest"
SOURCE = "https://github.com/mdeff/fma"

SUBSETS = {
    "fma_large": ("small", "medium", "large"),
    "fma_full": ("small", "medium", "large"),
    "fma_medium": ("small", "medium"),
    "fma_small": ("small",),
}
SPLITS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}
COLUMNS = (("set", "subset"), ("set", "split"), ("track", "license"), ("album", "id"), ("artist", "id"))
HEADER_ROWS = 3  # two rows of column names, and one with only "track_id"


@dataclass(frozen=True)
class Config:
    """Which audio of FMA is used, and how much is held out for validation."""

    audio: Literal["auto", "fma_large", "fma_full", "fma_medium", "fma_small"] = "auto"
    """The audio folder; `auto` takes the first of these that exists."""

    val_share: float = 0.05
    """Share of training albums held out if the table marks no validation tracks, at least 0 and below 1."""

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, "val_share must be >= 0 and < 1", self.val_share)


def build(config: Config, root: Path | None) -> Source:
    """Return the tracks of FMA below `root`.

    Raises: DataError if the folders are missing or tracks.csv cannot be read.
    """
    home, audio = _find(config, root)
    rows = [row for row in _read_rows(home / "fma_metadata" / "tracks.csv") if row["subset"] in SUBSETS[audio.name]]
    tracks = [_track(row, audio.name) for row in rows]
    if not any(track.split == "val" for track in tracks):
        tracks = [_hold_out(track, row, config.val_share) for track, row in zip(tracks, rows, strict=True)]
    # The audio folder itself may be a link to another disk. Samples stay as recorded: fma-segment/v1 has them so.
    return file_source(home, tracks, fence=audio, as_recorded=True)


def _find(config: Config, root: Path | None) -> tuple[Path, Path]:
    if root is None:
        raise DataError("fma needs its folder; give the one that holds fma_large and fma_metadata as --data-root")
    candidates = list(SUBSETS) if config.audio == "auto" else [config.audio]
    for home in (root, root / "fma"):
        for name in candidates:
            if (home / name).is_dir() and (home / "fma_metadata" / "tracks.csv").is_file():
                return home, home / name
    raise DataError(
        f"no FMA found in {root}: looked there and in its folder fma for fma_metadata/tracks.csv beside "
        f"{' or '.join(candidates)}; give the folder that holds them as --data-root"
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return one row per track: the columns COLUMNS, and the six digits of its number as `track`."""
    import pandas as pd

    try:
        with path.open(newline="", encoding="utf-8") as file:
            header = csv.reader(file)
            indices = _find_columns(next(header), next(header), next(header))
        used = [0, *indices.values()]
        table = pd.read_csv(path, header=None, skiprows=HEADER_ROWS, usecols=used, dtype=str, keep_default_na=False)
        names = [f"{int(number):06d}" for number in table[0]]
        columns = {name: table[index].tolist() for name, index in indices.items()} | {"track": names}
        _check(columns)
    except (OSError, ValueError, LookupError, StopIteration, csv.Error) as error:  # pandas raises ValueErrors
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} cannot be read as FMA's tracks.csv ({reason}); unpack fma_metadata.zip again"
        ) from error
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check(columns: dict[str, list[str]]) -> None:
    """Raise ValueError if a row has an unknown subset or split, as the last row of a truncated download has."""
    for name, known in (("subset", set(SUBSETS["fma_full"])), ("split", set(SPLITS))):
        for track, value in zip(columns["track"], columns[name], strict=True):
            if value not in known:
                raise ValueError(f"track {track} has the {name} {value!r}, not one of {', '.join(sorted(known))}")


def _find_columns(upper: list[str], lower: list[str], index: list[str]) -> dict[str, int]:
    columns = list(zip(upper, lower, strict=True))
    if index[:1] != ["track_id"]:
        raise ValueError(f"its third row must start with track_id, got {index[:1]}")
    return {f"{group}_{name}" if name == "id" else name: columns.index((group, name)) for group, name in COLUMNS}


def _track(row: dict[str, str], audio: str) -> Track:
    name = row["track"]
    split = SPLITS.get(row["split"], "train")
    if audio in ("fma_large", "fma_full"):
        split = "test" if row["subset"] != "large" else "val" if split == "val" else "train"
    return Track(id=name, path=f"{audio}/{name[:3]}/{name}.mp3", split=split, licence=row["license"] or "unknown")


def _hold_out(track: Track, row: dict[str, str], share: float) -> Track:
    group = next((f"{key} {row[key]}" for key in ("album_id", "artist_id") if row[key]), f"track {track.id}")
    drawn = int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32
    return replace(track, split="val") if track.split == "train" and drawn < share else track
