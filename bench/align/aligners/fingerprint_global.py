"""One lag for the whole recording, from fingerprints: as in models #1 (hop 100 ms) and #4 (50 ms) of the report.

"The report" is the submission to BioDCASE 2025 in CITE.

Shape legend: N vectors, D dimensions, L lags, K keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.align.contract import Pair, PairEmbedder, TimeMap
from bench.align.lags import band, best_lag, build_constant_map, mean_scores, median_prominence, min_overlap, most_lag
from bench.settings import require
from bench.values import Progress

CITE = "Bhattacharjee, Granular fingerprinting for temporal alignment of ARU recordings, BioDCASE 2025"
LICENSE = "MIT"
SOURCE = "section 3.2, equation 2"
NEEDS_ENCODER = True


@dataclass(frozen=True)
class Config:
    """Settings."""

    hop_ms: float = 100.0
    """Time from one vector to the next, in ms, from 10 to 1,000; also the resolution of the lag."""

    def __post_init__(self) -> None:
        require(10 <= self.hop_ms <= 1_000, "fingerprint-global: hop_ms must be from 10 to 1000", self.hop_ms)


def presets() -> dict[str, Config]:
    """Return the settings of the report's models that use this lag."""
    return {"biodcase-1": Config(), "biodcase-4": Config(hop_ms=50.0)}


def build(config: Config) -> GlobalLag:
    """Return the aligner."""
    return GlobalLag(config)


@dataclass(frozen=True)
class GlobalLag:
    """Finds the lag with the highest mean similarity of both sequences."""

    config: Config

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """See `bench.align.contract.Aligner`."""
        assert embedder is not None
        hop_s = self.config.hop_ms / 1000
        vectors0_ND, vectors1_ND = embedder(pair, hop_s)
        if not len(vectors0_ND) or not len(vectors1_ND):
            return build_constant_map(pair, 0.0, 0.0)
        band_NL = band(vectors0_ND, vectors1_ND, most_lag(pair.max_lag_s, hop_s))
        score_L = mean_scores(band_NL, min_overlap(vectors0_ND, vectors1_ND))
        return build_constant_map(pair, float(best_lag(score_L)) * hop_s, float(median_prominence(score_L)))
