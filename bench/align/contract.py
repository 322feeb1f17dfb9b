"""What an aligner promises, and the values it works with.

Channel 0 is the clock that everything is told by. A lag is positive where an event is later in channel 1:
time1 = time0 + lag.

Shape legend: T samples, N vectors, D dimensions, K knots or keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bench.errors import PluginError
from bench.values import RATE_HZ, Floats, Progress

Seconds = npt.NDArray[np.float64]
SPACING_S = 1.0  # of keypoints, in the challenge


@dataclass(frozen=True, eq=False)
class Pair:
    """One scene in two recordings whose clocks differ.

    Waves (T,) are float32 at RATE_HZ, perhaps memory maps, perhaps of different lengths. `key` names their content;
    `max_lag_s` is the largest lag that has to be looked for, which a set promises.
    """

    name: str
    wave0_T: Floats
    wave1_T: Floats
    key: str
    max_lag_s: float = 5.0

    @property
    def durations_s(self) -> tuple[float, float]:
        """Return the length of each channel."""
        return len(self.wave0_T) / RATE_HZ, len(self.wave1_T) / RATE_HZ

    @property
    def keypoints(self) -> Seconds:
        """Return every whole second of channel 0, shape (K,)."""
        return np.arange(0.0, self.durations_s[0], SPACING_S)


@dataclass(frozen=True, eq=False)
class TimeMap:
    """The time in channel 1 of each time in channel 0, in seconds.

    Knots (K,): `time0_K` rises, `time1_K` never falls; between them the map is straight, beyond them it keeps the lag
    of the last one. `confidence_K` is between 0 (a guess) and 1. Raises: PluginError if they are not so.
    """

    time0_K: Seconds
    time1_K: Seconds
    confidence_K: Seconds

    def __post_init__(self) -> None:
        parts = (self.time0_K, self.time1_K, self.confidence_K)
        if len({part.shape for part in parts}) != 1 or self.time0_K.ndim != 1 or not len(self.time0_K):
            raise PluginError(f"a time map needs knots, as many in each part; got {[part.shape for part in parts]}")
        if not all(np.isfinite(part).all() for part in parts):
            raise PluginError("a time map holds NaN or infinite times or confidences")
        if (np.diff(self.time0_K) <= 0).any() or (np.diff(self.time1_K) < 0).any():
            raise PluginError("a time map must rise; pass its times through `make_monotonic`")
        if self.confidence_K.min() < 0 or self.confidence_K.max() > 1:
            raise PluginError("confidences of a time map must be between 0 and 1")

    def at(self, time0: Seconds) -> Seconds:
        """Return the times in channel 1, of the shape of `time0`."""
        return time0 + np.interp(time0, self.time0_K, self.time1_K - self.time0_K)

    def confidence_at(self, time0: Seconds) -> Seconds:
        """Return the confidence at these times, straight between the knots."""
        return np.interp(time0, self.time0_K, self.confidence_K)


def make_monotonic(time1_K: Seconds) -> Seconds:
    """Return the nearest times (by squares) that never fall: what an aligner found, made a clock."""
    from scipy.optimize import isotonic_regression

    risen_K: Seconds = isotonic_regression(time1_K).x
    return risen_K


class PairEmbedder(Protocol):
    """Gives the fingerprints of a pair; asked for twice, they are made once."""

    def __call__(self, pair: Pair, hop_s: float) -> tuple[Floats, Floats]:
        """Return unit vectors (N, D) of both channels; vector i is of the segment that begins at i * hop_s."""
        ...

    @property
    def segment_s(self) -> float:
        """Return the length of a segment: vector i is of the moment i * hop_s + segment_s / 2, more or less."""
        ...


class Aligner(Protocol):
    """What an aligner plug-in's `build(config)` returns.

    The module says `NEEDS_ENCODER = True` if it needs an encoder; `ears` is None otherwise. One that learns from
    annotated pairs has `train(config, pairs, ears, seed, progress)`, where `pairs` are of (Pair, Keypoints), and
    `save(aligner, path)` and `load(path)`: it is trained on the split `train` of each set.
    """

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the map of a pair. Bad input has an honest answer: a low confidence, not an exception."""
        ...
