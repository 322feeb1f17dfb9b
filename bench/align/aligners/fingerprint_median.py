"""The median of the lags around all keypoints: the report's model #3.

Shape legend: N vectors, D dimensions, L lags, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.align.aligners.fingerprint_global import shifted
from bench.align.contract import Ears, Pair, Seconds, TimeMap
from bench.align.lags import band, best_lag, most_lag, window_scores
from bench.config import require
from bench.values import Progress

CITE = "Bhattacharjee, Granular fingerprinting for temporal alignment of ARU recordings, BioDCASE 2025"
LICENSE = "MIT"
SOURCE = "section 3.3 without the regression"
HEARS = True


@dataclass(frozen=True)
class Config:
    """Settings: the time between two vectors, and the window around a keypoint."""

    hop_ms: float = 100.0
    window_s: float = 20.0

    def __post_init__(self) -> None:
        require(10 <= self.hop_ms <= 1_000, "fingerprint-median: hop_ms must be from 10 to 1000", self.hop_ms)
        require(self.window_s > 0, "fingerprint-median: window_s must be > 0; the report has 20", self.window_s)


def build(config: Config) -> MedianLag:
    """Return the aligner."""
    return MedianLag(config)


@dataclass(frozen=True)
class MedianLag:
    """The median of the lags at which both sequences are most alike around each keypoint."""

    config: Config

    def align(self, pair: Pair, ears: Ears | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert ears is not None
        lag_K = local_lags_s(pair, ears, self.config.hop_ms / 1000, self.config.window_s)
        return shifted(pair, float(np.median(lag_K)), agreement(lag_K, self.config.hop_ms / 1000))


def local_lags_s(pair: Pair, ears: Ears, hop_s: float, window_s: float) -> Seconds:
    """Return the best lag (K,) around each keypoint; 0 where a channel is shorter than a segment."""
    vectors0_ND, vectors1_ND = ears(pair, hop_s)
    if not len(vectors0_ND) or not len(vectors1_ND):
        return np.zeros(len(pair.keypoints))
    band_NL = band(vectors0_ND, vectors1_ND, most_lag(pair.max_lag_s, hop_s))
    lag_K: Seconds = best_lag(window_scores(band_NL, hop_s, pair.keypoints, window_s)) * np.float64(hop_s)
    return lag_K


def agreement(lag_K: Seconds, hop_s: float) -> float:
    """Return the share of keypoints whose lag is within a hop of the median, above what is found by chance.

    The report gives no confidence. A median needs half of them.
    """
    share = float(np.mean(np.abs(lag_K - np.median(lag_K)) <= 1.01 * hop_s))
    return max(0.0, 2 * share - 1)
