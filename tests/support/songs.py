"""Made-up music for matchers: notes that change, with overtones and a little noise, no two moments alike."""

from __future__ import annotations

import numpy as np

RATE_HZ = 16_000


def draw_song(seed: int, seconds: float) -> np.ndarray:
    """Return int16 samples (T,): six voices, each with another note every quarter of a second or so."""
    draw = np.random.default_rng(seed)
    num_samples = round(seconds * RATE_HZ)
    song_T = draw.normal(0, 0.02, num_samples)
    for _voice in range(6):
        start = 0
        while start < num_samples:
            time_T = np.arange(min(int(draw.integers(2_000, 7_000)), num_samples - start)) / RATE_HZ
            note_hz = 110 * 2 ** (draw.integers(0, 48) / 12)
            for overtone in (1, 2, 3):
                phase = draw.uniform(0, 2 * np.pi)
                part_T = np.sin(2 * np.pi * overtone * note_hz * time_T + phase) * np.exp(-3 * time_T)
                song_T[start : start + len(time_T)] += part_T / overtone
            start += len(time_T)
    return np.asarray(song_T / np.abs(song_T).max() * 30_000).astype(np.int16)


def cut_query(song_T: np.ndarray, start: int, seconds: float) -> np.ndarray:
    """Return a query as matchers hear it: float32 with peak 1."""
    query_T = song_T[start : start + round(seconds * RATE_HZ)].astype(np.float32)
    return query_T / np.abs(query_T).max()


def add_noise(query_T: np.ndarray, snr_db: float, seed: int = 0) -> np.ndarray:
    """Return the query with white noise, peak 1."""
    noise_T = np.random.default_rng(seed).normal(0, 1, len(query_T))
    noise_T *= np.sqrt(np.mean(query_T.astype(np.float64) ** 2) / 10 ** (snr_db / 10))
    mixed_T = (query_T + noise_T).astype(np.float32)
    return mixed_T / np.abs(mixed_T).max()
