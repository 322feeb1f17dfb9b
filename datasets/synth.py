"""Made-up music: polyphonic, never repeating, the same for the same seed. For the demo and the tests.

Every track has its own tempo, key, scale and timbres. Chords, bass, a plucked voice and a melody are
drawn note by note, drums hit by hit, so no second of a track is like another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# `Path` is only for the signature that all data sets share: there is nothing to read.
from pathlib import Path

import numpy as np

from bench.settings import require
from bench.store import digest
from bench.values import RATE_HZ, Floats, Ints, Source, Split, Track

KIND = "music"
CITE = "made by afp-bench"
LICENSE = "CC0-1.0"
SOURCE = "made from the seed"

VERSION = "synth/1"  # part of the fingerprint: any change of the sound must change it
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 3, 5, 7, 9, 10), (0, 2, 4, 6, 7, 9, 11))
TABLE_SAMPLES = 2048
ATTACK_S, RELEASE_S = 0.008, 0.02  # short ramps, so that notes do not click

HIT_DECAYS_S = {"kick": (0.05, 0.1), "snare": (0.03, 0.08), "hat": (0.01, 0.04)}


@dataclass(frozen=True)
class Config:
    """How many tracks, and how long they are."""

    num_train: int = 64
    """Tracks of the training side, at least 0; one side at least has a track."""

    num_val: int = 8
    """Tracks of the validation side, at least 0."""

    num_test: int = 32
    """Tracks of the test side, at least 0."""

    seconds: float = 30.0
    """Length of a track in s, above 0."""

    seed: int = 0
    """Seed of every draw."""

    def __post_init__(self) -> None:
        counts = (self.num_train, self.num_val, self.num_test)
        require(min(counts) >= 0 < sum(counts), "num_train, num_val and num_test must be >= 0, not all 0", counts)
        require(self.seconds > 0, "seconds must be > 0", self.seconds)
        require(self.seed >= 0, "seed must be >= 0", self.seed)


@dataclass(frozen=True)
class SynthSource:
    """Tracks that are computed when they are loaded."""

    config: Config

    def tracks(self) -> Sequence[Track]:
        """Return training, validation and test tracks, in this order."""
        sides: tuple[tuple[Split, int], ...] = (
            ("train", self.config.num_train),
            ("val", self.config.num_val),
            ("test", self.config.num_test),
        )
        return [Track(f"{side}-{number:05d}", "", side, LICENSE) for side, count in sides for number in range(count)]

    def load(self, track: Track) -> Floats:
        """Return the music of one track, shape (T,), peak 0.7."""
        side = ("train", "val", "test").index(track.split)
        rng = np.random.default_rng([self.config.seed, side, int(track.id.rpartition("-")[2])])
        return compose(rng, round(self.config.seconds * RATE_HZ))

    def digest(self) -> str:
        """Return the digest of the settings and of the version of the sound."""
        return digest(VERSION, self.config)


def build(config: Config, root: Path | None) -> Source:
    """Return made-up music; `root` is not used."""
    return SynthSource(config)


@dataclass(frozen=True)
class Song:
    """What all voices of a track share: its length, beats (in samples), scale and chord of every beat."""

    num_samples: int
    beats: Ints
    key: int
    scale: tuple[int, ...]
    degrees: Ints

    def pitch(self, steps: Ints) -> Floats:
        """Return the MIDI pitch of scale steps above the key."""
        octave, step = np.divmod(steps, len(self.scale))
        pitch: Floats = (self.key + 12 * octave + np.asarray(self.scale, np.int64)[step]).astype(np.float32)
        return pitch


@dataclass(frozen=True)
class Notes:
    """The notes of one voice, one after another: start (in samples), MIDI pitch, loudness (0: a rest)."""

    start: Ints
    pitch: Floats
    loudness: Floats


def compose(rng: np.random.Generator, num_samples: int) -> Floats:
    """Return one piece of music, shape (num_samples,), peak 0.7."""
    song = _song(rng, num_samples)
    wave_T = _drums(rng, song) * np.float32(rng.uniform(0.3, 0.8))
    for voice in range(3):
        wave_T += 0.22 * _voice(rng, song, _chord(rng, song, voice), decay_s=rng.uniform(1.0, 4.0), brightness=0.5)
    wave_T += 0.5 * _voice(rng, song, _bass(rng, song), decay_s=rng.uniform(0.3, 0.9), brightness=0.6)
    wave_T += 0.3 * _voice(rng, song, _pluck(rng, song), decay_s=rng.uniform(0.1, 0.3), brightness=0.8)
    wave_T += 0.45 * _voice(rng, song, _melody(rng, song), decay_s=rng.uniform(0.4, 1.5), brightness=0.7)
    wave_T *= 0.7 / np.abs(wave_T).max()
    return wave_T


def _song(rng: np.random.Generator, num_samples: int) -> Song:
    beat_s = 60 / rng.uniform(70, 160)
    count = int(num_samples / RATE_HZ / beat_s * 1.2) + 4
    drift = np.exp(np.cumsum(rng.normal(0, 0.01, count)).clip(-0.1, 0.1))
    beats = np.concatenate([[0], np.cumsum(beat_s * RATE_HZ * drift)]).astype(np.int64)
    beats = beats[beats < num_samples]
    moves = rng.integers(1, 7, len(beats)) * (rng.random(len(beats)) < 0.5)  # a new chord on every second beat or so
    key, scale = int(rng.integers(36, 48)), SCALES[rng.integers(len(SCALES))]
    return Song(num_samples, beats, key, scale, np.cumsum(moves) % 7)


def _chord(rng: np.random.Generator, song: Song, voice: int) -> Notes:
    change = np.flatnonzero(np.diff(song.degrees, prepend=-1))
    steps = song.degrees[change] + 2 * voice + 7 * rng.integers(1, 3, len(change))
    return Notes(song.beats[change], song.pitch(steps), _loudness(rng, len(change), 0.5))


def _bass(rng: np.random.Generator, song: Song) -> Notes:
    start, beat = _divide_beats(rng, song, (1, 1, 2))
    steps = song.degrees[beat] + rng.choice([0, 0, 0, 4, 7], len(beat))
    return Notes(start, song.pitch(steps), _loudness(rng, len(start), 0.7) * (rng.random(len(start)) < 0.85))


def _pluck(rng: np.random.Generator, song: Song) -> Notes:
    start, beat = _divide_beats(rng, song, (2, 2, 3, 4))
    steps = song.degrees[beat] + rng.choice([0, 2, 4, 6], len(beat)) + 7 * rng.integers(2, 4, len(beat))
    return Notes(start, song.pitch(steps), _loudness(rng, len(start), 0.3) * (rng.random(len(start)) < 0.6))


def _melody(rng: np.random.Generator, song: Song) -> Notes:
    start, beat = _divide_beats(rng, song, (1, 1, 2, 2, 3))
    walk = np.cumsum(rng.choice([-3, -2, -1, -1, 1, 1, 2, 3], len(beat)))
    steps = 17 + np.abs((walk + 12) % 24 - 12)  # folded, so that it stays within two octaves
    return Notes(start, song.pitch(steps), _loudness(rng, len(start), 0.6) * (rng.random(len(start)) < 0.8))


def _divide_beats(rng: np.random.Generator, song: Song, parts: tuple[int, ...]) -> tuple[Ints, Ints]:
    """Return the starts of notes and their beats: every beat is cut in a drawn number of parts."""
    cuts = rng.choice(parts, len(song.beats))
    beat = np.repeat(np.arange(len(cuts)), cuts)
    nth = np.arange(len(beat)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    length = np.diff(song.beats, append=song.num_samples)
    return song.beats[beat] + nth * length[beat] // cuts[beat], beat


def _loudness(rng: np.random.Generator, count: int, spread: float) -> Floats:
    return rng.uniform(1 - spread, 1, count).astype(np.float32)


def _voice(rng: np.random.Generator, song: Song, notes: Notes, decay_s: float, brightness: float) -> Floats:
    """Return the sound of one voice, shape (T,), peak about 1: a wave table read at the notes' pitches."""
    length = np.diff(notes.start, append=song.num_samples)
    hz = 440 * 2 ** ((notes.pitch + rng.normal(0, 0.04, len(length)) - 69) / 12)
    step_T = np.repeat((hz * TABLE_SAMPLES / RATE_HZ).astype(np.float32), length) * _vibrato(rng, song.num_samples)
    place_T = np.cumsum(step_T, dtype=np.float64).astype(np.int64) & (TABLE_SAMPLES - 1)
    sound_T: Floats = _table(rng, float(hz.max()), brightness)[place_T]
    for start, stop, loudness in zip(notes.start, notes.start + length, notes.loudness, strict=True):
        sound_T[start:stop] *= loudness * _envelope(int(stop - start), decay_s)
    return sound_T


def _envelope(num_samples: int, decay_s: float) -> Floats:
    """Return the level of a note of this length: a short attack, a decay, a short release."""
    level: Floats = np.exp(np.arange(num_samples, dtype=np.float32) * np.float32(-1 / (decay_s * RATE_HZ)))
    attack, release = min(num_samples, round(ATTACK_S * RATE_HZ)), min(num_samples, round(RELEASE_S * RATE_HZ))
    level[:attack] *= np.linspace(0, 1, attack, dtype=np.float32)
    level[num_samples - release :] *= np.linspace(1, 0, release, dtype=np.float32)
    return level


def _vibrato(rng: np.random.Generator, num_samples: int) -> Floats:
    """Return the factor on the pitch, shape (T,): a few cents, four to seven times a second."""
    turn, depth = 2 * np.pi * rng.uniform(4, 7) / RATE_HZ, rng.uniform(0.0005, 0.006)
    period = np.sin(np.arange(round(2 * np.pi / turn), dtype=np.float32) * np.float32(turn)) * np.float32(depth)
    return np.resize(1 + period, num_samples)


def _table(rng: np.random.Generator, highest_hz: float, brightness: float) -> Floats:
    """Return one period of a drawn timbre whose partials stay below half the rate at the highest pitch."""
    count = int(np.clip(0.45 * RATE_HZ / highest_hz, 1, 16))
    level = rng.uniform(0.2, 1, count) * brightness ** np.arange(count)
    turns = 2 * np.pi * np.arange(TABLE_SAMPLES)[:, None] / TABLE_SAMPLES * np.arange(1, count + 1)
    wave = (np.sin(turns + rng.uniform(0, 2 * np.pi, count)) * level).sum(axis=1)
    table: Floats = (wave / np.abs(wave).max()).astype(np.float32)
    return table


def _drums(rng: np.random.Generator, song: Song) -> Floats:
    """Return kick, snare and hat, shape (T,), each hit drawn on a grid of quarter beats."""
    wave_T = np.zeros(song.num_samples, np.float32)
    length = np.diff(song.beats, append=song.num_samples)
    grid = (song.beats[:, None] + length[:, None] * np.arange(4) // 4).ravel()
    likely = {"kick": (0.85, 0.05, 0.25, 0.05), "snare": (0.15, 0.05, 0.4, 0.1), "hat": (0.6, 0.3, 0.7, 0.3)}
    for sound, chances in likely.items():
        hit = _hit(rng, sound)
        struck = rng.random(len(grid)) < np.tile(chances, len(song.beats))
        for start, loudness in zip(grid[struck], _loudness(rng, int(struck.sum()), 0.7), strict=True):
            room = wave_T[start : start + len(hit)]
            room += loudness * hit[: len(room)]
    return wave_T


def _hit(rng: np.random.Generator, sound: str) -> Floats:
    """Return one drum sound: a falling tone, noise, or both, dying away."""
    age_T = np.arange(round(0.25 * RATE_HZ), dtype=np.float32) / np.float32(RATE_HZ)
    fall_hz, tone_hz = rng.uniform(40, 120), rng.uniform(45, 70)
    noise_T = rng.standard_normal(len(age_T)).astype(np.float32)
    tone_T = np.sin(2 * np.pi * np.cumsum(tone_hz + fall_hz * np.exp(age_T / -0.03)) / RATE_HZ).astype(np.float32)
    sounds = {"kick": tone_T, "snare": 0.4 * noise_T + 0.5 * tone_T, "hat": 0.3 * np.diff(noise_T, prepend=noise_T[:1])}
    shortest_s, longest_s = HIT_DECAYS_S[sound]
    hit_T: Floats = (sounds[sound] * np.exp(-age_T / rng.uniform(shortest_s, longest_s))).astype(np.float32)
    return hit_T
