"""Where the direct sound of a response is: v1 takes the largest peak for it, later versions find the first one."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from bench.degrade.room import DIRECT_AT, align_direct_sound, find_direct_sound
from bench.values import RATE_HZ, Floats


def response(*peaks: tuple[int, float], noise: float = 0.0) -> Floats:
    """Return a response with peaks (sample, amplitude) after a weak noise."""
    wave_T = noise * np.random.default_rng(0).standard_normal(2_000)
    for at, amplitude in peaks:
        wave_T[at] = amplitude
    return wave_T.astype(np.float32)


@pytest.mark.parametrize("first", [0.15, -0.3, 0.9])
def test_a_reflection_louder_than_the_direct_sound_is_told_from_it(first: float) -> None:
    wave_T = response((300, first), (460, 1.0), (800, -0.6), noise=0.01)
    assert find_direct_sound(wave_T, "v2") == 300
    assert find_direct_sound(wave_T, "v1") == find_direct_sound(wave_T) == 460
    aligned_T = align_direct_sound(wave_T, "v2")
    assert np.abs(aligned_T).max() == 1 and aligned_T[DIRECT_AT] == pytest.approx(first)


def test_an_impulse_that_rises_before_its_peak_is_at_the_peak() -> None:
    wave_T = soxr.resample(response((3 * 300, 1.0)), 3 * RATE_HZ, RATE_HZ)  # rings for some samples on both sides
    assert find_direct_sound(wave_T, "v2") == find_direct_sound(wave_T, "v1") == 300


def test_responses_of_v1_stay_equal_to_the_bit() -> None:
    wave_T = response((300, 0.5), (460, -0.8), noise=0.01)
    expected_T = wave_T[460 - DIRECT_AT :] / np.float32(0.8)
    assert np.array_equal(align_direct_sound(wave_T), expected_T)
    early_T = wave_T[450:]
    lead_T = np.concatenate([np.zeros(DIRECT_AT - 10, np.float32), early_T]) / np.float32(0.8)
    assert np.array_equal(align_direct_sound(early_T), lead_T)
