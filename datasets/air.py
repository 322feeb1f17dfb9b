"""Measured room impulse responses of the Aachen Impulse Response database, as its `.mat` files or converted to audio.

The sides are split by room. Tests use the studio booth, the meeting, office and lecture rooms, whose t60 are said to be
0.12, 0.23, 0.43 and 0.78 s (confidence B); training uses all other rooms. That the published tests, at 0.2 to 0.8 s,
used these four is our reading: they do not state their rooms (confidence C).

Shape legend: T samples, C channels.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.audio.files import stamp_file
from bench.datasets.rir_folder import align_response, read_first_channel
from bench.degrade.room import Response
from bench.errors import DataError
from bench.store import ADDED_LATER, digest
from bench.values import Floats, Split

KIND = "rir"
CITE = "Jeub, Schaefer, Vary, A binaural room impulse response database, DSP 2009"
LICENSE = "MIT, as AIR 1.4 states in its license.txt"
SOURCE = "https://www.iks.rwth-aachen.de, air_database_release_1_4.zip, or https://www.openslr.org/20/"

FOLDERS = ("AIR_1_4", "air", "rir/AIR_1_4", "rir/air", "rir", ".")  # below the data root; the first with a file counts
# As in air_binaural_lecture_0_1_1.mat, with channel, head and distance; others end in an angle, or have a position.
NAME = re.compile(
    r"air_(?:binaural|phone)_(?:BT_)?(?P<room>[a-z]+\d*(?:_[a-z]+\d*)*?)(?:_(?:hhp|hfrp))?_\d.*\.(?:mat|wav|flac)$"
)
TEST_ROOMS = ("booth", "meeting", "office", "lecture")
# What SciPy raises for a file that is no MATLAB file, is cut off, or is of version 7.3 (HDF5).
UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    NotImplementedError,
    OSError,
    MemoryError,
    zlib.error,
)


@dataclass(frozen=True)
class Config:
    """Which responses are used."""

    max_t60_s: float = 2.0
    """Largest reverberation time in s; responses that ring longer, as those of the Aula Carolina do, are left out."""

    direct_sound: Literal["largest", "first"] = field(default="largest", metadata=ADDED_LATER)
    """What is taken for the direct sound: the largest peak, as in `fma-segment/v1`, or the first one, as in `v2`."""


def build(config: Config, root: Path | None) -> Air:
    """Return the responses in the first of FOLDERS below `root` that holds any.

    Raises: DataError if there are none.
    """
    if root is None:
        raise DataError("air needs a data root; give --data-root FOLDER or set BENCH_DATA")
    for folder in FOLDERS:
        if names := _find_responses(root / folder):
            return Air(root / folder, names, config)
    raise DataError(
        f"no file such as air_binaural_lecture_0_1_1.mat in {root}: looked in {', '.join(FOLDERS)}; "
        "unpack air_database_release_1_4.zip into the data root"
    )


def _find_responses(folder: Path) -> tuple[str, ...]:
    """Return `room/path` of each response below a folder, sorted; the path is relative to the folder."""
    found = []
    for parent, _folders, files in os.walk(folder):
        for file in files:
            if match := NAME.search(file):
                found.append(f"{match['room']}/{(Path(parent) / file).relative_to(folder).as_posix()}")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Air:
    """Reads responses; the name of a response is its room and its path relative to the folder."""

    folder: Path
    listing: tuple[str, ...]
    config: Config

    def names(self) -> Sequence[str]:
        """Return the names of all responses, sorted."""
        return self.listing

    def load(self, name: str) -> Response:
        """Return one response at 16 kHz. Raises: DataError if it cannot be read, is silent or rings too long."""
        room, _, path = name.partition("/")
        wave_T, rate_hz = (
            _read_mat(self.folder / path) if path.endswith(".mat") else read_first_channel(self.folder / path)
        )
        split: Split = "test" if set(TEST_ROOMS) & set(room.split("_")) else "train"
        config = self.config
        aligned_T = align_response(self.folder / path, wave_T, rate_hz, config.max_t60_s, config.direct_sound)
        return Response(name, aligned_T, split, licence="MIT")

    def digest(self) -> str:
        """Return a digest of the settings, and of the names, sizes and times of the files."""
        stamps = [(name, *stamp_file(self.folder / name.partition("/")[2])) for name in self.listing]
        return digest("air", 1, self.config, TEST_ROOMS, stamps)


def _read_mat(path: Path) -> tuple[Floats, int]:
    """Return the first channel of a `.mat` file, shape (T,), and its rate: the variables h_air and air_info.fs.

    SciPy reads numbers and texts alone: no code of the file is run. Raises: DataError if the file has not got these.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found = loadmat(path, variable_names=("h_air", "air_info"), appendmat=False)
    except (MatReadError, *UNREADABLE) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} cannot be read as a MATLAB file: {reason}; download it again") from error
    response = found.get("h_air")
    if not isinstance(response, np.ndarray) or response.dtype.kind not in "fiu" or response.ndim != 2:
        raise DataError(f"{path} has no matrix of numbers h_air, which holds the response; is it a file of AIR?")
    channels_CT = response if response.shape[0] <= response.shape[1] else response.T
    if not channels_CT.size:
        raise DataError(f"{path} holds no samples")
    wave_T: Floats = channels_CT[0].astype(np.float32)
    return wave_T, _read_rate(path, found.get("air_info"))


def _read_rate(path: Path, info: Any) -> int:
    """Return the sample rate of a `.mat` file. Raises: DataError if it does not state one between 8 and 192 kHz."""
    names = getattr(getattr(info, "dtype", None), "names", None) or ()
    value = np.asarray(info["fs"].flat[0]) if "fs" in names and info.size else np.zeros(0)
    rate_hz = float(value.flat[0]) if value.size == 1 and value.dtype.kind in "fiu" else float("nan")
    if not (8_000 <= rate_hz <= 192_000 and rate_hz.is_integer()):
        raise DataError(f"{path} has no sample rate from 8000 to 192000 Hz in air_info.fs; is it a file of AIR?")
    return int(rate_hz)
