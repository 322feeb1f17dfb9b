"""The random numbers of a training step: which tracks, where they start, how they are degraded. No audio is read here.

Each step has its own generator, so that its numbers are a function of (seed, step). A run that was killed therefore
resumes with the same numbers, and every process of a training on several devices draws the same ones.

A pair is of one moment: the start of a segment in its track. It mixes K sources: that segment, which comes first, and
J = K - 1 other sources.

Shape legend: B pairs, K sources of a pair, J other sources, G groups of segments of one track, S segments of a group,
M = G x S moments, N neighbours and R hard negatives of a group's first segment, W = N + R, X candidate starts,
C mask stripes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from bench.settings import TrainConfig
from bench.train.hard_negatives import NO_NEGATIVE
from bench.train.pool import TrainingPool
from bench.values import GRID_HOP_SAMPLES, RATE_HZ, Floats, Ints

NO_START = -1  # a start sample that fits into no track
MAX_DRAWS = 8  # of a start sample, until one is audible; the last one is taken as it is
MIXTURE_STREAM = 1  # seeds a separate generator for mixtures, so that all else is drawn alike with and without them


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of a step's pairs; row i is pair i."""

    track_B: Ints
    """The track of each segment."""

    anchor_B: Ints
    """The start sample of each anchor in its track."""

    positive_B: Ints
    """The start sample of each positive in its track."""

    other_track_BJ: Ints
    """The tracks of the other sources."""

    other_anchor_BJ: Ints
    """The start samples of the other sources in an anchor."""

    other_positive_BJ: Ints
    """The start samples of the other sources in a positive."""

    anchor_gain_BK: Floats
    """The gains of the sources in an anchor; 0 for a source that is absent."""

    positive_gain_BK: Floats
    """The gains of the sources in a positive; 0 for a source that is absent or muted."""

    noise_B: Ints
    """The noise track of each pair."""

    noise_start_B: Ints
    """The start sample in that noise, which is looped."""

    response_B: Ints
    """The row of an impulse response in the pool's `spectra_RF`."""

    snr_db_B: Floats
    """The signal-to-noise ratio of a positive with noise."""

    gain_db_B: Floats
    """The peak level of a positive, in dB relative to full scale."""

    has_noise_B: np.ndarray
    """Whether a positive gets noise."""

    has_room_B: np.ndarray
    """Whether a positive gets reverberation."""

    stripe_BC22: Floats
    """For each mask and axis (bands, frames) the width and the start of the hidden stripe, both in [0, 1)."""

    transform_seed_B: Ints
    """The seed of each positive's transforms."""

    redrawn: int
    """How many start samples were silent and drawn again."""

    def rows(self, some: slice) -> Draws:
        """Return the draws of some of the pairs."""
        selected = {f.name: getattr(self, f.name)[some] for f in fields(self) if f.name != "redrawn"}
        return Draws(**selected, redrawn=self.redrawn)


def draw_pairs(pool: TrainingPool, config: TrainConfig, seed: int, step: int) -> Draws:
    """Return the pairs of step `step`, a function of (seed, step) alone."""
    draw = np.random.default_rng([seed, step])
    pairs = config.batch_pairs
    # 1. moments: tracks, and the start samples of their segments
    moments = -(-pairs // config.pairs_per_moment)
    groups = -(-moments // config.segments_per_track)
    track_G = draw.choice(pool.tracks, groups, replace=groups > len(pool.tracks))
    anchor_GS, redrawn = _draw_segment_starts(pool, track_G, config, draw)
    track_B = np.repeat(track_G, config.segments_per_track * config.pairs_per_moment)[:pairs]
    anchor_B = np.repeat(anchor_GS.reshape(-1), config.pairs_per_moment)[:pairs]
    # 2. how the positive of each pair is degraded; the order of the draws fixes the numbers of a seed
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
    """The other sources of each pair, and the gains of all its sources; see `Draws`."""

    track_BJ: Ints
    anchor_BJ: Ints
    positive_BJ: Ints
    anchor_gain_BK: Floats
    positive_gain_BK: Floats
    redrawn: int


def _draw_other_sources(
    pool: TrainingPool, anchor_GS: Ints, config: TrainConfig, draw: np.random.Generator
) -> _OtherSources:
    """Return the other sources of each pair, and the gains of all its sources.

    The segments of a group share their other sources, which advance by as much as the segments do in their track. Two
    neighbours are thus the same scene a moment apart, and differ in nothing but the moment.
    """
    min_sources, max_sources = config.mixture.sources
    groups, count = anchor_GS.shape
    pairs, repeats = config.batch_pairs, config.pairs_per_moment
    track_GSJ = np.repeat(draw.choice(pool.tracks, (groups, 1, max_sources - 1)), count, axis=1)
    start_GSJ, redrawn = _draw_moving_starts(pool, track_GSJ, anchor_GS, config, draw)
    sources_M = np.repeat(draw.integers(min_sources, max_sources + 1, groups), count)
    track_BJ, anchor_BJ = (
        np.repeat(per_moment.reshape(groups * count, max_sources - 1), repeats, axis=0)[:pairs]
        for per_moment in (track_GSJ, start_GSJ)
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
    """Return start samples of other sources that advance with their groups, and how many silent ones were redrawn.

    A start that would be outside its track, or silent, is drawn again independently of its group.
    Shapes: as `track_GSJ`; X = G x J are the other sources of the groups' first segments.
    """
    groups, _, others = shape = track_GSJ.shape
    track = track_GSJ.reshape(-1)
    first, last = _anchor_bounds(pool, track, config)
    # 1. starts in each group's first segment
    track_X, first_X, last_X = (a.reshape(shape)[:, 0].reshape(-1) for a in (track, first, last))
    start_X, redrawn = _draw_audible(pool, track_X, first_X, last_X, draw)
    # 2. advanced with the other segments, and drawn again where that is impossible
    moved = (start_X.reshape(groups, 1, others) + (anchor_GS - anchor_GS[:, :1])[:, :, None]).reshape(-1)
    inside = np.clip(moved, first, last)
    invalid = np.flatnonzero((moved != inside) | ~pool.is_audible(track, inside))
    moved[invalid], again = _draw_audible(pool, track[invalid], first[invalid], last[invalid], draw)
    return moved.reshape(shape), redrawn + again


def _draw_gains(sources_B: Ints, config: TrainConfig, draw: np.random.Generator) -> Floats:
    """Return the gain of each source (B, K), 0 for absent ones; all are 1 if pairs never have more than one source."""
    max_sources = config.mixture.sources[1]
    if max_sources == 1:
        return np.ones((len(sources_B), 1), dtype=np.float32)
    gain_BK = draw.uniform(*config.mixture.gain, (len(sources_B), max_sources)).astype(np.float32)
    return np.where(np.arange(max_sources) < sources_B[:, None], gain_BK, np.float32(0))


def _mute_sources(gain_BK: Floats, sources_B: Ints, draw: np.random.Generator) -> Floats:
    """Return the gains with a random number of sources muted, from none to all but one."""
    order_BK = np.where(gain_BK > 0, draw.random(gain_BK.shape), np.inf)
    rank_BK = order_BK.argsort(axis=1).argsort(axis=1)
    return np.where(rank_BK < draw.integers(sources_B)[:, None], np.float32(0), gain_BK)


def _draw_segment_starts(
    pool: TrainingPool, track_G: Ints, config: TrainConfig, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return the start samples (G, S) of each track's segments, and how many silent ones were redrawn.

    The first segment is anywhere in the track. It is followed by `neighbours_per_track` at multiples of `neighbour_ms`
    from it, and by `hard_negatives_per_track` where the track sounds most like it. Those that do not fit into the
    track, and all others, are anywhere.
    """
    groups, count = len(track_G), config.segments_per_track
    offset = _ms_to_samples(config.offset_ms)
    track_B = np.repeat(track_G, count)
    first_B, last_B = _anchor_bounds(pool, track_B, config)
    # 1. segments anywhere; the next steps replace some of them
    start_B, redrawn = _draw_audible(pool, track_B, first_B, last_B, draw)
    start_GS = start_B.reshape(groups, count)
    # 2. neighbours of the first segment: candidates in random order, those that fit first
    reach = config.neighbour_reach or count
    away = np.array([k for k in range(-reach, reach + 1) if k], dtype=np.int64) * _ms_to_samples(config.neighbour_ms)
    near_GX = start_GS[:, :1] + away
    last_G1 = last_B.reshape(groups, count)[:, :1]
    fits_GX = _fits(pool, track_G, near_GX, offset, last_G1)
    order_GX = np.argsort(np.where(fits_GX, draw.random(near_GX.shape), np.inf), axis=1)
    near_GN = np.take_along_axis(near_GX, order_GX[:, : config.neighbours_per_track], axis=1)
    # 3. hard negatives; those of both kinds that fit replace segments after the first
    negative_GR = _find_negative_starts(pool, track_G, start_GS[:, 0], near_GN, config.hard_negatives_per_track)
    chosen_GW = np.hstack([near_GN, negative_GR])
    rest_GW = start_GS[:, 1 : 1 + chosen_GW.shape[1]]
    rest_GW[:] = np.where(_fits(pool, track_G, chosen_GW, offset, last_G1), chosen_GW, rest_GW)
    return start_GS, redrawn


def _find_negative_starts(pool: TrainingPool, track_G: Ints, first_G: Ints, near_GN: Ints, count: int) -> Ints:
    """Return the start samples (G, R) where each track sounds most like its first segment, NO_START for none.

    A hard negative less than a grid hop from a neighbour is left out: with both, a moment would be its own negative.
    """
    if not count:
        return np.empty((len(track_G), 0), dtype=np.int64)
    position_G = first_G // GRID_HOP_SAMPLES
    negative_GR = np.stack(
        [pool.hard_negatives.find(t, p) for t, p in zip(track_G.tolist(), position_G.tolist(), strict=True)]
    )
    start_GR = first_G[:, None] + (negative_GR - position_G[:, None]) * GRID_HOP_SAMPLES
    is_neighbour_GR = (np.abs(start_GR[:, :, None] - near_GN[:, None]) < GRID_HOP_SAMPLES).any(axis=2)
    return np.where((negative_GR == NO_NEGATIVE) | is_neighbour_GR, NO_START, start_GR)


def _fits(pool: TrainingPool, track_G: Ints, start_GX: Ints, first: int, last_G1: Ints) -> np.ndarray:
    """Return which start samples are from `first` to the last of their track, and audible."""
    inside_GX = np.clip(start_GX, 0, last_G1)
    track_GX = np.broadcast_to(track_G[:, None], start_GX.shape)
    audible_GX = pool.is_audible(track_GX.reshape(-1), inside_GX.reshape(-1)).reshape(start_GX.shape)
    fits_GX: np.ndarray = (start_GX >= first) & (start_GX <= last_G1) & audible_GX
    return fits_GX


def _anchor_bounds(pool: TrainingPool, track_B: Ints, config: TrainConfig) -> tuple[Ints, Ints]:
    """Return the first and the last start sample of an anchor in each track, with room for its positive if possible."""
    offset = _ms_to_samples(config.offset_ms)
    last_B = np.maximum(pool.music.lengths[track_B] - pool.segment_samples - offset, 0)
    return np.minimum(offset, last_B), last_B


def _draw_audible(
    pool: TrainingPool, track_B: Ints, first_B: Ints, last_B: Ints, draw: np.random.Generator
) -> tuple[Ints, int]:
    """Return start samples (B,) from first to last, redrawn where they are silent, and the number of redraws."""
    start_B = draw.integers(first_B, last_B + 1)
    redrawn = 0
    for _ in range(MAX_DRAWS - 1):
        silent = np.flatnonzero(~pool.is_audible(track_B, start_B))
        if not len(silent):
            break
        start_B[silent] = draw.integers(first_B[silent], last_B[silent] + 1)
        redrawn += len(silent)
    return start_B, redrawn


def _draw_offsets(config: TrainConfig, draw: np.random.Generator, shape: tuple[int, ...]) -> Ints:
    """Return how many samples positives start after their anchors, at most `offset_ms` either way.

    The distance is offset_ms x u^offset_power with u uniform in [0, 1]; both directions are equally likely.
    """
    max_offset = _ms_to_samples(config.offset_ms)
    drawn = draw.integers(-max_offset, max_offset + 1, shape)
    distance = max_offset * (np.abs(drawn) / max(1, max_offset)) ** config.offset_power
    return np.rint(np.sign(drawn) * distance).astype(np.int64)


def _ms_to_samples(ms: float) -> int:
    return round(ms * RATE_HZ / 1000)
