"""A table from keys to the positions at which they occur in the database: sorted once, then looked up in batches.

Shape legend: N entries, U distinct keys, K keys looked up, H hits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import StoreError
from bench.values import Ints

FILES = ("keys", "first", "positions")
Keys = npt.NDArray[Any]  # of unsigned integers


@dataclass(frozen=True)
class InvertedTable:
    """The positions of each key, in ascending order."""

    key_U: Keys
    """The distinct keys, ascending."""

    first_U: Ints
    """Shape (U + 1,): the positions of key u are positions[first_U[u]] up to first_U[u + 1]."""

    position_N: npt.NDArray[np.uint32]

    @property
    def num_bytes(self) -> int:
        """Return the size of the table in memory."""
        return self.key_U.nbytes + self.first_U.nbytes + self.position_N.nbytes

    def look_up(self, key_K: Keys, longest: int | None = None) -> tuple[Ints, Ints]:
        """Return the hits: the number of the key that was looked up, and the position, both (H,), in that order.

        Keys with more positions than `longest` are passed over.
        """
        if not len(self.key_U) or not len(key_K):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        row_K = np.minimum(np.searchsorted(self.key_U, key_K), len(self.key_U) - 1)
        count_K = np.where(self.key_U[row_K] == key_K, self.first_U[row_K + 1] - self.first_U[row_K], 0)
        if longest is not None:
            count_K[count_K > longest] = 0
        asked_H = np.repeat(np.arange(len(key_K)), count_K)
        within_H = np.arange(len(asked_H)) - np.repeat(np.cumsum(count_K) - count_K, count_K)
        position_H = self.position_N[self.first_U[row_K[asked_H]] + within_H].astype(np.int64)
        return asked_H, position_H

    def save(self, folder: Path) -> None:
        """Write the table below the folder."""
        for name, array in zip(FILES, (self.key_U, self.first_U, self.position_N), strict=True):
            np.save(folder / f"{name}.npy", np.asarray(array))


def build_table(key_N: Keys, position_N: Ints) -> InvertedTable:
    """Return the table of entries in any order. Cost: one stable sort; memory about three times the entries."""
    order = np.lexsort((position_N, key_N))
    sorted_N = key_N[order]
    is_first_N = np.ones(len(sorted_N), dtype=bool)
    is_first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    first_U = np.append(np.flatnonzero(is_first_N), len(sorted_N)).astype(np.int64)
    return InvertedTable(sorted_N[is_first_N], first_U, position_N[order].astype(np.uint32))


def load_table(folder: Path) -> InvertedTable:
    """Return the table in a folder, memory-mapped. Raises: StoreError if a file is missing, cut off or not of it."""
    key_U, first_U, position_N = (load_array(folder / f"{name}.npy") for name in FILES)
    sizes = len(first_U) == len(key_U) + 1 and (int(first_U[-1]) if len(first_U) else 0) == len(position_N)
    if not sizes:
        raise StoreError(f"the table in {folder} is damaged (its parts do not fit); delete the folder and run again")
    return InvertedTable(key_U, first_U, position_N)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Return a .npy file of any type, memory-mapped. Raises: StoreError if it is missing or damaged."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path} is damaged ({reason}); delete the folder {path.parent} and run again") from error
    return array
