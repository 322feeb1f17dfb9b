"""Measured room impulse responses from a folder of audio files at any sample rate.

The first channel of each file is used. All are for training, but half of the rooms of the folder that
`eval.measured_rooms` names are tested in (`bench.degrade.measured`). The test rooms of the benchmark are simulated to
exact t60 values (see `rooms`), so that every user has the same ones.

Shape legend: T samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from bench.audio.decode import Recording
from bench.audio.files import find_audio, stamp_file
from bench.degrade.room import Response, align_direct_sound, measure_t60
from bench.errors import DataError
from bench.store import ADDED_LATER, digest
from bench.values import RATE_HZ, Floats

KIND = "rir"
CITE = "the user's folder"
LICENSE = "as stated by the owner of the folder"
SOURCE = "a folder of measured impulse responses"


@dataclass(frozen=True)
class Config:
    """Which responses are used."""

    max_t60_s: float = 2.0
    """Largest reverberation time in s; responses that ring longer (mausoleums, sports halls) are left out."""

    direct_sound: Literal["largest", "first"] = field(default="largest", metadata=ADDED_LATER)
    """What is taken for the direct sound: the largest peak, as in `fma-segment/v1`, or the first one, as in `v2`."""


def build(config: Config, root: Path | None) -> RirFolder:
    """Return the responses below `root/rir` if that folder exists, else those below `root`.

    Raises: DataError if the folder does not exist or has no audio.
    """
    if root is None:
        raise DataError("rir-folder needs a data root; give --data-root FOLDER or set BENCH_DATA")
    folder = root / "rir" if (root / "rir").is_dir() else root
    find_audio(folder)
    return RirFolder(folder, config)


@dataclass(frozen=True)
class RirFolder:
    """Reads responses; the name of a response is its path relative to the folder."""

    folder: Path
    config: Config

    def names(self) -> Sequence[str]:
        """Return the relative paths of all responses, sorted."""
        return [path for path, problem in find_audio(self.folder).items() if not problem]

    def load(self, name: str) -> Response:
        """Return one response at 16 kHz. Raises: DataError if it cannot be read, is silent or rings too long."""
        wave_T, rate_hz = read_first_channel(self.folder / name)
        return Response(name, self._align(name, wave_T, rate_hz), "train")

    def _align(self, name: str, wave_T: Floats, rate_hz: int) -> Floats:
        path, config = self.folder / name, self.config
        return align_response(path, wave_T, rate_hz, config.max_t60_s, config.direct_sound)

    def digest(self) -> str:
        """Return a digest of the settings, and of the names, sizes and times of the files."""
        stamps = [(name, *stamp_file(self.folder / name)) for name in self.names()]
        return digest("rir-folder", 2, self.config, stamps)


def read_first_channel(path: Path) -> tuple[Floats, int]:
    """Return the first channel of an audio file, shape (T,), and its rate. Raises: DataError if it cannot be read."""
    import soundfile

    try:
        with Recording(path) as recording:
            return np.concatenate([block_TC[:, 0] for block_TC in recording.blocks()]), recording.rate_hz
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def align_response(
    path: Path, wave_T: Floats, rate_hz: int, max_t60_s: float, direct_sound: Literal["largest", "first"] = "largest"
) -> Floats:
    """Return a response as `Response.wave_T` has it: at 16 kHz, aligned, its peak 1.

    Raises: DataError if it is not finite, is silent, has no decay or rings for longer than `max_t60_s`.
    """
    import soxr

    wave_T = wave_T if rate_hz == RATE_HZ else soxr.resample(wave_T, rate_hz, RATE_HZ)
    if not np.isfinite(wave_T).all():
        raise DataError(f"{path} holds NaN or infinite samples")
    aligned_T = align_direct_sound(wave_T, "v1" if direct_sound == "largest" else "v2")
    t60_s, _method = measure_t60(aligned_T)
    if t60_s > max_t60_s:
        raise DataError(f"{path.name} rings for {t60_s:.1f} s, longer than max_t60_s = {max_t60_s:g}")
    return aligned_T
