"""The prints of all tracks in one array, one track after another.

Shape legend: N prints, R rows (tracks of the database), P positions of prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.match.inverted_table import load_array
from bench.values import Ints

PRINTS, FIRST = "prints.npy", "first_prints.npy"


@dataclass(frozen=True)
class TrackPrints:
    """The prints of the database, and where each track's begin."""

    print_N: npt.NDArray[Any]
    """Shape (N,) or (N, ...)."""

    first_R: Ints
    """Shape (R + 1,): the prints of row r are print_N[first_R[r]] up to first_R[r + 1]."""

    @property
    def num_bytes(self) -> int:
        """Return the size in memory."""
        return self.print_N.nbytes + self.first_R.nbytes

    def row_of(self, position_P: Ints) -> Ints:
        """Return the row of the track of each position; -1 before the first print, R after the last."""
        return np.searchsorted(self.first_R, position_P, side="right") - 1

    def places_of(self, num_prints: int, without: int = -1) -> Ints:
        """Return all positions at which as many prints in a row are of one track, except of row `without`."""
        last_R = self.first_R[1:] - num_prints
        count_R = np.maximum(last_R - self.first_R[:-1] + 1, 0)
        if without >= 0:
            count_R[without] = 0
        skipped_R = self.first_R[:-1] - (np.cumsum(count_R) - count_R)
        places: Ints = np.arange(count_R.sum()) + np.repeat(skipped_R, count_R)
        return places

    def are_places(self, position_P: Ints, num_prints: int, without: int = -1) -> npt.NDArray[np.bool_]:
        """Return which positions are among `places_of`."""
        row_P = self.row_of(position_P)
        within_P = (position_P >= 0) & (row_P < len(self.first_R) - 1)
        end_P = self.first_R[np.where(within_P, row_P, 0) + 1]
        fits_P: npt.NDArray[np.bool_] = within_P & (position_P + num_prints <= end_P)
        return fits_P & (row_P != without) if without >= 0 else fits_P

    def save(self, folder: Path) -> None:
        """Write the prints below the folder."""
        np.save(folder / PRINTS, self.print_N)
        np.save(folder / FIRST, self.first_R)


def stack_prints(of_tracks: Sequence[npt.NDArray[Any]]) -> TrackPrints:
    """Return the prints of at least one track."""
    first_R = np.cumsum([0, *(len(prints) for prints in of_tracks)]).astype(np.int64)
    return TrackPrints(np.concatenate(of_tracks), first_R)


def load_prints(folder: Path, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> TrackPrints:
    """Return the prints in a folder, memory-mapped; each of this type and shape.

    Raises: StoreError if a file is missing, cut off, or not of these prints.
    """
    print_N, first_R = load_array(folder / PRINTS), load_array(folder / FIRST)
    is_rising = first_R.ndim == 1 and len(first_R) > 1 and first_R[0] == 0 and bool(np.all(np.diff(first_R) >= 0))
    fits = is_rising and first_R.dtype == np.int64 and first_R[-1] == len(print_N)
    if not fits or print_N.dtype != dtype or print_N.shape[1:] != shape:
        raise StoreError(
            f"the prints in {folder} are damaged (their parts do not fit); delete the folder and run again"
        )
    return TrackPrints(np.asarray(print_N), np.asarray(first_R))
