"""Fingerprints of both channels of a pair, computed by an encoder and cached.

Shape legend: T samples, N vectors, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bench.align.contract import Pair
from bench.errors import PluginError
from bench.fingerprint import Embedder, num_segments
from bench.values import RATE_HZ, Floats, Progress, no_progress

BLOCK = 1_024  # segments per progress update


@dataclass
class CachedPairEmbedder:
    """Computes the fingerprints of a pair, and caches those of the last pair at each hop."""

    embedder: Embedder
    progress: Progress = no_progress
    pair_key: str = ""
    by_hop_s: dict[float, tuple[Floats, Floats]] = field(default_factory=dict)

    @property
    def segment_s(self) -> float:
        """Return the length of a segment in s."""
        return float(self.embedder.encoder.segment_s)

    def __call__(self, pair: Pair, hop_s: float) -> tuple[Floats, Floats]:
        """Return unit vectors (N, D) of both channels, one per hop; none for a channel shorter than a segment.

        Memory: the vectors and one batch, 18 MB for an hour at 100 ms and 128 dimensions.
        Raises: PluginError if the encoder gives NaN.
        """
        if pair.key != self.pair_key:
            self.pair_key, self.by_hop_s = pair.key, {}
        if hop_s not in self.by_hop_s:
            self.by_hop_s[hop_s] = self._vectors(pair.wave0_T, hop_s), self._vectors(pair.wave1_T, hop_s)
        return self.by_hop_s[hop_s]

    def _vectors(self, wave_T: Floats, hop_s: float) -> Floats:
        size, hop = self.embedder.segment_samples, round(hop_s * RATE_HZ)
        if len(wave_T) < size:
            return np.zeros((0, self.embedder.encoder.dim), dtype=np.float32)
        count, blocks = num_segments(len(wave_T), size, hop), []
        for start in range(0, count, BLOCK):
            self.progress("fingerprints", start, count)
            end = (min(start + BLOCK, count) - 1) * hop + size
            blocks.append(self.embedder.windows(wave_T[None, start * hop : end], hop)[0])
        vectors_ND = np.concatenate(blocks)
        if not np.isfinite(vectors_ND).all():
            raise PluginError("the encoder gave NaN or infinite fingerprints; its weights are broken")
        return vectors_ND
