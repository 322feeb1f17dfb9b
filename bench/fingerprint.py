"""Computes fingerprints, unit vectors, of whole tracks (the database) and of queries.

Shape legend: B batch, T samples, Q queries, M segments of a query, N vectors, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import bench
from bench import registry
from bench.audio.pcm import Corpus
from bench.errors import PluginError
from bench.store import Store, create_array, digest, read_array
from bench.values import INT16_SCALE, RATE_HZ, Encoder, Fingerprints, Floats, Ints, Progress

Sample = TypeVar("Sample", np.int16, np.float32)

FORMAT = 1  # of the fingerprints in the store
BATCH = 256  # segments embedded at once
RANDOM_PROJECTION = "random-projection"
SHORTEST_QUERY = 0.9  # of a segment, so that a query of 0.96 s can test an encoder with segments of 1 s


@dataclass(frozen=True)
class Embedder:
    """An encoder ready to embed: on its device and in evaluation mode."""

    encoder: Encoder
    device: torch.device

    precision: str
    """The precision of its network: "fp32" or "bf16"."""

    key: str
    """The content key of its weights."""

    @property
    def segment_samples(self) -> int:
        """Return the length of a segment in samples at the corpus rate."""
        return round(self.encoder.segment_s * RATE_HZ)

    def __call__(self, wave_BT: npt.NDArray[np.int16] | Floats) -> Floats:
        """Return unit vectors (B, D) of segments (B, T) at the corpus rate, int16 or float."""
        vectors_BD = [torch.zeros(0, self.encoder.dim)]
        with torch.inference_mode():
            for start in range(0, len(wave_BT), BATCH):
                wave = self._to_device(wave_BT[start : start + BATCH])
                vectors_BD.append(embed(self.encoder, wave, self.precision).cpu())
        all_BD: Floats = torch.cat(vectors_BD).numpy()
        return all_BD

    def windows(self, wave_BT: npt.NDArray[np.int16] | Floats, hop_samples: int) -> Floats:
        """Return unit vectors (B, M, D) of all whole segments of each wave (B, T), one every hop.

        They equal those of the segments by themselves within rounding. An encoder that has `window_features` computes
        what overlapping segments share once. Memory: the vectors and BATCH segments, however long the waves are.
        """
        size = self.segment_samples
        count = num_segments(wave_BT.shape[1], size, hop_samples)
        vectors_BMD = np.empty((len(wave_BT), count, self.encoder.dim), dtype=np.float32)
        waves_at_once, segments_at_once = max(1, BATCH // max(1, count)), min(BATCH, count)
        with torch.inference_mode():
            for first_wave in range(0, len(wave_BT), waves_at_once):
                for first in range(0, count, BATCH):
                    rows = slice(first_wave, first_wave + waves_at_once), slice(first, first + segments_at_once)
                    end = (min(first + segments_at_once, count) - 1) * hop_samples + size
                    wave = self._to_device(wave_BT[rows[0], first * hop_samples : end])
                    vectors_BMD[rows] = embed_windows(self.encoder, wave, size, hop_samples, self.precision).cpu()
        return vectors_BMD

    def _to_device(self, wave_BT: npt.NDArray[np.int16] | Floats) -> Tensor:
        """Return a copy of the samples as float32 on the device: those of a corpus cannot be written to."""
        scale = INT16_SCALE if wave_BT.dtype == np.int16 else 1.0
        return torch.from_numpy(np.array(wave_BT)).to(self.device).float() * scale


def build_random_projection(device: torch.device) -> Embedder:
    """Return the untrained control encoder, at fp32. Its key is a digest of this version and its source."""
    plugin = registry.load("encoder", RANDOM_PROJECTION)
    key = digest(bench.__version__, registry.source_digest(plugin))
    return Embedder(plugin.build(plugin.Config()).to(device).eval(), device, "fp32", key)


def embed(encoder: Encoder, wave_BT: Tensor, precision: str) -> Tensor:
    """Return unit vectors (B, D) float32 of segments (B, T) at the corpus rate; the network runs at `precision`."""
    return _run_network(encoder, encoder.features(resample_to(wave_BT, encoder.rate_hz)), precision)


def shares_windows(encoder: Encoder) -> bool:
    """Return whether an encoder computes the features of overlapping segments together, as `Encoder` says."""
    return hasattr(encoder, "window_features") and encoder.rate_hz == RATE_HZ


def embed_windows(encoder: Encoder, wave_BT: Tensor, segment_samples: int, hop_samples: int, precision: str) -> Tensor:
    """Return unit vectors (B, M, D) of all whole segments of each wave, as `embed` does of each segment."""
    if shares_windows(encoder):
        feature_BM: Tensor = encoder.window_features(wave_BT, hop_samples)  # type: ignore[attr-defined]
        return _run_network(encoder, feature_BM.flatten(0, 1), precision).view(*feature_BM.shape[:2], -1)
    segment_BMT = wave_BT.unfold(1, segment_samples, hop_samples)
    vector_XD = embed(encoder, segment_BMT.reshape(-1, segment_samples), precision)
    return vector_XD.view(*segment_BMT.shape[:2], -1)


def _run_network(encoder: Encoder, feature_B: Tensor, precision: str) -> Tensor:
    with torch.autocast(feature_B.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        return encoder.embed(feature_B).float()


def resample_to(wave_BT: Tensor, rate_hz: int) -> Tensor:
    """Return the wave resampled from the corpus rate to an encoder's rate."""
    if rate_hz == RATE_HZ:
        return wave_BT
    from torchaudio.functional import resample

    resampled_BT: Tensor = resample(wave_BT, RATE_HZ, rate_hz)
    return resampled_BT


def num_segments(num_samples: int, segment_samples: int, hop_samples: int) -> int:
    """Return how many whole segments fit: floor((samples - segment) / hop) + 1, or 0 if the wave is too short."""
    return max(0, (num_samples - segment_samples) // hop_samples + 1)


def cut_segments(wave_T: npt.NDArray[Sample], segment_samples: int, hop_samples: int) -> npt.NDArray[Sample]:
    """Return a view (M, segment) of all whole segments of the last axis, one every hop."""
    return np.lib.stride_tricks.sliding_window_view(wave_T, segment_samples, axis=-1)[..., ::hop_samples, :]


def fingerprint_tracks(
    store: Store, embedder: Embedder, corpus: Corpus, tracks: Ints, hop_samples: int, progress: Progress
) -> Fingerprints:
    """Return the fingerprints of whole tracks, one vector every hop, from the store or computed now.

    Cost: one network pass per hop. A vector takes 4 D bytes; each track is written when it is done.
    """
    size = embedder.segment_samples
    key = digest(FORMAT, embedder.key, embedder.precision, corpus.digest, tracks.tolist(), hop_samples)
    counts = [num_segments(corpus.num_samples(t), size, hop_samples) for t in tracks]
    first_vector = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def build(folder: Path) -> None:
        shape = (int(first_vector[-1]), embedder.encoder.dim)
        vectors = create_array(folder / "vectors.npy", shape)
        for i, track in enumerate(tracks):
            progress("database", i, len(tracks))
            if counts[i]:
                wave_T = corpus.read(track, 0, corpus.num_samples(track))
                track_ND = embedder.windows(wave_T[None], hop_samples)[0]
                _check_finite(track_ND, f"track {corpus.tracks['id'].iloc[track]}")
                vectors[first_vector[i] : first_vector[i + 1]] = track_ND
        vectors.flush()
        progress("database", len(tracks), len(tracks))

    folder = store.fetch("fingerprints", key, build)
    return Fingerprints(read_array(folder / "vectors.npy"), tracks, first_vector, hop_samples, key)


def fingerprint_queries(embedder: Embedder, batches: Iterator[Floats], hop_samples: int) -> Floats:
    """Return the fingerprints (Q, M, D) of queries of one length, given as batches (B, T).

    A query shorter than a segment is extended to one segment by its own end, mirrored: every encoder is given the same
    audio. (Padding with silence would set the lowest level of the segment, by which some encoders scale it.)
    """
    batches_BMD = []
    for wave_BT in batches:
        missing = max(0, embedder.segment_samples - wave_BT.shape[1])
        if missing:
            wave_BT = np.pad(wave_BT, ((0, 0), (0, missing)), mode="reflect")
        batches_BMD.append(embedder.windows(wave_BT, hop_samples))
    vectors_QMD = np.concatenate(batches_BMD)
    _check_finite(vectors_QMD, "the queries")
    return vectors_QMD


def _check_finite(vectors: Floats, audio: str) -> None:
    if not np.isfinite(vectors).all():
        raise PluginError(f"the encoder gave NaN or infinite fingerprints for {audio}; its weights are broken")
