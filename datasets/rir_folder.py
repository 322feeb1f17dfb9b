"""Measured room impulse responses from a folder of audio files at any sample rate; for training only.

The first channel of each file is used. The test rooms of the benchmark are simulated to exact t60 values (see `rooms`),
so that every user has the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.audio.decode import Recording
from bench.audio.files import find_audio, stamp_file
from bench.degrade.room import Response, align_direct_sound, measure_t60
from bench.errors import DataError
from bench.store import digest
from bench.values import RATE_HZ

KIND = "rir"
CITE = "the user's folder"
LICENSE = "as stated by the owner of the folder"
SOURCE = "a folder of measured impulse responses"


@dataclass(frozen=True)
class Config:
    """Which responses are used."""

    max_t60_s: float = 2.0
    """Largest reverberation time in s; responses that ring longer (mausoleums, sports halls) are left out."""


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
        import soundfile
        import soxr

        try:
            with Recording(self.folder / name) as recording:
                wave_T, rate_hz = np.concatenate([block_TC[:, 0] for block_TC in recording.blocks()]), recording.rate_hz
        except (soundfile.LibsndfileError, OSError) as error:
            raise DataError(f"{self.folder / name} cannot be read: {error}") from error
        wave_T = wave_T if rate_hz == RATE_HZ else soxr.resample(wave_T, rate_hz, RATE_HZ)
        if not np.isfinite(wave_T).all():
            raise DataError(f"{self.folder / name} holds NaN or infinite samples")
        aligned_T = align_direct_sound(wave_T)
        t60_s, _method = measure_t60(aligned_T)
        if t60_s > self.config.max_t60_s:
            raise DataError(f"{name} rings for {t60_s:.1f} s, longer than max_t60_s = {self.config.max_t60_s:g}")
        return Response(name, aligned_T, "train")

    def digest(self) -> str:
        """Return a digest of the settings, and of the names, sizes and times of the files."""
        stamps = [(name, *stamp_file(self.folder / name)) for name in self.names()]
        return digest("rir-folder", 2, self.config, stamps)
