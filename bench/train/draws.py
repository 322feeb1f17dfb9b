"""What one training step is made of, as numbers: which tracks, from where, degraded how. No audio is read.

Every step draws from its own generator, so a step is a function of (seed, step): a run that was killed
goes on exactly as it would have, and every process of a training on many devices draws the same.

Shape legend: B pairs, G groups of segments from one track, S segments of a group, C mask stripes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bench.config import TrainConfig
from bench.train.material import Material
from bench.values import RATE_HZ, Floats, Ints

MAX_DRAWS = 8  # of a place for an anchor, until one is not silent


@dataclass(frozen=True, eq=False)
class Draws:
    """Row i is pair i. Places are samples in a track.

    Shapes: all (B,) but stripe (B, C, 2, 2): for each mask and axis (bands, frames) the width and the
    place, both in [0, 1). `redrawn` counts the silent places that were drawn again.
    """

    track_B: Ints
    anchor_B: Ints
    positive_B: Ints
    noise_B: Ints
    noise_start_B: Ints
    response_B: Ints
    snr_db_B: Floats
    gain_db_B: Floats
    has_noise_B: np.ndarray
    has_room_B: np.ndarray
    stripe_BC22: Floats
    transform_seed_B: Ints
    redrawn: int

    def rows(self, some: slice) -> Draws:
        """Return the draws of some of the pairs."""
        cut = {f.name: getattr(self, f.name)[some] for f in fields(self) if f.name != "redrawn"}
        return Draws(**cut, redrawn=self.redrawn)


def draw_pairs(source: Material, config: TrainConfig, seed: int, step: int) -> Draws:
    """Return the pairs of step `step`, a function of (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    pairs = config.batch_pairs
    moments = -(-pairs // config.pairs_per_moment)
    groups = -(-moments // config.segments_per_track)
    track_G = draw.choice(source.tracks, groups, replace=groups > len(source.tracks))
    anchor_GS, redrawn = _places(source, track_G, config, draw)
    track_B = np.repeat(track_G, config.segments_per_track * config.pairs_per_moment)[:pairs]
    anchor_B = np.repeat(anchor_GS.reshape(-1), config.pairs_per_moment)[:pairs]
    offset = _samples(config.offset_ms)
    noise_B = draw.choice(source.noises, pairs)
    length_B = source.noise.lengths[noise_B]
    weights = np.array([config.clean, config.noise_only, config.reverb_only, config.noise_and_reverb])
    kind_B = draw.choice(len(weights), pairs, p=weights / weights.sum())
    return Draws(
        track_B=track_B,
        anchor_B=anchor_B,
        positive_B=anchor_B + draw.integers(-offset, offset + 1, pairs),
        noise_B=noise_B,
        noise_start_B=draw.integers(length_B),
        response_B=draw.integers(len(source.spectra_RF), size=pairs),
        snr_db_B=draw.uniform(*config.snr_db, pairs).astype(np.float32),
        gain_db_B=draw.uniform(*config.gain_db, pairs).astype(np.float32),
        has_noise_B=np.isin(kind_B, (1, 3)),
        has_room_B=kind_B >= 2,
        stripe_BC22=draw.random((pairs, config.mask_count, 2, 2), dtype=np.float32),
        transform_seed_B=draw.integers(2**63, size=pairs),
        redrawn=redrawn,
    )


def _places(source: Material, track_G: Ints, config: TrainConfig, draw: np.random.Generator) -> tuple[Ints, int]:
    """Return where the segments (G, S) of each track begin, and how many silent places were drawn again.

    The first lies anywhere, `neighbours_per_track` at multiples of `neighbour_ms` from it as far as they
    fit into the track, the others anywhere.
    """
    groups, count = len(track_G), config.segments_per_track
    offset = _samples(config.offset_ms)
    track_B = np.repeat(track_G, count)
    last_B = np.maximum(source.music.lengths[track_B] - source.segment_samples - offset, 0)
    first_B = np.minimum(offset, last_B)
    place_B, redrawn = _audible(source, track_B, first_B, last_B, draw)
    place_GS = place_B.reshape(groups, count)
    away = np.array([k for k in range(-count, count + 1) if k], dtype=np.int64) * _samples(config.neighbour_ms)
    near_GK = place_GS[:, :1] + away
    last_G1 = last_B.reshape(groups, count)[:, :1]
    inside_GK = np.clip(near_GK, 0, last_G1)
    heard_GK = source.audible(np.repeat(track_G, len(away)), inside_GK.reshape(-1)).reshape(inside_GK.shape)
    fits_GK = (near_GK >= offset) & (near_GK <= last_G1) & heard_GK
    order_GK = np.argsort(np.where(fits_GK, draw.random(near_GK.shape), np.inf), axis=1)
    for n in range(config.neighbours_per_track):
        chosen_G1 = order_GK[:, n : n + 1]
        near_G, fits_G = (np.take_along_axis(a, chosen_G1, axis=1)[:, 0] for a in (near_GK, fits_GK))
        place_GS[:, 1 + n] = np.where(fits_G, near_G, place_GS[:, 1 + n])
    return place_GS, redrawn


def _audible(
    source: Material, track_B: Ints, first_B: Ints, last_B: Ints, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return places (B,) between first and last, drawn again where it is silent, and how often that was."""
    place_B = draw.integers(first_B, last_B + 1)
    redrawn = 0
    for _ in range(MAX_DRAWS - 1):
        silent = np.flatnonzero(~source.audible(track_B, place_B))
        if not len(silent):
            break
        place_B[silent] = draw.integers(first_B[silent], last_B[silent] + 1)
        redrawn += len(silent)
    return place_B, redrawn


def _samples(ms: float) -> int:
    return round(ms * RATE_HZ / 1000)
