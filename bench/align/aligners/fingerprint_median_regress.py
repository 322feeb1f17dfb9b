"""The median lag plus a straight line through the residuals, from fingerprints: model #2 of the report.

"The report" is the submission to BioDCASE 2025 in CITE.

Shape legend: K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap, make_monotonic
from bench.align.lags import local_lags
from bench.settings import require
from bench.values import Progress

CITE = "Bhattacharjee, Granular fingerprinting for temporal alignment of ARU recordings, BioDCASE 2025"
LICENSE = "MIT"
SOURCE = "section 3.3, equation 3; Huber regression with scikit-learn's defaults, as the report gives no settings"
NEEDS_ENCODER = True


@dataclass(frozen=True)
class Config:
    """Settings of the local lags, and of the line through them (scikit-learn's HuberRegressor)."""

    hop_ms: float = 100.0
    """Time from one vector to the next, in ms, from 10 to 1,000."""

    window_s: float = 20.0
    """Length of the window around a keypoint, in s, above 0; the report's is 20."""

    max_slope: float = 0.05
    """A line steeper than this, in s/s, is ignored; from 0 to below 1.

    The report's 0.05 allows 5.75 s of drift in 115 s, more than its recordings can have; clocks drift by 1e-5 to 1e-4.
    """

    epsilon: float = 1.35
    """Residual, in deviations, beyond which a lag counts as an outlier, at least 1; 1.35 is usual."""

    alpha: float = 1e-4
    """Weight of the penalty on the slope, at least 0 (no penalty)."""

    max_iter: int = 100
    """Largest number of iterations, at least 1."""

    def __post_init__(self) -> None:
        name = "fingerprint-median-regress"
        require(10 <= self.hop_ms <= 1_000, f"{name}: hop_ms must be from 10 to 1000", self.hop_ms)
        require(self.window_s > 0, f"{name}: window_s must be > 0; the report has 20", self.window_s)
        require(0 <= self.max_slope < 1, f"{name}: max_slope must be from 0 to below 1", self.max_slope)
        require(self.epsilon >= 1, f"{name}: epsilon must be >= 1; 1.35 is usual", self.epsilon)
        require(self.alpha >= 0, f"{name}: alpha must be >= 0", self.alpha)
        require(self.max_iter >= 1, f"{name}: max_iter must be >= 1", self.max_iter)


def presets() -> dict[str, Config]:
    """Return the report's settings, and a limit of the slope that real clocks keep."""
    return {"biodcase-2": Config(), "clocks": Config(max_slope=0.005)}


def build(config: Config) -> MedianLine:
    """Return the aligner."""
    return MedianLine(config)


@dataclass(frozen=True)
class MedianLine:
    """Takes the median lag and adds the drift around it."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert embedder is not None
        hop_s = self.config.hop_ms / 1000
        time0_K = pair.keypoints
        local = local_lags(pair, embedder, hop_s, self.config.window_s)
        median_s = float(np.median(local.lag_K))
        slope, intercept_s = huber_line(time0_K, local.lag_K - median_s, self.config)
        drift_K = slope * time0_K + intercept_s if abs(slope) <= self.config.max_slope else np.zeros(len(time0_K))
        time1_K = np.clip(time0_K + median_s + drift_K, 0.0, pair.durations_s[1])
        return TimeMap(time0_K, make_monotonic(time1_K), np.full(len(time0_K), local.agreement(median_s + drift_K)))


def huber_line(time_K: Seconds, residual_K: Seconds, config: Config) -> tuple[float, float]:
    """Return slope (s/s) and intercept (s) of a line robust to outliers; a flat one for fewer than two points."""
    from sklearn.linear_model import HuberRegressor  # slow to import

    if len(time_K) < 2 or not residual_K.any():
        return 0.0, 0.0
    line = HuberRegressor(epsilon=config.epsilon, alpha=config.alpha, max_iter=config.max_iter)
    try:
        line.fit(time_K[:, None], residual_K)
    except ValueError:  # it did not converge; the report falls back to no line too
        return 0.0, 0.0
    return float(line.coef_[0]), float(line.intercept_)
