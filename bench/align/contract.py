"""The contract of an aligner, which finds the time in one recording of each time in another, and its values.

Channel 0 is the reference clock. A lag is positive where an event is later in channel 1: time1 = time0 + lag.

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
KNOT_APART_S = 1e-7  # by which knots at one time of the inverse are kept apart
SPACING_S = 1.0  # from one keypoint to the next, in the BioDCASE challenge


@dataclass(frozen=True, eq=False)
class Pair:
    """One scene in two recordings whose clocks differ.

    Waves (T,) are float32 at RATE_HZ, possibly memory maps, possibly of different lengths. `key` identifies their
    content; `max_lag_s` is the largest lag to search for, which the set of the pair guarantees; `notes` say what was
    wrong with the files.
    """

    name: str
    wave0_T: Floats
    wave1_T: Floats
    key: str
    max_lag_s: float = 5.0
    notes: tuple[str, ...] = ()

    @property
    def durations_s(self) -> tuple[float, float]:
        """Return the length of each channel in s."""
        return len(self.wave0_T) / RATE_HZ, len(self.wave1_T) / RATE_HZ

    @property
    def keypoints(self) -> Seconds:
        """Return every whole second of channel 0, shape (K,)."""
        return np.arange(0.0, self.durations_s[0], SPACING_S)


@dataclass(frozen=True)
class Jump:
    """A change of the lag by `size_s` from one moment to the next, after `time0_s` of channel 0.

    A negative size: channel 1 lost that much, so that as many seconds of channel 0 have no partner. A positive one:
    channel 1 has as many seconds that channel 0 does not have.
    """

    time0_s: float
    size_s: float


@dataclass(frozen=True, eq=False)
class TimeMap:
    """The time in channel 1 of each time in channel 0, in seconds.

    Knots (K,): `time0_K` rises, `time1_K` never falls. The map is linear between knots and keeps the lag of the
    outermost knot beyond them. `confidence_K` is between 0 (a guess) and 1. Raises: PluginError otherwise.
    """

    time0_K: Seconds
    time1_K: Seconds
    confidence_K: Seconds

    jumps: tuple[Jump, ...] = ()
    """Where the lag jumps, in order of time; the knots hold the jumps already."""

    polarity: int = 1
    """-1 where channel 1 has the opposite polarity of channel 0."""

    def __post_init__(self) -> None:
        parts = (self.time0_K, self.time1_K, self.confidence_K)
        if len({part.shape for part in parts}) != 1 or self.time0_K.ndim != 1 or not len(self.time0_K):
            shapes = [part.shape for part in parts]
            raise PluginError(f"a time map needs knots, and equally many in each part; got {shapes}")
        if not all(np.isfinite(part).all() for part in parts):
            raise PluginError("a time map holds NaN or infinite times or confidences")
        if (np.diff(self.time0_K) <= 0).any() or (np.diff(self.time1_K) < 0).any():
            raise PluginError("a time map must rise; pass its times through `make_monotonic`")
        if self.confidence_K.min() < 0 or self.confidence_K.max() > 1:
            raise PluginError("confidences of a time map must be between 0 and 1")

    @classmethod
    def of_knots(
        cls,
        time0_K: Seconds,
        time1_K: Seconds,
        confidence_K: Seconds,
        jumps: tuple[Jump, ...] = (),
        polarity: int = 1,
    ) -> TimeMap:
        """Return the map of knots in order of time, of which some may be a rounding error too early."""
        time1_K = np.maximum.accumulate(time1_K)
        keep_K = np.concatenate([[True], np.diff(np.maximum.accumulate(time0_K)) > 0])
        return cls(time0_K[keep_K], time1_K[keep_K], np.clip(confidence_K[keep_K], 0, 1), jumps, polarity)

    def inverse(self) -> TimeMap:
        """Return the map from channel 1 to channel 0. Where channel 1 stands still, it jumps."""
        nudge_K = KNOT_APART_S * np.arange(len(self.time1_K))
        jumps = tuple(Jump(jump.time0_s + self.lag_before(jump), -jump.size_s) for jump in self.jumps)
        return TimeMap.of_knots(self.time1_K + nudge_K, self.time0_K, self.confidence_K, jumps, self.polarity)

    def lag_before(self, jump: Jump) -> float:
        """Return the lag just before a jump."""
        return float(self.at(np.array([jump.time0_s]))[0]) - jump.time0_s

    def at(self, time0: Seconds) -> Seconds:
        """Return the times in channel 1, of the shape of `time0`."""
        return time0 + np.interp(time0, self.time0_K, self.time1_K - self.time0_K)

    def confidence_at(self, time0: Seconds) -> Seconds:
        """Return the confidence at these times, interpolated linearly between the knots."""
        return np.interp(time0, self.time0_K, self.confidence_K)


def make_monotonic(time1_K: Seconds) -> Seconds:
    """Return the nearest times (least squares) that never fall, which turns what an aligner found into a clock."""
    from scipy.optimize import isotonic_regression

    monotonic_K: Seconds = isotonic_regression(time1_K).x
    return monotonic_K


class PairEmbedder(Protocol):
    """Computes the fingerprints of a pair with an encoder; the same call twice computes them once."""

    def __call__(self, pair: Pair, hop_s: float) -> tuple[Floats, Floats]:
        """Return unit vectors (N, D) of both channels; vector i is of the segment that starts at i * hop_s."""
        ...

    @property
    def segment_s(self) -> float:
        """Return the length of a segment in s: vector i describes roughly the moment i * hop_s + segment_s / 2."""
        ...


class Aligner(Protocol):
    """What an aligner plug-in's `build(config)` returns.

    The module defines `NEEDS_ENCODER`: True if the aligner needs an encoder, otherwise its `embedder` is None. An
    aligner that learns from annotated pairs also has `train(config, pairs, embedder, seed, progress)`, where `pairs`
    is a sequence of (Pair, Keypoints), `save(aligner, path)` and `load(path)`; it is trained on the split `train` of
    each set.
    """

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the time map of a pair. Unusable input gets a map of low confidence, not an exception."""
        ...
