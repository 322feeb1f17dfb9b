"""Validation: a small search task on held-out tracks, the same at every step of every run.

Shape legend: Q queries, N database segments, T samples, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from bench.audio.pcm import Corpus
from bench.config import TrainConfig
from bench.fingerprint import Embedder, segments
from bench.train.draws import draw_pairs
from bench.train.material import Material
from bench.train.pairs import cut_pairs, degrade_pairs
from bench.values import RATE_HZ, Floats, Ints

SEED = 7_130_417  # not a run's seed: every run is validated on the same queries
HOP_SAMPLES = RATE_HZ // 10
TOLERANCE_SAMPLES = RATE_HZ // 20
MAX_TRACKS = 64
MAX_SAMPLES = 30 * RATE_HZ


@dataclass(frozen=True)
class Validation:
    """Degraded queries (Q, T) with their true places, and the clean segments (N, T) that hold them."""

    query_QT: Floats
    track_Q: Ints
    start_Q: Ints
    database_NT: npt.NDArray[np.int16]
    track_N: Ints
    start_N: Ints


def validation_of(source: Material, config: TrainConfig, device: torch.device) -> Validation:
    """Return the validation task of held-out material, degraded as training is, by a seed of its own."""
    few = replace(source, music=_beginnings(source.music), tracks=source.tracks[:MAX_TRACKS])
    alone = replace(
        config,
        batch_pairs=config.val_queries,
        segments_per_track=1,
        neighbours_per_track=0,
        pairs_per_moment=1,
        offset_ms=50.0,
        mask_count=0,
    )
    draws = draw_pairs(few, alone, SEED, 0)
    _anchor, query_QT = degrade_pairs(cut_pairs(draws, few, device), few)
    waves, tracks, starts = [], [], []
    for track in few.tracks:
        wave_T = few.music.read(track, 0, few.music.num_samples(track))
        waves.append(segments(wave_T, source.segment_samples, HOP_SAMPLES))
        tracks.append(np.full(len(waves[-1]), track))
        starts.append(np.arange(len(waves[-1])) * HOP_SAMPLES)
    return Validation(
        query_QT.cpu().numpy(), draws.track_B, draws.positive_B,
        np.concatenate(waves), np.concatenate(tracks), np.concatenate(starts),
    )  # fmt: skip


def _beginnings(music: Corpus) -> Corpus:
    """Return the corpus with every track ended after MAX_SAMPLES: hours-long mixes would not fit into memory."""
    return replace(music, tracks=music.tracks.assign(num_samples=music.tracks["num_samples"].clip(upper=MAX_SAMPLES)))


def top1(task: Validation, embedder: Embedder) -> float:
    """Return the share of queries whose nearest segment is of the right track, within 50 ms."""
    similarity_QN = torch.from_numpy(embedder(task.query_QT)) @ torch.from_numpy(embedder(task.database_NT)).T
    best_Q = similarity_QN.argmax(dim=1).numpy()
    near = np.abs(task.start_N[best_Q] - task.start_Q) <= TOLERANCE_SAMPLES
    return float(np.mean((task.track_N[best_Q] == task.track_Q) & near))
