"""FSD50K, sound events from Freesound, in its official layout; for the training mixtures of alignment.

The data root, or a folder `FSD50K` in it, holds `FSD50K.ground_truth/dev.csv` and `FSD50K.dev_audio`, from which the
training and the validation split are read. `eval.csv` and `FSD50K.eval_audio` are the test split; they are optional, as
is `FSD50K.metadata`, which gives the licence of each clip. Clips last 0.3 to 30 s; those shorter than
`data.min_track_s` are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.audio.files import file_source
from bench.errors import DataError
from bench.values import Source, Split, Track

KIND = "music"  # the kind of all audio that is trained on and searched; noise is mixed into it
CITE = "Fonseca, Favory, Pons, Font, Serra: FSD50K: An Open Dataset of Human-Labeled Sound Events. TASLP 2022"
LICENSE = (
    "CC BY 4.0 as a whole; each clip has the licence of its uploader (CC0, BY, BY-NC, Sampling+), as in the manifest"
)
SOURCE = "https://zenodo.org/records/4060432"

TABLES, METADATA = "FSD50K.ground_truth", "FSD50K.metadata"
SPLITS: dict[str, Split] = {"train": "train", "val": "val"}
COLUMNS = {"dev": ("fname", "labels", "mids", "split"), "eval": ("fname", "labels", "mids")}


@dataclass(frozen=True)
class Config:
    """No settings: the tables of FSD50K define the splits."""


def build(config: Config, root: Path | None) -> Source:
    """Return the clips of FSD50K below `root`; the label of a track is the first of its labels, the most specific.

    Raises: DataError if the development set is missing or a table cannot be read.
    """
    home = _find(root)
    parts = [part for part in COLUMNS if part == "dev" or (home / TABLES / "eval.csv").is_file()]
    return file_source(home, [track for part in parts for track in _tracks(home, part)])


def _find(root: Path | None) -> Path:
    if root is None:
        raise DataError("fsd50k needs its folder; give the one that holds FSD50K.dev_audio as --data-root")
    for home in (root, root / "FSD50K"):
        if (home / TABLES / "dev.csv").is_file() and (home / "FSD50K.dev_audio").is_dir():
            return home
    raise DataError(
        f"no FSD50K found in {root}: looked there and in its folder FSD50K for {TABLES}/dev.csv beside "
        "FSD50K.dev_audio; give the folder that holds them as --data-root"
    )


def _tracks(home: Path, part: str) -> list[Track]:
    licences = _read_licences(home / METADATA / f"{part}_clips_info_FSD50K.json")
    folder = f"FSD50K.{part}_audio"
    return [
        Track(
            id=f"{part}/{row['fname']}",
            path=f"{folder}/{row['fname']}.wav",
            split=SPLITS[row["split"]] if part == "dev" else "test",
            licence=licences.get(row["fname"], "unknown"),
            label=row["labels"].split(",")[0],
        )
        for row in _read_rows(home / TABLES / f"{part}.csv", COLUMNS[part])
    ]


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a table; all values are strings. Raises: DataError naming the table and the problem."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}")
        _check(table["fname"].tolist(), table["split"].tolist() if "split" in columns else [])
    except (OSError, ValueError) as error:  # pandas raises ValueErrors
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read as FSD50K's table ({reason}); unpack {TABLES}.zip again") from error
    cells = zip(*(table[name].tolist() for name in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in cells]


def _check(names: list[str], splits: list[str]) -> None:
    """Raise ValueError if a clip is not a Freesound number or a split is unknown, as in a truncated last row."""
    for name in names:
        if not (name.isascii() and name.isdigit()):
            raise ValueError(f"fname must be a number, got {name!r}")
    for name, split in zip(names, splits, strict=False):
        if split not in SPLITS:
            raise ValueError(f"clip {name} has the split {split!r}, not one of {', '.join(SPLITS)}")


def _read_licences(path: Path) -> dict[str, str]:
    """Return the licences by clip number; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        clips = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(clip["license"]) for name, clip in clips.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read ({reason}); unpack {METADATA}.zip again, or remove it") from error
