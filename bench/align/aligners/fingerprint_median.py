"""The median of the lags around all keypoints, from fingerprints: model #3 of the report.

"The report" is the submission to BioDCASE 2025 in CITE.

Shape legend: N vectors, D dimensions, L lags, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.align.contract import Pair, PairEmbedder, TimeMap
from bench.align.lags import build_constant_map, local_lags
from bench.settings import require
from bench.values import Progress

CITE = "Bhattacharjee, Granular fingerprinting for temporal alignment of ARU recordings, BioDCASE 2025"
LICENSE = "MIT"
SOURCE = "section 3.3 without the regression"
NEEDS_ENCODER = True


@dataclass(frozen=True)
class Config:
    """Settings."""

    hop_ms: float = 100.0
    """Time from one vector to the next, in ms, from 10 to 1,000."""

    window_s: float = 20.0
    """Length of the window around a keypoint, in s, above 0; the report's is 20."""

    def __post_init__(self) -> None:
        require(10 <= self.hop_ms <= 1_000, "fingerprint-median: hop_ms must be from 10 to 1000", self.hop_ms)
        require(self.window_s > 0, "fingerprint-median: window_s must be > 0; the report has 20", self.window_s)


def build(config: Config) -> MedianLag:
    """Return the aligner."""
    return MedianLag(config)


@dataclass(frozen=True)
class MedianLag:
    """Takes the median of the lags with the highest similarity around each keypoint."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert embedder is not None
        local = local_lags(pair, embedder, self.config.hop_ms / 1000, self.config.window_s)
        return build_constant_map(pair, float(np.median(local.lag_K)), local.agreement(np.median(local.lag_K)))
