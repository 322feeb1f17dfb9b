"""Validation: a small search task on held-out tracks, the same for every run and at every step.

Shape legend: Q queries, N database segments, T samples, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from bench.audio.pcm import Corpus
from bench.data import TrainingSet
from bench.fingerprint import Embedder, num_segments
from bench.settings import TrainConfig
from bench.train.draws import draw_pairs
from bench.train.pairs import cut_pairs, degrade_pairs
from bench.train.pool import load_pool
from bench.values import GRID_HOP_SAMPLES, RATE_HZ, Floats, Ints

SEED = 7_130_417  # not a run's seed: every run is validated on the same queries
# Independent of a run's training settings, so that the curves of runs can be compared.
TASK = TrainConfig(
    offset_ms=50.0, snr_db=(0.0, 20.0), clean=1.0, noise_only=1.0, reverb_only=1.0, noise_and_reverb=1.0, mask_count=0
)
TOLERANCE_SAMPLES = RATE_HZ // 20  # 50 ms
MAX_TRACKS = 64
MAX_SAMPLES = 30 * RATE_HZ  # of a track


@dataclass(frozen=True)
class Validation:
    """Degraded queries (Q, T), and clean tracks whose segments (N) are searched; both with tracks and start samples."""

    query_QT: Floats
    track_Q: Ints
    start_Q: Ints
    waves: list[npt.NDArray[np.int16]]
    track_N: Ints
    start_N: Ints


def build_validation(training_set: TrainingSet, tracks: Ints, segment_samples: int, num_queries: int) -> Validation:
    """Return the validation task of held-out tracks, with queries degraded as in training, always by the same seed."""
    host = torch.device("cpu")
    short, config = _truncate_tracks(training_set.music), replace(TASK, batch_pairs=num_queries)
    pool = load_pool(replace(training_set, music=short), tracks[:MAX_TRACKS], config, segment_samples, host)
    draws = draw_pairs(pool, config, SEED, 0)
    _anchor, query_QT = degrade_pairs(cut_pairs(draws, pool, host), pool)
    waves, tracks_N, starts = [], [], []
    for track in pool.tracks:
        wave_T = short.read(track, 0, short.num_samples(track))
        waves.append(wave_T)
        count = num_segments(len(wave_T), segment_samples, GRID_HOP_SAMPLES)
        tracks_N.append(np.full(count, track))
        starts.append(np.arange(count) * GRID_HOP_SAMPLES)
    return Validation(
        query_QT.numpy(), draws.track_B, draws.positive_B, waves, np.concatenate(tracks_N), np.concatenate(starts)
    )


def _truncate_tracks(music: Corpus) -> Corpus:
    """Return the corpus with every track cut to MAX_SAMPLES, as hours-long mixes would not fit into memory."""
    return replace(music, tracks=music.tracks.assign(num_samples=music.tracks["num_samples"].clip(upper=MAX_SAMPLES)))


def top1(task: Validation, embedder: Embedder) -> float:
    """Return the share of queries whose most similar segment is of the right track and within 50 ms."""
    database_ND = np.concatenate([embedder.windows(wave_T[None], GRID_HOP_SAMPLES)[0] for wave_T in task.waves])
    similarity_QN = torch.from_numpy(embedder(task.query_QT)) @ torch.from_numpy(database_ND).T
    best_Q = similarity_QN.argmax(dim=1).numpy()
    near = np.abs(task.start_N[best_Q] - task.start_Q) <= TOLERANCE_SAMPLES
    return float(np.mean((task.track_N[best_Q] == task.track_Q) & near))
