"""Does nothing: the time in channel 1 is the time in channel 0. Every aligner has to be better than this one."""

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
    """Takes both clocks for one."""

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return equal times, with no confidence: it is a guess."""
        return build_identity_map(pair)


def build_identity_map(pair: Pair) -> TimeMap:
    """Return the map without any lag and without confidence: what is left to say of a pair that tells nothing."""
    time0_K = pair.keypoints if len(pair.keypoints) else np.zeros(1)
    return TimeMap(time0_K, time0_K.copy(), np.zeros(len(time0_K)))
