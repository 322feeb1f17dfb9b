"""The baseline that does nothing: the time in channel 1 is the time in channel 0. Any useful aligner must beat it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.align.contract import Pair, PairEmbedder, TimeMap
from bench.values import Progress

NEEDS_ENCODER = False
CITE = "BioDCASE challenge 2025, Task 1, baseline"
LICENSE = "MIT"
SOURCE = "own definition"


@dataclass(frozen=True)
class Config:
    """No settings."""


def build(config: Config) -> NoSync:
    """Return the aligner."""
    return NoSync()


@dataclass(frozen=True)
class NoSync:
    """Assumes that both clocks are the same."""

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return equal times with a confidence of 0, as they are a guess."""
        return build_identity_map(pair)


def build_identity_map(pair: Pair) -> TimeMap:
    """Return the map of lag 0 and confidence 0: the answer for a pair without usable sound."""
    time0_K = pair.keypoints if len(pair.keypoints) else np.zeros(1)
    return TimeMap(time0_K, time0_K.copy(), np.zeros(len(time0_K)))
