"""Loops are named, music and silence are not."""

from __future__ import annotations

import numpy as np
import pytest

from bench.audio.verify import find_repetition
from bench.values import RATE_HZ


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9_000, 9_000, round(seconds * RATE_HZ)).astype(np.int16)


def test_a_loop_is_found_with_its_length() -> None:
    share, lag_s = find_repetition(np.tile(noise(2.3), 6))
    assert share == 1 and lag_s == pytest.approx(2.3)


def test_music_with_silence_is_no_repetition() -> None:
    assert find_repetition(np.concatenate([noise(8), np.zeros(8 * RATE_HZ, np.int16), noise(2, 1)])) == (0.0, 0.0)


def test_the_share_that_repeats_is_told() -> None:
    share, lag_s = find_repetition(np.concatenate([noise(10), noise(10, 1), noise(10)]))
    assert 0.5 < share < 0.8 and lag_s == pytest.approx(20)


def test_a_track_shorter_than_an_excerpt_is_none() -> None:
    assert find_repetition(noise(0.3)) == (0.0, 0.0)
