"""Made-up noise: white, pink, brown, babble-like and hum, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# `Path` is only for the signature that all data sets share: there is nothing to read.
from pathlib import Path

import numpy as np

from bench.settings import require
from bench.store import digest
from bench.values import RATE_HZ, Floats, Source, Split, Track

KIND = "noise"
CITE = "made by afp-bench"
LICENSE = "CC0-1.0"
SOURCE = "made from the seed"

VERSION = "noise-synth/1"  # part of the fingerprint: any change of the sound must change it
CATEGORIES = ("white", "pink", "brown", "babble", "hum")
SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # of the amplitude: power falls by 0, 3 and 6 dB an octave
LOWEST_HZ = 20.0
NUM_TALKERS = 8
LEVEL = 0.1  # effective value; mixing sets the level anyway


@dataclass(frozen=True)
class Config:
    """How many recordings, and how long they are."""

    num_train: int = 4
    """Recordings of each category on the training side, at least 1."""

    num_test: int = 2
    """Recordings of each category on the test side, at least 1."""

    seconds: float = 30.0
    """Length of a recording in s, above 0."""

    seed: int = 0
    """Seed of every draw."""

    def __post_init__(self) -> None:
        require(min(self.num_train, self.num_test) >= 1, "num_train and num_test must be >= 1", self)
        require(self.seconds > 0, "seconds must be > 0", self.seconds)
        require(self.seed >= 0, "seed must be >= 0", self.seed)


@dataclass(frozen=True)
class NoiseSource:
    """Noise that is computed when it is loaded; a track's label is its category."""

    config: Config

    def tracks(self) -> Sequence[Track]:
        """Return the tracks of both sides, category by category."""
        sides: tuple[tuple[Split, int], ...] = (("train", self.config.num_train), ("test", self.config.num_test))
        return [
            Track(f"{side}-{category}-{number:03d}", "", side, LICENSE, category)
            for side, count in sides
            for category in CATEGORIES
            for number in range(count)
        ]

    def load(self, track: Track) -> Floats:
        """Return the noise of one track, shape (T,), peak at most 1."""
        number = int(track.id.rpartition("-")[2])
        place = CATEGORIES.index(track.label)
        rng = np.random.default_rng([self.config.seed, ("train", "test").index(track.split), place, number])
        wave_T = make(rng, track.label, round(self.config.seconds * RATE_HZ))
        wave_T *= min(LEVEL / np.sqrt(np.mean(wave_T**2)), 1 / np.abs(wave_T).max())
        return wave_T

    def digest(self) -> str:
        """Return the digest of the settings and of the version of the sound."""
        return digest(VERSION, self.config)


def build(config: Config, root: Path | None) -> Source:
    """Return made-up noise; `root` is not used."""
    return NoiseSource(config)


def make(rng: np.random.Generator, category: str, num_samples: int) -> Floats:
    """Return noise of one category, shape (num_samples,), at any level."""
    if category == "babble":
        return _babble(rng, num_samples)
    if category == "hum":
        return _hum(rng, num_samples)
    return draw_coloured_noise(rng, num_samples, SLOPES[category])


def draw_coloured_noise(rng: np.random.Generator, num_samples: int, slope: float) -> Floats:
    """Return noise whose amplitude falls with frequency to the power `slope`, shape (num_samples,)."""
    from scipy.fft import irfft, next_fast_len, rfftfreq

    length = next_fast_len(num_samples, real=True)
    hz = rfftfreq(length, 1 / RATE_HZ)
    spectrum = rng.standard_normal((2, len(hz)), np.float32)
    shape = np.maximum(hz, LOWEST_HZ) ** -slope * (hz >= LOWEST_HZ)
    wave_T: Floats = irfft((spectrum[0] + 1j * spectrum[1]) * shape, length)[:num_samples].astype(np.float32)
    return wave_T


def _babble(rng: np.random.Generator, num_samples: int) -> Floats:
    """Return a crowd: streams of speech-like noise, each swelling at the pace of syllables, with pauses."""
    wave_T = np.zeros(num_samples, np.float32)
    seconds_T = np.arange(num_samples, dtype=np.float32) / RATE_HZ
    knots_s = np.arange(0, num_samples / RATE_HZ + 0.2, 0.1)
    for _ in range(NUM_TALKERS):
        syllable_T = 0.5 + 0.5 * np.sin(2 * np.pi * np.float32(rng.uniform(3, 6)) * seconds_T + rng.uniform(0, 6))
        phrase = rng.uniform(0, 1, len(knots_s)) ** 2 * (rng.random(len(knots_s)) < 0.7)
        voice_T = _speech_band(rng, num_samples)
        wave_T += voice_T * syllable_T * np.interp(seconds_T, knots_s, phrase).astype(np.float32)
    return wave_T + np.float32(0.02 * wave_T.std()) * rng.standard_normal(num_samples, np.float32)


def _speech_band(rng: np.random.Generator, num_samples: int) -> Floats:
    from scipy.signal import butter, sosfilt

    low_hz = rng.uniform(120, 300)
    filters = butter(1, (low_hz, rng.uniform(3, 8) * low_hz), "bandpass", fs=RATE_HZ, output="sos")
    wave_T: Floats = sosfilt(filters, rng.standard_normal(num_samples, np.float32)).astype(np.float32)
    return wave_T


def _hum(rng: np.random.Generator, num_samples: int) -> Floats:
    """Return mains or motor hum: a drifting tone with harmonics over pink noise."""
    knots = np.arange(num_samples // RATE_HZ + 2)
    drift = 1 + 0.01 * np.cumsum(rng.standard_normal(len(knots))).clip(-3, 3)
    drift_T = np.interp(np.arange(num_samples) / RATE_HZ, knots, drift)
    turns_T = (2 * np.pi / RATE_HZ) * np.cumsum(rng.choice([50, 60, 75, 100]) * drift_T)
    wave_T = np.zeros(num_samples)
    for harmonic in range(1, 13):
        wave_T += rng.uniform(0.2, 1) / harmonic * np.sin(harmonic * turns_T + rng.uniform(0, 6))
    floor_T = draw_coloured_noise(rng, num_samples, SLOPES["pink"])
    wave_T += rng.uniform(0.1, 0.4) * floor_T / floor_T.std()
    return wave_T.astype(np.float32)
