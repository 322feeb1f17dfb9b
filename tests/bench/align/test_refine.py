from __future__ import annotations

import numpy as np
import pytest

from bench.align import refine
from bench.align.contract import Pair
from bench.align.refine import Correlogram, correlate_along, interpolate_peak
from bench.values import RATE_HZ

SECONDS = 12


def late(wave: np.ndarray, samples: float) -> np.ndarray:
    """Return the wave later by any number of samples: by a phase, an own way."""
    turn = np.exp(-2j * np.pi * np.fft.rfftfreq(len(wave)) * samples)
    return np.fft.irfft(np.fft.rfft(wave) * turn, len(wave)).astype(np.float32)


def scene(seed: int = 0) -> np.ndarray:
    """Return noise that comes and goes, coloured as nature is."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal(SECONDS * RATE_HZ)
    spectrum = np.fft.rfft(noise) / np.maximum(np.fft.rfftfreq(len(noise), 1 / RATE_HZ), 200) ** 0.5
    return np.fft.irfft(spectrum).astype(np.float32)


def pair_of(samples: float, noise: float = 0.0) -> Pair:
    draw, wave = np.random.default_rng(1), scene()
    own = [noise * wave.std() * draw.standard_normal(len(wave)).astype(np.float32) for _ in range(2)]
    return Pair("made", wave + own[0], late(wave, samples) + own[1], "key")


KNOTS = np.arange(2.0, 10.0)


@pytest.mark.parametrize("samples", [-700.0, -31.3, -0.25, 0.0, 0.4, 12.0, 480.75])
def test_the_lag_is_found_to_a_part_of_a_sample_with_its_sign(samples: float) -> None:
    found = correlate_along(pair_of(samples, 0.3), KNOTS, np.zeros(len(KNOTS)), 0.06, 2.0)
    beside, height = interpolate_peak(found, found.height_KL.argmax(axis=1))
    assert np.abs(beside * RATE_HZ - samples).max() < 0.1 and height.min() > 6


@pytest.mark.parametrize("curve", [[0.02] * 8, list(0.0201 + 1e-4 * np.arange(8))])
def test_the_lag_is_told_beside_the_curve(curve: list[float]) -> None:
    lag = np.array(curve)
    found = correlate_along(pair_of(0.02 * RATE_HZ), KNOTS, lag, 0.02, 1.0)
    beside, _ = interpolate_peak(found, found.height_KL.argmax(axis=1))
    np.testing.assert_allclose(beside + lag, 0.02, atol=2e-4)


def test_knots_are_answered_alike_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, lag = pair_of(5.0), np.linspace(0, 1e-3, len(KNOTS))
    whole = correlate_along(pair, KNOTS, lag, 0.01, 2.0).height_KL
    monkeypatch.setattr(refine, "KNOTS", 3)
    np.testing.assert_allclose(correlate_along(pair, KNOTS, lag, 0.01, 2.0).height_KL, whole, atol=0.05)


def test_unlike_sounds_do_not_stand_out_and_silence_is_zero() -> None:
    unlike = Pair("made", scene(0), scene(7), "key")
    assert correlate_along(unlike, KNOTS, np.zeros(8), 0.1, 4.0).height_KL.max() < 6
    silent = Pair("made", scene(0), np.zeros(SECONDS * RATE_HZ, np.float32), "key")
    assert not correlate_along(silent, KNOTS, np.zeros(8), 0.01, 4.0).height_KL.any()


def test_beyond_the_ends_there_is_silence() -> None:
    short = Pair("made", scene(), scene()[: 3 * RATE_HZ], "key")
    found = correlate_along(short, np.arange(12.0), np.zeros(12), 0.01, 1.0)
    assert found.height_KL[1].max() > 6 and not found.height_KL[6:].any()


def test_top_is_that_of_the_parabola() -> None:
    around = np.arange(-2.0, 3.0)
    height = np.array([[-(4 + 0.0), 0, 0, 0, 0], -((around - 0.25) ** 2)], dtype=np.float32)
    beside, best = interpolate_peak(Correlogram(around, height), np.array([0, 2]))
    assert beside.tolist() == pytest.approx([-2.0, 0.25]) and best.tolist() == pytest.approx([-4.0, -0.0625])
