"""An encoder's fingerprints of both channels of a pair.

Shape legend: T samples, N vectors, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from bench import registry
from bench.align.contract import Pair
from bench.config import restored
from bench.errors import PluginError
from bench.fingerprint import Embedder, segments
from bench.results import RANDOM_PROJECTION, kept_run, kept_weights, load_settings
from bench.store import Store
from bench.train import checkpoint
from bench.values import RATE_HZ, Floats, Progress, no_progress

BLOCK = 1_024  # segments embedded between two words to the user


@dataclass
class Listening:
    """Makes the fingerprints of a pair, and remembers those of the last pair at every hop they were asked for."""

    embedder: Embedder
    progress: Progress = no_progress
    pair_key: str = ""
    by_hop_s: dict[float, tuple[Floats, Floats]] = field(default_factory=dict)

    @property
    def segment_s(self) -> float:
        """Return the length of a segment."""
        return float(self.embedder.encoder.segment_s)

    def __call__(self, pair: Pair, hop_s: float) -> tuple[Floats, Floats]:
        """Return unit vectors (N, D) of both channels, one every hop; none of a channel shorter than a segment.

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
        piece_NT = segments(wave_T, size, hop)
        found = []
        for start in range(0, len(piece_NT), BLOCK):
            self.progress("fingerprints", start, len(piece_NT))
            found.append(self.embedder(piece_NT[start : start + BLOCK]))
        vectors_ND = np.concatenate(found)
        if not np.isfinite(vectors_ND).all():
            raise PluginError("the encoder gave NaN or infinite fingerprints; its weights are broken")
        return vectors_ND


def ears_of(store: Store, run: str | None, model: str | None, progress: Progress) -> tuple[Listening, str]:
    """Return ears with the encoder of a kept run, and its name in words.

    `run` is the beginning of a run's key, None the latest; a store without runs gives the random projection, which
    needs no training. `model` is the encoder's file where it is a user's own.
    Raises: ConfigError if there is no such run or its weights are gone.
    """
    if run is None and not any((store.root / "runs").glob("*/result.json")):
        plugin = registry.load("encoder", RANDOM_PROJECTION)
        encoder, key, name = plugin.build(plugin.Config()), RANDOM_PROJECTION, "random projection, for want of a run"
    else:
        weights, kept = kept_weights(store, run), load_settings(store, run)
        plugin = registry.load("encoder", model or kept["encoder"])
        own = {path: value for path, value in kept.items() if path.partition(".")[0] != "index"}
        config = restored(kept["encoder"], plugin, own)
        encoder, key = plugin.build(config.model), weights.key
        checkpoint.load_weights(encoder, weights.path)
        name = f"{kept['encoder']} of the run {kept_run(store, run).name[:6]}"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Listening(Embedder(encoder.to(device).eval(), device, "fp32", key), progress), name
