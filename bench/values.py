"""The values that flow from stage to stage: types without behaviour, never changed once made.

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

RATE_HZ = 16_000  # of every track in the store; for an encoder with another rate, audio is resampled

Split = Literal["train", "val", "test"]
FULL_SCALE = 2**15  # an int16 sample over this is the float sample: 16-bit files pass unchanged
INT16_SCALE = 1 / FULL_SCALE
INT16_PEAK = FULL_SCALE - 1  # the largest int16 sample
STANDARD_HOP_MS = 100.0  # from one fingerprint of a track to the next: in fma-segment/v1, and in the papers
GRID_HOP_SAMPLES = round(RATE_HZ * STANDARD_HOP_MS / 1000)
OWN = "own"  # the index and the sequence search of a matcher, in rows and hits
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Track:
    """One recording of a data set, not yet decoded."""

    id: str
    """Its name, unique in the data set."""

    path: str
    """Its path relative to the data root; empty for synthetic audio."""

    split: Split
    """The side of the data set that it belongs to."""

    licence: str = "unknown"
    """The licence of its audio."""

    label: str = ""
    """Any word to group tracks by, such as the category of a noise."""

    problem: str = ""
    """Why it cannot be used, if that is known before decoding (a missing file); empty otherwise."""


class Source(Protocol):
    """What a data-set plug-in's `build(config, root)` returns: a list of tracks, and their audio."""

    def tracks(self) -> Sequence[Track]:
        """Return all tracks in a fixed order, including unusable ones (with `problem` set)."""
        ...

    def load(self, track: Track) -> Floats:
        """Return the audio of a track as mono float32 at 16 kHz, shape (T,).

        Worker processes call it, so that the source must be picklable.
        Raises: DataError if the track cannot be decoded.
        """
        ...

    def digest(self) -> str:
        """Return a digest of everything that determines the audio: paths, sizes and times of files, or seeds."""
        ...


CellKind = Literal[
    "identity", "clean", "noise", "reverb", "measured_reverb", "noise_reverb", "speed", "tempo", "pitch", "codec",
    "dynamics", "device",
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One test condition."""

    kind: CellKind
    """What queries are degraded by; `identity` is a control: clean queries that start on the database's grid.

    `reverb` and `noise_reverb` are of simulated rooms, `measured_reverb` is of measured ones. `speed` and the kinds
    after it are tested from `v2` on, and have a distortion.
    """

    snr_db: float | None = None
    """Signal-to-noise ratio in dB, None without noise."""

    t60_s: float | None = None
    """Reverberation time in s, None without reverberation; measured rooms are near it."""

    distortion: str = ""
    """What else is done to the music, such as `speed_1.01` (`bench.degrade.distort`); empty for nothing."""

    @property
    def name(self) -> str:
        """Return the cell's name in rows and logs, such as `noise_reverb/snr_0/t60_0.5` or `codec/mp3_16`."""
        parts: list[str] = [self.kind]
        parts += [f"snr_{self.snr_db:g}"] if self.snr_db is not None else []
        parts += [f"t60_{self.t60_s:g}"] if self.t60_s is not None else []
        parts += [self.distortion] if self.distortion else []
        return "/".join(parts)


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a whole database, one track after another."""

    vectors: Floats
    """Unit vectors (N, D), float32, memory-mapped."""

    tracks: Ints
    """The number of each track in the corpus, shape (tracks,)."""

    first_vector: Ints
    """Shape (tracks + 1,): the vectors of row i of `tracks` are first_vector[i] up to first_vector[i + 1]."""

    hop_samples: int
    """Vector j of a track is of the segment that starts at sample j * hop_samples."""

    key: str
    """The content key of the database."""

    def track_row_of(self, vector: Ints) -> Ints:
        """Return for each vector number the row of its track in `tracks`; -1 stays -1."""
        return np.searchsorted(self.first_vector, vector, side="right") - 1


class Encoder(Protocol):
    """What an encoder plug-in's `build(config)` returns: a torch module with these parts.

    A unit vector depends on its segment alone, never on the rest of the batch. `features` comes before the network, and
    training masks its output; `embed` is the network; calling the encoder does both.

    An encoder may also have `window_features(wave_BT, hop_samples)`, which returns the features (B, M, ...) of all
    whole segments of longer waves, one every hop, equal to `features` of each within rounding. It is then called where
    segments overlap, so that what they share is computed once. Waves and hop are at the rate of the corpus, so an
    encoder with another rate is not asked.

    An encoder may also have an objective of its own: `objective(feature_M, vector_MD, contrastive)`, which returns the
    loss of a training step as a scalar. It is given the features of a batch (M, ...), anchors and then their positives
    in the same order, the vectors (M, D) that `embed` made of them, and the loss of `train.loss` on these; without it,
    `contrastive` is the loss. With it, a batch is never cut into pieces, and training runs in one process.
    """

    rate_hz: int
    """Sample rate of its input."""

    segment_s: float
    """Length of a segment in s."""

    dim: int
    """Dimensions of its vectors."""

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return float32 patches (B, channels, bands, frames) of segments (B, T), T = segment_s x rate_hz."""
        ...

    def embed(self, feature_B: Tensor) -> Tensor:
        """Return float32 unit vectors (B, D) of the output of `features`."""
        ...


@dataclass(frozen=True)
class Found:
    """The answers to queries, best first, of an encoder with its index or of a matcher: where each query was found.

    Shape legend: Q queries, R ranked answers.
    """

    row_QR: Ints
    """Rows of the database's tracks, in the order in which they were given; -1 after the last answer."""

    start_QR: Ints
    """The sample of that track, at the corpus rate, at which the query starts; any number where there is no answer."""

    score_QR: Floats
    """Larger is better, comparable between queries of one length; NaN where there is no answer."""

    end_QR: Ints | None = None
    """The sample at which the query ends; None for searches that suppose it to end after its length."""

    speed_QR: Floats | None = None
    """How fast the query plays, as a multiple of the track's speed, NaN without an answer; None if not searched for."""


Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) by anything that takes over two seconds."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Show nothing."""
