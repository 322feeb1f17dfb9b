"""A matcher in one file: it keeps the tracks, and correlates a query with each of them. Slow and nearly perfect.

Shape legend: B queries, T samples, A alignments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

from bench.errors import ConfigError
from bench.match.inverted_table import load_array
from bench.values import RATE_HZ, Floats, Found, Ints

CITE, LICENSE, SOURCE = "none", "MIT", "afp-bench's tests"
QUERY_SETTINGS = ("guard_s",)


@dataclass(frozen=True)
class Config:
    """Settings."""

    every: int = 1
    """Every how many samples are kept."""

    guard_s: float = 0.1
    """Alignments of a track that are nearer to each other than this are one."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"model.every must be >= 1, got {self.every}")


def presets() -> dict[str, Config]:
    return {"coarse": Config(every=4)}


def build(config: Config, tracks: Iterable[npt.NDArray[np.int16]], folder: Path) -> None:
    kept = [wave_T[:: config.every] for wave_T in tracks]
    np.save(folder / "first.npy", np.cumsum([0, *map(len, kept)]))
    np.save(folder / "samples.npy", np.concatenate([np.empty(0, np.int16), *kept]))


def load(config: Config, folder: Path) -> Correlating:
    first = load_array(folder / "first.npy")
    samples = load_array(folder / "samples.npy")
    return Correlating(config, [samples[a:b] for a, b in pairwise(first)])


@dataclass(frozen=True)
class Correlating:
    config: Config
    tracks: list[npt.NDArray[np.int16]]
    shortest_s: float = 0.1
    fixed_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(track_T.nbytes for track_T in self.tracks)

    def find(self, wave_BT: Floats, num_answers: int, without_B: Ints | None = None) -> Found:
        shape = (len(wave_BT), num_answers)
        row_BR, start_BR = np.full(shape, -1), np.zeros(shape, np.int64)
        score_BR = np.full(shape, np.nan, np.float32)
        for b, wave_T in enumerate(wave_BT):
            places = []
            for row, track_T in enumerate(self.tracks):
                if without_B is None or without_B[b] != row:
                    places += [(-score, row, start) for start, score in self._align(track_T, wave_T)]
            for r, (minus_score, row, start) in enumerate(sorted(places)[:num_answers]):
                row_BR[b, r], start_BR[b, r], score_BR[b, r] = row, start, -minus_score
        return Found(row_BR, start_BR, score_BR)

    def _align(self, track_T: npt.NDArray[np.int16], wave_T: Floats) -> list[tuple[int, float]]:
        """Return the three best alignments of a track: start and normalised correlation."""
        query_T = wave_T[:: self.config.every].astype(np.float64)
        if len(track_T) < len(query_T) or not query_T.any():
            return []
        track_T = track_T.astype(np.float64)
        total = np.cumsum(np.append(0, track_T**2))
        power_A = total[len(query_T) :] - total[: -len(query_T)]
        size_A = np.sqrt(np.maximum(power_A, 1.0) * (query_T**2).sum())
        score_A = fftconvolve(track_T, query_T[::-1], "valid") / size_A
        guard = round(self.config.guard_s * RATE_HZ / self.config.every)
        found = []
        for _ in range(3):
            best = int(np.argmax(score_A))
            if score_A[best] > 0:
                found.append((best * self.config.every, round(float(score_A[best]), 6)))
            score_A[max(0, best - guard) : best + guard + 1] = -np.inf
        return found
