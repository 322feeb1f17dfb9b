"""Random pairs of recordings with a known truth, made from real sound: how far an aligner's confidence can be believed.

A scene is a row of field recordings. Two recorders hear it, each with a gain, a tilt of the spectrum and noise of its
own, and the second one on a clock of its own. A pair may be short, overlap in part only, be reversed in polarity,
clipped, or share no sound; the second recorder may have lost samples or inserted some.

Shape legend: T samples, K keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, rfft, rfftfreq

from bench.align.clock import Clock, ClockRange, warp
from bench.align.contract import Jump, Pair, Seconds
from bench.settings import require
from bench.values import RATE_HZ, Floats

KINDS = ("plain", "plain", "plain", "reversed", "clipped", "partial", "lost", "inserted", "unrelated")  # evenly drawn
LENGTHS_S = (6.0, 10.0, 20.0, 40.0, 60.0, 120.0)
SNRS_DB = (20.0, 10.0, 5.0, 0.0)
OFFSET_S = 3.0
DRIFT_PPM = 100.0
WOBBLE_S = 0.002
OVERLAP = (0.3, 0.7)  # share of a partial pair
JUMP_S = (0.05, 3.0)
JUMP_AT = (0.2, 0.8)  # share of the length
LEAST_LENGTH_TO_JUMP_S = 40.0
CLIP_AT = 2.0  # deviations
TILT = (-0.4, 0.4)  # power of the frequency by which a recorder's amplitudes rise
GAIN_DB = (-12.0, 12.0)
NOISE_TILT = (-1.0, 0.0)  # from brown to white
PIECE_S = (8.0, 60.0)  # of one field recording in a scene
CROSSFADE_S = 0.25
BEFORE_S = 8.0  # of the scene, before channel 0 begins: the other one may begin earlier
LEVEL = 0.05  # RMS of a piece
SILENT = 1e-4  # RMS of a recording that is left out


@dataclass(frozen=True, eq=False)
class RandomPair:
    """A pair and its truth."""

    pair: Pair
    kind: str
    snr_db: float

    time1_K: Seconds
    """The time in channel 1 of each keypoint, also before its start and after its end; NaN for moments that it lost."""

    jump: Jump | None = None

    @property
    def polarity(self) -> int:
        """Return -1 if channel 1 is reversed, else 1."""
        return -1 if self.kind == "reversed" else 1


def draw_pair(recordings: Sequence[Floats], seed: int) -> RandomPair:
    """Return the pair of a seed, from recordings (T,) at RATE_HZ. Raises: ConfigError for fewer than four usable."""
    usable = [wave_T for wave_T in recordings if len(wave_T) > RATE_HZ and wave_T.std() > SILENT]
    require(len(usable) >= 4, "random pairs need at least four recordings with sound, of over 1 s", len(usable))
    draw = np.random.default_rng([15, seed])
    kind, snr_db = str(draw.choice(KINDS)), float(draw.choice(SNRS_DB))
    length_s = float(draw.choice(LENGTHS_S))
    if kind in ("lost", "inserted"):
        length_s = max(length_s, LEAST_LENGTH_TO_JUMP_S)
    order = draw.permutation(len(usable))
    if kind == "unrelated":
        half = len(usable) // 2
        waves = [
            _make_scene([usable[i] for i in part], length_s, draw)[: round(length_s * RATE_HZ)]
            for part in (order[:half], order[half:])
        ]
        truth = RandomPair(_pair(waves[0], waves[1], seed), kind, snr_db, np.full(round(length_s), np.nan))
    else:
        truth = _share_scene([usable[i] for i in order], kind, length_s, snr_db, seed, draw)
    pair = truth.pair
    recorded = [_record(wave_T, snr_db, draw) for wave_T in (pair.wave0_T, pair.wave1_T)]
    return replace(truth, pair=_pair(recorded[0], recorded[1], seed))


def _share_scene(
    recordings: Sequence[Floats], kind: str, length_s: float, snr_db: float, seed: int, draw: np.random.Generator
) -> RandomPair:
    clock = ClockRange(OFFSET_S, DRIFT_PPM, float(draw.choice([0.0, WOBBLE_S]))).draw(draw, length_s)
    if kind == "partial":
        apart_s = float(draw.choice([-1, 1])) * length_s * (1 - draw.uniform(*OVERLAP))
        clock = replace(clock, offset_s=clock.offset_s + apart_s)
    before_s = BEFORE_S + (length_s if kind == "partial" else 0.0)
    scene_T = _make_scene(recordings, 2 * before_s + length_s, draw)
    first = round(before_s * RATE_HZ)
    wave0_T = scene_T[first : first + round(length_s * RATE_HZ)]
    size_s = 0.0
    if kind in ("lost", "inserted"):
        size_s = float(np.exp(draw.uniform(*np.log(JUMP_S)))) * (-1 if kind == "lost" else 1)
    at_s = length_s * draw.uniform(*JUMP_AT)  # of channel 1
    wave1_T = _hear(scene_T, clock, before_s, length_s + max(0.0, -size_s))
    if size_s:
        wave1_T = _jump(wave1_T, round(at_s * RATE_HZ), round(size_s * RATE_HZ))[: round(length_s * RATE_HZ)]
    if kind == "reversed":
        wave1_T = -wave1_T
    if kind == "clipped":
        wave1_T = np.clip(wave1_T, -CLIP_AT * wave1_T.std(), CLIP_AT * wave1_T.std())
    time0_K = np.arange(0.0, length_s)
    time1_K = _jumped(clock.time1(time0_K), at_s, round(size_s * RATE_HZ) / RATE_HZ)
    jump = Jump(float(clock.time0(np.array([at_s]))[0]), round(size_s * RATE_HZ) / RATE_HZ) if size_s else None
    return RandomPair(_pair(wave0_T, wave1_T, seed), kind, snr_db, time1_K, jump)


def _pair(wave0_T: Floats, wave1_T: Floats, seed: int) -> Pair:
    return Pair(f"random pair {seed}", wave0_T, wave1_T, f"random pair {seed}")


def _make_scene(recordings: Sequence[Floats], length_s: float, draw: np.random.Generator) -> Floats:
    """Return pieces of the recordings, equally loud, one after another; none comes twice before all came once."""
    fade = round(CROSSFADE_S * RATE_HZ)
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    scene_T = np.zeros(round((length_s + PIECE_S[1]) * RATE_HZ), np.float32)
    end = number = 0
    while end < round(length_s * RATE_HZ):
        whole_T = recordings[number % len(recordings)]
        number += 1
        size = min(len(whole_T), round(draw.uniform(*PIECE_S) * RATE_HZ))
        start = int(draw.integers(0, len(whole_T) - size + 1))
        piece_T = whole_T[start : start + size] - whole_T[start : start + size].mean()
        piece_T = LEVEL * piece_T / max(float(piece_T.std()), SILENT)
        piece_T[:fade] *= ramp
        piece_T[-fade:] *= ramp[::-1]
        scene_T[end : end + size] += piece_T
        end += size - fade
    return scene_T[: round(length_s * RATE_HZ)]


def _hear(scene_T: Floats, clock: Clock, before_s: float, length_s: float) -> Floats:
    """Return what channel 1 hears of a scene of which channel 0 begins `before_s` from its start."""
    time1_T = np.arange(round(length_s * RATE_HZ)) / RATE_HZ
    return warp(scene_T, clock.time0(time1_T) + before_s)


def _jump(wave_T: Floats, at: int, size: int) -> Floats:
    """Return a wave that lost samples (size < 0), or in which silence was inserted."""
    if size < 0:
        return np.concatenate([wave_T[:at], wave_T[at - size :]])
    return np.concatenate([wave_T[:at], np.zeros(size, np.float32), wave_T[at:]])


def _jumped(time1_K: Seconds, at_s: float, size_s: float) -> Seconds:
    """Return times of channel 1 after a jump at `at_s` of it; NaN for moments that were lost."""
    after_K = np.where(time1_K < at_s - min(0.0, size_s), np.nan, time1_K + size_s)
    jumped_K: Seconds = np.where(time1_K < at_s, time1_K, after_K)
    return jumped_K


def _record(wave_T: Floats, snr_db: float, draw: np.random.Generator) -> Floats:
    """Return a wave as a recorder with a gain, a tilted spectrum and noise of its own stores it."""
    wave_T = _tilt(wave_T, draw.uniform(*TILT))
    noise_T = _tilt(draw.standard_normal(len(wave_T)).astype(np.float32), draw.uniform(*NOISE_TILT))
    noise_T *= wave_T.std() / max(float(noise_T.std()), SILENT) * 10 ** (-snr_db / 20)
    recorded_T: Floats = (10 ** (draw.uniform(*GAIN_DB) / 20) * (wave_T + noise_T)).astype(np.float32)
    return recorded_T


def _tilt(wave_T: npt.NDArray[np.float32], power: float) -> Floats:
    """Return a wave whose amplitudes are multiplied by frequency to a power, without a delay."""
    hz_F = np.maximum(rfftfreq(len(wave_T), 1 / RATE_HZ), 50.0)
    tilted_T: Floats = irfft(rfft(wave_T) * (hz_F / 1000) ** power, len(wave_T)).astype(np.float32)
    return tilted_T
