"""What one training step is made of, as numbers: which tracks, from where, degraded how. No audio is read here.

Every step draws from its own generator, so a step is a function of (seed, step): a run that was killed
goes on exactly as it would have, and every process of a training on many devices draws the same.

Shape legend: B pairs, K sources of a pair, J = K - 1 of them beside its own, G groups of segments from one track,
S segments of a group, N neighbours, R twins and W = N + R of its first, X places looked at, M = G x S moments,
C mask stripes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bench.settings import TrainConfig
from bench.train.hard_negatives import GRID_HOP_SAMPLES, NO_NEGATIVE
from bench.train.pool import TrainingPool
from bench.values import RATE_HZ, Floats, Ints

NO_START = -1  # before every track
MAX_DRAWS = 8  # of a place for an anchor, until one is not silent
MIXTURE_STREAM = (
    1  # the stream of its own that mixtures are drawn from: all else is drawn the same with and without them
)


@dataclass(frozen=True, eq=False)
class Draws:
    """Row i is pair i. Places are samples in a track.

    Shapes: all (B,) but stripe (B, C, 2, 2): for each mask and axis (bands, frames) the width and the
    place, both in [0, 1); the other sources (B, J); the gains (B, K) of a pair's own source, which is the first, and
    the others, 0 for one that is not there. `redrawn` counts the silent places that were drawn again.
    """

    track_B: Ints
    anchor_B: Ints
    positive_B: Ints
    other_track_BJ: Ints
    other_anchor_BJ: Ints
    other_positive_BJ: Ints
    anchor_gain_BK: Floats
    positive_gain_BK: Floats
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


def draw_pairs(pool: TrainingPool, config: TrainConfig, seed: int, step: int) -> Draws:
    """Return the pairs of step `step`, a function of (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    pairs = config.batch_pairs
    moments = -(-pairs // config.pairs_per_moment)
    groups = -(-moments // config.segments_per_track)
    track_G = draw.choice(pool.tracks, groups, replace=groups > len(pool.tracks))
    anchor_GS, redrawn = _draw_segment_starts(pool, track_G, config, draw)
    track_B = np.repeat(track_G, config.segments_per_track * config.pairs_per_moment)[:pairs]
    anchor_B = np.repeat(anchor_GS.reshape(-1), config.pairs_per_moment)[:pairs]
    noise_B = draw.choice(pool.noises, pairs)
    length_B = pool.noise.lengths[noise_B]
    weights = np.array([config.clean, config.noise_only, config.reverb_only, config.noise_and_reverb])
    kind_B = draw.choice(len(weights), pairs, p=weights / weights.sum())
    positive_B = anchor_B + _draw_offsets(config, draw, (pairs,))
    others = _draw_other_sources(pool, anchor_GS, config, np.random.default_rng([seed, step, MIXTURE_STREAM]))
    return Draws(
        track_B=track_B,
        anchor_B=anchor_B,
        positive_B=positive_B,
        other_track_BJ=others.track_BJ,
        other_anchor_BJ=others.anchor_BJ,
        other_positive_BJ=others.positive_BJ,
        anchor_gain_BK=others.anchor_gain_BK,
        positive_gain_BK=others.positive_gain_BK,
        noise_B=noise_B,
        noise_start_B=draw.integers(length_B),
        response_B=draw.integers(len(pool.spectra_RF), size=pairs),
        snr_db_B=draw.uniform(*config.snr_db, pairs).astype(np.float32),
        gain_db_B=draw.uniform(*config.gain_db, pairs).astype(np.float32),
        has_noise_B=np.isin(kind_B, (1, 3)),
        has_room_B=kind_B >= 2,
        stripe_BC22=draw.random((pairs, config.mask_count, 2, 2), dtype=np.float32),
        transform_seed_B=draw.integers(2**63, size=pairs),
        redrawn=redrawn + others.redrawn,
    )


@dataclass(frozen=True, eq=False)
class _OtherSources:
    """What mixes with each pair's own source, and all gains; see `Draws`."""

    track_BJ: Ints
    anchor_BJ: Ints
    positive_BJ: Ints
    anchor_gain_BK: Floats
    positive_gain_BK: Floats
    redrawn: int


def _draw_other_sources(
    pool: TrainingPool, anchor_GS: Ints, config: TrainConfig, draw: np.random.Generator
) -> _OtherSources:
    """Return the sources beside each pair's own, and the gains of all.

    Segments of one group hear the same other sources, as far along as they are in their own track: neighbours are one
    scene a moment later, so that nothing but the moment tells them apart.
    """
    few, many = config.mixture.sources
    groups, count = anchor_GS.shape
    pairs, repeats = config.batch_pairs, config.pairs_per_moment
    track_GSJ = np.repeat(draw.choice(pool.tracks, (groups, 1, many - 1)), count, axis=1)
    place_GSJ, redrawn = _draw_moving_starts(pool, track_GSJ, anchor_GS, config, draw)
    sources_M = np.repeat(draw.integers(few, many + 1, groups), count)
    track_BJ, anchor_BJ = (
        np.repeat(a.reshape(groups * count, many - 1), repeats, axis=0)[:pairs] for a in (track_GSJ, place_GSJ)
    )
    gain_MK = _draw_gains(sources_M, config, draw)
    sources_B = np.repeat(sources_M, repeats)[:pairs]
    return _OtherSources(
        track_BJ=track_BJ,
        anchor_BJ=anchor_BJ,
        positive_BJ=anchor_BJ + _draw_offsets(config, draw, anchor_BJ.shape),
        anchor_gain_BK=np.repeat(gain_MK, repeats, axis=0)[:pairs],
        positive_gain_BK=_mute_sources(_draw_gains(sources_B, config, draw), sources_B, draw),
        redrawn=redrawn,
    )


def _draw_moving_starts(
    pool: TrainingPool, track_GSJ: Ints, anchor_GS: Ints, config: TrainConfig, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return places of other sources that move with their groups, and how many silent ones were drawn again.

    A place that would lie outside of its track, or is silent, is drawn anew for itself.
    Shapes: as `track_GSJ`; X = G x J are the other sources of the groups' first segments.
    """
    groups, _, others = shape = track_GSJ.shape
    track = track_GSJ.reshape(-1)
    first, last = _anchor_bounds(pool, track, config)
    track_X, first_X, last_X = (a.reshape(shape)[:, 0].reshape(-1) for a in (track, first, last))
    begin_X, redrawn = _draw_audible(pool, track_X, first_X, last_X, draw)
    moved = (begin_X.reshape(groups, 1, others) + (anchor_GS - anchor_GS[:, :1])[:, :, None]).reshape(-1)
    inside = np.clip(moved, first, last)
    lost = np.flatnonzero((moved != inside) | ~pool.is_audible(track, inside))
    moved[lost], again = _draw_audible(pool, track[lost], first[lost], last[lost], draw)
    return moved.reshape(shape), redrawn + again


def _draw_gains(sources_B: Ints, config: TrainConfig, draw: np.random.Generator) -> Floats:
    """Return a gain for each source (B, K), 0 from the number of sources on. One source alone is left as it is."""
    many = config.mixture.sources[1]
    if many == 1:
        return np.ones((len(sources_B), 1), dtype=np.float32)
    gain_BK = draw.uniform(*config.mixture.gain, (len(sources_B), many)).astype(np.float32)
    return np.where(np.arange(many) < sources_B[:, None], gain_BK, np.float32(0))


def _mute_sources(gain_BK: Floats, sources_B: Ints, draw: np.random.Generator) -> Floats:
    """Return the gains with 0 to all but one of the sources muted: one at least is left."""
    drawn_BK = np.where(gain_BK > 0, draw.random(gain_BK.shape), np.inf)
    rank_BK = drawn_BK.argsort(axis=1).argsort(axis=1)
    return np.where(rank_BK < draw.integers(sources_B)[:, None], np.float32(0), gain_BK)


def _draw_segment_starts(
    pool: TrainingPool, track_G: Ints, config: TrainConfig, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return where the segments (G, S) of each track begin, and how many silent places were drawn again.

    The first lies anywhere, `neighbours_per_track` at multiples of `neighbour_ms` from it and
    `hard_negatives_per_track` where the track sounds most like it, as far as they fit into the track, the others
    anywhere.
    """
    groups, count = len(track_G), config.segments_per_track
    offset = _ms_to_samples(config.offset_ms)
    track_B = np.repeat(track_G, count)
    first_B, last_B = _anchor_bounds(pool, track_B, config)
    place_B, redrawn = _draw_audible(pool, track_B, first_B, last_B, draw)
    place_GS = place_B.reshape(groups, count)
    reach = config.neighbour_reach or count
    away = np.array([k for k in range(-reach, reach + 1) if k], dtype=np.int64) * _ms_to_samples(config.neighbour_ms)
    near_GX = place_GS[:, :1] + away
    last_G1 = last_B.reshape(groups, count)[:, :1]
    fits_GX = _fits(pool, track_G, near_GX, offset, last_G1)
    order_GX = np.argsort(np.where(fits_GX, draw.random(near_GX.shape), np.inf), axis=1)
    near_GN = np.take_along_axis(near_GX, order_GX[:, : config.neighbours_per_track], axis=1)
    wanted_GW = np.hstack(
        [near_GN, _find_negative_starts(pool, track_G, place_GS[:, 0], near_GN, config.hard_negatives_per_track)]
    )
    rest_GW = place_GS[:, 1 : 1 + wanted_GW.shape[1]]
    rest_GW[:] = np.where(_fits(pool, track_G, wanted_GW, offset, last_G1), wanted_GW, rest_GW)
    return place_GS, redrawn


def _find_negative_starts(pool: TrainingPool, track_G: Ints, first_G: Ints, near_GN: Ints, count: int) -> Ints:
    """Return the places (G, R) of each track that sound most like the first ones, NOWHERE for none.

    None is one of the neighbours: a place that is there twice is its own negative.
    """
    if not count:
        return np.empty((len(track_G), 0), dtype=np.int64)
    place_G = first_G // GRID_HOP_SAMPLES
    twin_GR = np.stack(
        [pool.hard_negatives.find(t, p) for t, p in zip(track_G.tolist(), place_G.tolist(), strict=True)]
    )
    start_GR = first_G[:, None] + (twin_GR - place_G[:, None]) * GRID_HOP_SAMPLES
    beside_GR = (np.abs(start_GR[:, :, None] - near_GN[:, None]) < GRID_HOP_SAMPLES).any(axis=2)
    return np.where((twin_GR == NO_NEGATIVE) | beside_GR, NO_START, start_GR)


def _fits(pool: TrainingPool, track_G: Ints, place_GX: Ints, first: int, last_G1: Ints) -> np.ndarray:
    """Return which places, in samples, are between the first and the last of their track and not silent."""
    inside_GX = np.clip(place_GX, 0, last_G1)
    track_GX = np.broadcast_to(track_G[:, None], place_GX.shape)
    heard_GX = pool.is_audible(track_GX.reshape(-1), inside_GX.reshape(-1)).reshape(place_GX.shape)
    fits_GX: np.ndarray = (place_GX >= first) & (place_GX <= last_G1) & heard_GX
    return fits_GX


def _anchor_bounds(pool: TrainingPool, track_B: Ints, config: TrainConfig) -> tuple[Ints, Ints]:
    """Return the first and the last place of an anchor in each track, with room for its positive where there is any."""
    offset = _ms_to_samples(config.offset_ms)
    last_B = np.maximum(pool.music.lengths[track_B] - pool.segment_samples - offset, 0)
    return np.minimum(offset, last_B), last_B


def _draw_audible(
    pool: TrainingPool, track_B: Ints, first_B: Ints, last_B: Ints, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return places (B,) between first and last, drawn again where it is silent, and how often that was."""
    place_B = draw.integers(first_B, last_B + 1)
    redrawn = 0
    for _ in range(MAX_DRAWS - 1):
        silent = np.flatnonzero(~pool.is_audible(track_B, place_B))
        if not len(silent):
            break
        place_B[silent] = draw.integers(first_B[silent], last_B[silent] + 1)
        redrawn += len(silent)
    return place_B, redrawn


def _draw_offsets(config: TrainConfig, draw: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """Return how many samples after their anchors positives begin, at most `offset_ms` either way.

    A distance is offset_ms x u^offset_power with u uniform in [0, 1]; both sides are equally likely.
    """
    most = _ms_to_samples(config.offset_ms)
    drawn = draw.integers(-most, most + 1, shape)
    distance = most * (np.abs(drawn) / max(1, most)) ** config.offset_power
    return np.rint(np.sign(drawn) * distance).astype(np.int64)


def _ms_to_samples(ms: float) -> int:
    return round(ms * RATE_HZ / 1000)
