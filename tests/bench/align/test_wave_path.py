"""wave-path on made scenes whose truth is known: offsets, drift, jumps, polarity, and what must not be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import soxr
import torch

from bench.align.aligners import wave_path
from bench.align.clock import warp
from bench.align.contract import Jump, Pair, TimeMap
from bench.align.pair_embedder import CachedPairEmbedder
from bench.errors import ConfigError
from bench.fingerprint import build_random_projection
from bench.values import RATE_HZ, Floats, no_progress

SCENE_S = 75.0
SURE = 0.9


def scene(seed: int, seconds: float = SCENE_S) -> Floats:
    """Return calls that sweep and warble, at random times: what recorders hear in a wood."""
    draw = np.random.default_rng(seed)
    wave = np.zeros(round(seconds * RATE_HZ))
    start_s = 0.2
    while start_s < seconds - 0.6:
        time = np.arange(round(draw.uniform(0.08, 0.5) * RATE_HZ)) / RATE_HZ
        low, high = draw.uniform(900, 3_500), draw.uniform(900, 4_500)
        hz = np.linspace(low, high, len(time)) * (1 + 0.1 * np.sin(2 * np.pi * draw.uniform(5, 40) * time))
        call = np.sin(2 * np.pi * np.cumsum(hz) / RATE_HZ) * np.hanning(len(time)) * draw.uniform(0.2, 1)
        first = round(start_s * RATE_HZ)
        wave[first : first + len(call)] += call
        start_s += draw.exponential(0.5)
    return wave.astype(np.float32)


def recorded(wave: Floats, seed: int, level: float = 0.05) -> Floats:
    """Return what a recorder with noise of its own makes of a wave."""
    noise = np.random.default_rng([9, seed]).standard_normal(len(wave))
    return (0.4 * wave + level * noise).astype(np.float32)


def cut(wave: Floats, start_s: float, seconds: float) -> Floats:
    return wave[round(start_s * RATE_HZ) : round((start_s + seconds) * RATE_HZ)]


def aligned(wave0: Floats, wave1: Floats, max_lag_s: float = 5.0) -> TimeMap:
    pair = Pair("made", wave0, wave1, f"{wave0[:100].sum()} {wave1[:100].sum()}", max_lag_s)
    embedder = CachedPairEmbedder(build_random_projection(torch.device("cpu")))
    return wave_path.build(wave_path.Config()).align(pair, embedder, no_progress)


@dataclass(frozen=True)
class Answer:
    """Lags (K,) at whole seconds of channel 0 that channel 1 has too, and their confidences."""

    time0_K: np.ndarray
    lag_K: np.ndarray
    confidence_K: np.ndarray


def answer(wave0: Floats, wave1: Floats, max_lag_s: float = 5.0) -> Answer:
    found = aligned(wave0, wave1, max_lag_s)
    time0 = np.arange(0.0, len(wave0) / RATE_HZ)
    time1 = found.at(time0)
    both = (time1 > 0) & (time1 < len(wave1) / RATE_HZ)
    return Answer(time0[both], (time1 - time0)[both], found.confidence_at(time0)[both])


@pytest.mark.parametrize(("offset_s", "ppm"), [(0.8, 0.0), (-2.7, 60.0), (3.1, -100.0)])
def test_offset_and_drift_are_found_to_a_part_of_a_millisecond(offset_s: float, ppm: float) -> None:
    wave = scene(1)
    time1 = np.arange(40 * RATE_HZ) / RATE_HZ
    true_time0 = (time1 - offset_s) / (1 + 1e-6 * ppm)
    found = answer(recorded(cut(wave, 10, 40), 1), recorded(warp(wave, true_time0 + 10), 2))
    error_K = np.abs(found.lag_K - offset_s - 1e-6 * ppm * found.time0_K)
    assert np.median(error_K) < 0.0002 and error_K.max() < 0.0015
    assert found.confidence_K.min() > SURE


def test_the_order_of_the_recordings_changes_nothing() -> None:
    wave = scene(2)
    one, other = recorded(cut(wave, 10, 30), 1), recorded(cut(wave, 9, 45), 2)
    there, back = aligned(one, other), aligned(other, one)
    time0 = np.arange(1.0, 29.0)
    assert back.at(there.at(time0)) == pytest.approx(time0, abs=1e-4)
    assert back.confidence_at(there.at(time0)) == pytest.approx(there.confidence_at(time0), abs=1e-3)


def test_a_clip_is_found_anywhere_in_a_long_recording_whatever_the_largest_lag() -> None:
    wave = scene(3)
    long, clip = recorded(wave, 1), recorded(cut(wave, 51.25, 6), 2)
    for found, lag_s in ((answer(clip, long), 51.25), (answer(long, clip), -51.25)):
        assert found.lag_K == pytest.approx(lag_s, abs=0.001) and found.confidence_K.mean() > SURE


def test_polarity_is_reported_and_costs_nothing() -> None:
    wave = scene(4)
    found = aligned(recorded(cut(wave, 10, 30), 1), -recorded(cut(wave, 9, 30), 2))
    assert found.polarity == -1 and found.at(np.array([15.0])) == pytest.approx(16.0, abs=0.0005)
    assert aligned(recorded(cut(wave, 10, 30), 1), recorded(cut(wave, 9, 30), 2)).polarity == 1


@pytest.mark.parametrize("lost_s", [2.0, 0.35, 0.04])
def test_lost_samples_are_a_jump_and_no_drift(lost_s: float) -> None:
    wave = scene(5)
    whole = recorded(cut(wave, 9.2, 45), 2)
    broken = np.concatenate([whole[: 20 * RATE_HZ], whole[round((20 + lost_s) * RATE_HZ) :]])[: 40 * RATE_HZ]
    found_map = aligned(recorded(cut(wave, 10, 40), 1), broken)
    (jump,) = found_map.jumps
    # Channel 1 is 0.8 s later, so that its second 20 is 19.2 s of channel 0.
    assert jump.size_s == pytest.approx(-lost_s, abs=0.002) and abs(jump.time0_s - 19.2) < 2.0
    time0 = np.arange(0.0, 39.0)
    lag, confidence = found_map.at(time0) - time0, found_map.confidence_at(time0)
    true_lag = np.where(time0 < 19.2, 0.8, 0.8 - lost_s)
    has_partner = (time0 < 19.2) | (time0 > 19.2 + lost_s)
    sure = (confidence > 0.5) & has_partner
    assert np.abs(lag - true_lag)[sure].max() < 0.001 and sure.sum() > 30
    assert confidence[~has_partner].max(initial=0.0) < 0.5


def test_inserted_samples_are_a_jump_the_other_way() -> None:
    wave = scene(6)
    whole = recorded(cut(wave, 9.2, 40), 2)
    padded = np.concatenate([whole[: 20 * RATE_HZ], np.zeros(RATE_HZ, np.float32), whole[20 * RATE_HZ :]])
    found = aligned(recorded(cut(wave, 10, 40), 1), padded[: 40 * RATE_HZ])
    (jump,) = found.jumps
    assert jump.size_s == pytest.approx(1.0, abs=0.001) and abs(jump.time0_s - 19.2) < 2.0
    assert found.at(np.array([10.0, 30.0])) == pytest.approx([10.8, 31.8], abs=0.0005)


def test_the_inverse_of_a_jump_is_a_jump() -> None:
    lost = TimeMap(
        np.array([0.0, 10.0, 12.0, 20.0]), np.array([1.0, 11.0, 11.0, 19.0]), np.ones(4), (Jump(10.0, -2.0),), -1
    )
    inverse = lost.inverse()
    assert inverse.at(np.array([1.0, 10.0, 12.0, 19.0])) == pytest.approx([0.0, 9.0, 13.0, 20.0], abs=1e-6)
    assert (inverse.jumps, inverse.polarity) == ((Jump(11.0, 2.0),), -1)


def test_recordings_that_share_no_sound_are_not_believed_at_any_moment() -> None:
    for seed in (7, 8, 9):
        found = answer(recorded(scene(seed, 25.0), 1), recorded(scene(seed + 50, 25.0), 2))
        assert found.confidence_K.max(initial=0.0) < 0.5


def test_where_one_recording_goes_elsewhere_confidence_ends() -> None:
    wave = scene(10)
    elsewhere = np.concatenate([cut(wave, 9, 20), scene(60, 25.0)])
    found = answer(recorded(cut(wave, 10, 40), 1), recorded(elsewhere, 2))
    assert found.confidence_K[(found.time0_K > 1) & (found.time0_K < 17)].min() > SURE
    assert found.confidence_K[found.time0_K > 27].max() < 0.5


def test_sound_that_repeats_itself_is_not_believed() -> None:
    time = np.arange(30 * RATE_HZ) / RATE_HZ
    tones = (0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 660 * time)).astype(np.float32)
    clicks = np.zeros(30 * RATE_HZ, np.float32)
    clicks[:: RATE_HZ // 2] = 1.0
    clicks = np.convolve(clicks, np.hanning(60) * np.sin(np.arange(60)), "same").astype(np.float32)
    for wave in (tones, clicks):
        assert answer(wave, np.roll(wave, 3 * RATE_HZ)).confidence_K.max(initial=0.0) < 0.5


def test_three_small_losses_are_jumps_and_no_drift() -> None:
    wave = scene(13, 85.0)
    whole = recorded(cut(wave, 10, 60), 2)
    lost = round(0.04 * RATE_HZ)
    pieces = [whole[round(i * 15 * RATE_HZ) + (lost if i else 0) : (i + 1) * 15 * RATE_HZ] for i in range(4)]
    found = aligned(recorded(cut(wave, 10, 60), 1), np.concatenate(pieces))
    assert [jump.size_s for jump in found.jumps] == pytest.approx([-0.04] * 3, abs=0.0005)
    assert found.at(np.array([10.0, 25.0, 40.0, 55.0])) == pytest.approx([10.0, 24.96, 39.92, 54.88], abs=0.0005)


def test_a_recorder_of_half_the_rate_is_aligned_as_well_in_both_orders() -> None:
    wave = scene(14)
    full, half = recorded(cut(wave, 10, 30), 1), recorded(cut(wave, 9, 30), 2)
    half = soxr.resample(np.round(2**15 * soxr.resample(half, RATE_HZ, RATE_HZ // 2)) / 2**15, RATE_HZ // 2, RATE_HZ)
    half = half.astype(np.float32)
    for one, other, lag_s in ((full, half, 1.0), (half, full, -1.0)):
        found = answer(one, other)
        assert found.lag_K == pytest.approx(lag_s, abs=0.001) and found.confidence_K[1:-1].min() > SURE


def test_a_clip_that_comes_twice_is_not_believed() -> None:
    wave, clip = scene(15), cut(scene(16), 10, 6)
    twice = np.concatenate([cut(wave, 1, 20), clip, cut(wave, 21, 15), clip, cut(wave, 36, 10)])
    assert answer(recorded(clip, 1), recorded(twice, 2)).confidence_K.max(initial=0.0) < 0.5


def test_a_speed_that_no_clock_has_is_not_a_line() -> None:
    wave = scene(11)
    faster = warp(wave, np.arange(30 * RATE_HZ) / RATE_HZ * 1.01 + 10)
    found = aligned(recorded(cut(wave, 10, 30), 1), recorded(faster, 2))
    assert found.confidence_at(np.arange(0.0, 29.0)).max() < 0.5


@pytest.mark.parametrize("seconds", [0.0, 0.3, 2.0])
def test_silence_and_what_is_too_short_get_an_honest_answer(seconds: float) -> None:
    silence = np.zeros(max(1, round(seconds * RATE_HZ)), np.float32)
    assert aligned(silence, silence).confidence_K.max() < 0.5


def test_settings_have_limits() -> None:
    with pytest.raises(ConfigError, match="max_drift_ppm must be from 1 to 5000, got 0"):
        wave_path.Config(max_drift_ppm=0)
