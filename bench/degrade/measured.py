"""Measured rooms as a test condition: which of them test, at which reverberation time, and which may train.

Shape legend: T samples.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np
import pandas as pd

from bench.degrade.room import RoomBank
from bench.errors import DataError
from bench.store import digest
from bench.values import Floats, Ints

TEST_SHARE = 0.5  # of the rooms of a collection that does not say itself which of them are for tests
LARGEST_RATIO = 1.25  # of a room's t60 to that of its cell, either way
WORD_END = re.compile(r"(?<=.)[^0-9A-Za-z]")
SAME_ENERGY = 0.01  # -20 dB: two responses that differ by less are one recording, read from two files


@dataclass(frozen=True)
class MeasuredRooms:
    """The measured rooms of a test, none of which may train."""

    bank: RoomBank

    rows_of: Mapping[float, Ints] = field(default_factory=dict)
    """The rows of the bank that belong to each t60 of the test, in s; see `sort_by_t60`."""

    @property
    def key(self) -> str:
        """Return the content key of the responses that are tested in."""
        return digest(
            {f"{t60_s:g}": [_hash(self.bank.response(i)) for i in rows] for t60_s, rows in self.rows_of.items()}
        )


_NO_BANK = RoomBank(
    pd.DataFrame({"name": [], "split": [], "t60_s": []}), pd.DataFrame(), np.zeros(0, dtype=np.float32), ""
)
NO_MEASURED_ROOMS = MeasuredRooms(_NO_BANK)


def name_rooms(responses: Sequence[str]) -> list[str]:
    """Return the room of each response of a collection: its folder or, if all lie in one, the first word of its file.

    A folder is the first one below those that all have in common. Why the first word: `hall_left` and `hall_right` are
    one room. Rooms that share a word are taken for one, which costs responses but leaks none.
    """
    parts = [response.split("/") for response in responses]
    levels = zip(*(folders[:-1] for folders in parts), strict=False)
    common = len(list(takewhile(lambda names: len(set(names)) == 1, levels)))
    return [own[0] if own[1:] else WORD_END.split(own[0], maxsplit=1)[0] for own in (p[common:] for p in parts)]


def split_by_room(bank: RoomBank) -> RoomBank:
    """Return the bank with half of its rooms for tests, drawn by a hash of their names.

    A room is thus on the same side on every machine, and stays there when others are added. A bank that has test rooms
    of its own is returned as it is.
    """
    if (bank.table["split"] == "test").any():
        return bank
    rooms = name_rooms(bank.table["name"].tolist())
    drawn = {room: int(hashlib.sha256(room.encode()).hexdigest()[:8], 16) / 2**32 for room in rooms}
    tested = {room for room, value in drawn.items() if value < TEST_SHARE} or {min(drawn, key=lambda r: drawn[r])}
    return replace(bank, table=bank.table.assign(split=["test" if room in tested else "train" for room in rooms]))


def keep_from_training(bank: RoomBank, tested: RoomBank) -> RoomBank:
    """Return the bank without training responses of rooms that `tested` tests in, by their names or their samples."""
    numbers = tested.numbers("test").tolist()
    all_rooms = name_rooms(tested.table["name"].tolist())
    tested_rooms = {all_rooms[number] for number in numbers}
    waves = [tested.response(number) for number in numbers]
    rooms = name_rooms(bank.table["name"].tolist())
    split = bank.table["split"].tolist()
    for number in bank.numbers("train").tolist():
        wave_T = bank.response(number)
        if rooms[number] in tested_rooms or any(_is_same(wave_T, other_T) for other_T in waves):
            split[number] = "none"
    return replace(bank, table=bank.table.assign(split=split))


def _hash(wave_T: Floats) -> str:
    return hashlib.sha256(wave_T.tobytes()).hexdigest()


def _is_same(one_T: Floats, other_T: Floats) -> bool:
    peaks = [int(np.argmax(np.abs(wave_T))) for wave_T in (one_T, other_T)]
    if peaks[0] != peaks[1]:  # v2 aligns what it tests in by another peak than training does
        one_T, other_T = one_T[peaks[0] :], other_T[peaks[1] :]
    length = min(len(one_T), len(other_T))
    difference = np.square(one_T[:length].astype(np.float64) - other_T[:length]).sum()
    return bool(difference < SAME_ENERGY * np.square(one_T[:length], dtype=np.float64).sum())


def sort_by_t60(bank: RoomBank, classes_s: Sequence[float]) -> dict[float, Ints]:
    """Return the row numbers of the test responses of each class of t60, in s.

    A response belongs to the class with the nearest t60 by ratio, to none if that is off by more than LARGEST_RATIO.
    Raises: DataError if a class has no response.
    """
    if not classes_s:
        return {}
    numbers = bank.numbers("test")
    t60_s = bank.table["t60_s"].to_numpy(np.float64)[numbers]
    distance = np.abs(np.log(t60_s[:, None] / np.array(classes_s)))
    nearest = np.where(distance.min(axis=1) <= np.log(LARGEST_RATIO), distance.argmin(axis=1), -1)
    sorted_numbers = {class_s: numbers[nearest == i] for i, class_s in enumerate(classes_s)}
    filled = [class_s for class_s, of_class in sorted_numbers.items() if len(of_class)]
    for class_s in classes_s:
        if class_s not in filled:
            have = ", ".join(f"{value:.2f}" for value in np.unique(t60_s.round(2)))
            remedy = f"eval.measured_t60_s='{filled}'" if filled else "eval.measured_t60_s to some of these"
            raise DataError(
                f"no measured test room has a t60 within a factor of {LARGEST_RATIO:g} of {class_s:g} s: the "
                f"{len(numbers)} test responses have {have or 'none'} s; set {remedy}"
            )
    return sorted_numbers
