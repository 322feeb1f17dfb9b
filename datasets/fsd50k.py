"""FSD50K, sound events from Freesound, in its official layout: the source of training mixtures for alignment.

The root, or a folder `FSD50K` in it, holds `FSD50K.ground_truth/dev.csv` beside `FSD50K.dev_audio`; these give the
training and the validation side. `eval.csv` beside `FSD50K.eval_audio` is the test side, where it is there. Licences
are those of `FSD50K.metadata`, clip by clip, where it is there. Clips last 0.3 to 30 s; what is shorter than
`data.min_track_s` is left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.audio.files import file_source
from bench.errors import DataError
from bench.values import Source, Split, Track

KIND = "music"  # what is trained on and searched, whatever it is; noise is what is mixed into it
CITE = "Fonseca, Favory, Pons, Font, Serra: FSD50K: An Open Dataset of Human-Labeled Sound Events. TASLP 2022"
LICENSE = "CC BY 4.0 as a whole; each clip has its uploader's licence (CC0, BY, BY-NC, Sampling+), kept in the manifest"
SOURCE = "https://zenodo.org/records/4060432"

TABLES, METADATA = "FSD50K.ground_truth", "FSD50K.metadata"
SPLITS: dict[str, Split] = {"train": "train", "val": "val"}
COLUMNS = {"dev": ("fname", "labels", "mids", "split"), "eval": ("fname", "labels", "mids")}


@dataclass(frozen=True)
class Config:
    """Nothing to set: the tables say it all."""


def build(config: Config, root: Path | None) -> Source:
    """Return the clips of FSD50K below `root`; a track's label is its first one, the most special.

    Raises: DataError if the development part is not there, or a table cannot be read.
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
    """Return the rows of a table, every field a text. Raises: DataError naming the table and what is wrong."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}")
        _check(table["fname"].tolist(), table["split"].tolist() if "split" in columns else [])
    except (OSError, ValueError) as error:  # pandas raises ValueErrors
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read as FSD50K's table ({told}); unpack {TABLES}.zip again") from error
    cells = zip(*(table[name].tolist() for name in columns), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in cells]


def _check(names: list[str], sides: list[str]) -> None:
    """Raise ValueError if a clip is no Freesound number, or a side unknown, as in a last row that broke off."""
    for name in names:
        if not (name.isascii() and name.isdigit()):
            raise ValueError(f"fname must be a number, got {name!r}")
    for name, side in zip(names, sides, strict=False):
        if side not in SPLITS:
            raise ValueError(f"clip {name} has the split {side!r}, not one of {', '.join(SPLITS)}")


def _read_licences(path: Path) -> dict[str, str]:
    """Return the licence of each clip by its number, none where there is no such file."""
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(clip["license"]) for name, clip in told.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be read ({told}); unpack {METADATA}.zip again, or remove it") from error
