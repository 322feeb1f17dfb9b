"""The values that flow from stage to stage. Nothing here does work; nothing is changed once made.

Shape legend: T samples, B batch, N vectors, D dimensions of a fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

RATE_HZ = 16_000  # every track is kept at this rate; an encoder that wants another one is given it resampled

Split = Literal["train", "val", "test"]
INT16_SCALE = 1 / 32_768  # a float sample is an int16 sample over 2**15
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Track:
    """One recording of a data set, not yet decoded.

    `id` is unique in its data set; `path` is relative to the data root and empty for made-up audio;
    `label` is a free word for grouping (the category of a noise); `problem` says why the listing
    already knows that it cannot be used (a file that is missing), empty if it knows of none.
    """

    id: str
    path: str
    split: Split
    licence: str = "unknown"
    label: str = ""
    problem: str = ""


class Source(Protocol):
    """What a data-set plug-in's `build(config, root)` returns: which tracks there are, and their audio."""

    def tracks(self) -> Sequence[Track]:
        """Return every track in a fixed order, unusable ones included (with `problem` set)."""
        ...

    def load(self, track: Track) -> Floats:
        """Return the audio as mono float32 at 16 kHz, shape (T,). Must be picklable: workers call it.

        Raises: DataError if it cannot be decoded.
        """
        ...

    def digest(self) -> str:
        """Return a digest of all that decides the audio: paths, sizes and times of files, or seeds."""
        ...


CellKind = Literal["identity", "clean", "noise", "reverb", "noise_reverb"]


@dataclass(frozen=True)
class Cell:
    """One test condition. `identity` is a clean query on the database's own grid: a control."""

    kind: CellKind
    snr_db: float | None = None
    t60_s: float | None = None

    @property
    def name(self) -> str:
        """Return the cell's name in rows and logs, such as `noise_reverb/snr_0/t60_0.5`."""
        parts: list[str] = [self.kind]
        parts += [f"snr_{self.snr_db:g}"] if self.snr_db is not None else []
        parts += [f"t60_{self.t60_s:g}"] if self.t60_s is not None else []
        return "/".join(parts)


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a whole database, tracks one after another.

    Shapes: vectors (N, D) float32 of unit length, memory-mapped; first_vector (tracks + 1,): the
    vectors of the i-th track, which is tracks[i] in the corpus, are first_vector[i] to
    first_vector[i + 1]. Vector j of a track starts at sample j * hop_samples of it.
    """

    vectors: Floats
    tracks: Ints
    first_vector: Ints
    hop_samples: int
    key: str

    def track_row_of(self, vector: Ints) -> Ints:
        """Return for each vector number the place of its track in `tracks`; -1 stays -1."""
        return np.searchsorted(self.first_vector, vector, side="right") - 1


class Encoder(Protocol):
    """What an encoder plug-in's `build(config)` returns: a torch module that meets this.

    Its unit vectors depend on each segment alone, never on the rest of the batch. `features` is the
    part before the network (training masks its output), `embed` the network; calling it does both.
    """

    rate_hz: int
    segment_s: float
    dim: int

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return patches (B, channels, bands, frames) of segments (B, T), T = segment_s x rate_hz, float32."""
        ...

    def embed(self, feature_B: Tensor) -> Tensor:
        """Return unit vectors (B, D) float32 of `features`' output."""
        ...


Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) by anything that takes over two seconds."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Shows nothing."""
