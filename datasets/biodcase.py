"""Recordings of BioDCASE task 1, 2025 or 2026, as unpacked: the sets `aru` and `zebra_finch`.

    <data root>/biodcase/formatted_data/{aru,zebra_finch}/{train,val}/annotations.csv
    <data root>/biodcase/formatted_data/{aru,zebra_finch}/{train,val,eval}/audio/*.wav

`formatted_data` may also be in the data root itself. The two years have different data under the same names, so their
scores are not comparable. Source: Zenodo, records 15085675 and 15492592 (2025), 19348371 and 20534578 (2026).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.align.pairs import LAYOUT
from bench.errors import DataError
from bench.store import Store, digest
from bench.values import Progress

KIND = "pairs"
CITE = "BioDCASE 2025 and 2026, task 1: multi-channel alignment"
LICENSE = "as stated in the Zenodo records"
SOURCE = "https://zenodo.org/records/15085675"

HOMES = ("biodcase", ".")  # below the data root; the first that holds LAYOUT is used
# The largest lag in seconds, as promised by the organisers.
MAX_LAG_S = {2025: {"aru": 5.0, "zebra_finch": 5.0}, 2026: {"aru": 0.5, "zebra_finch": 5.0}}


@dataclass(frozen=True)
class Config:
    """Which year's recordings are used."""

    year: Literal[2025, 2026] = 2026
    """The year of the challenge whose recordings the folder holds; it cannot be read from the files."""


def build(config: Config, root: Path | None) -> BioDcase:
    """Return the sets found below `root`. Raises: DataError if there is none."""
    if root is None:
        raise DataError("biodcase needs a data root that holds biodcase/formatted_data; give --data-root FOLDER")
    for home in HOMES:
        found = tuple(name for name in MAX_LAG_S[config.year] if (root / home / LAYOUT / name).is_dir())
        if found:
            return BioDcase(config, root / home, found)
    raise DataError(
        f"no {LAYOUT}/aru or {LAYOUT}/zebra_finch in {root} or {root / HOMES[0]}; "
        f"unpack the development set of {config.year} ({SOURCE}) there, or give its folder as --data-root"
    )


@dataclass(frozen=True)
class BioDcase:
    """The folder `home` of the challenge, which holds LAYOUT, and the sets found in it."""

    config: Config
    home: Path
    set_names: tuple[str, ...]

    def sets(self) -> tuple[str, ...]:
        """Return the names of the sets that were found."""
        return self.set_names

    def max_lag_s(self, set_name: str) -> float:
        """Return the largest lag in seconds that the organisers of the year promise."""
        return MAX_LAG_S[self.config.year][set_name]

    def digest(self) -> str:
        """Return a digest of the year and of the paths, sizes and times of all files."""
        files = [path for name in self.set_names for path in (self.home / LAYOUT / name).rglob("*") if path.is_file()]
        stats = [(path.relative_to(self.home).as_posix(), path.stat()) for path in sorted(files)]
        return digest("biodcase", 1, self.config, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    def folder(self, store: Store, progress: Progress) -> Path:
        """Return the user's folder; nothing is copied."""
        return self.home
