"""Whitening: a flat spectrum with the phases of the original, silence, and long recordings frame by frame."""

from __future__ import annotations

import numpy as np
import pytest

from bench.audio import whiten as module
from bench.audio.whiten import FRAME, halve_rate, whiten

RNG = np.random.default_rng(0)


def coloured(num_samples: int) -> np.ndarray:
    """Return noise whose power falls by 12 dB per octave."""
    return np.cumsum(RNG.normal(size=num_samples)).astype(np.float32)


def band_powers(wave: np.ndarray) -> np.ndarray:
    """Return the power in bands of a sixteenth of the spectrum."""
    power = np.square(np.abs(np.fft.rfft(wave)))[1:]
    return power[: len(power) // 16 * 16].reshape(16, -1).mean(axis=1)


def test_all_bands_become_equally_strong() -> None:
    wave = coloured(16_000)
    assert np.ptp(10 * np.log10(band_powers(wave)[1:])) > 15
    assert np.ptp(10 * np.log10(band_powers(whiten(wave)))) < 0.5


def test_phases_stay_so_that_nothing_moves() -> None:
    wave = coloured(8_000)
    before, after = np.fft.rfft(wave)[1:-1], np.fft.rfft(whiten(wave).astype(np.float64))[1:-1]
    np.testing.assert_allclose(np.angle(after / before), 0, atol=1e-2)


def test_level_does_not_matter() -> None:
    wave = coloured(8_000)
    np.testing.assert_allclose(whiten(wave), whiten(wave * np.float32(1e-3)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("wave", [np.zeros(500, np.float32), np.full(500, 0.5, np.float32), np.zeros(0, np.float32)])
def test_what_has_no_sound_stays_silent(wave: np.ndarray) -> None:
    np.testing.assert_array_equal(whiten(wave), np.zeros(len(wave)))


def test_band_without_sound_is_not_raised_to_the_others() -> None:
    spectrum = np.fft.rfft(RNG.normal(size=16_000))
    spectrum[4_000:] *= 1e-6
    white = whiten(np.fft.irfft(spectrum).astype(np.float32))
    power = np.square(np.abs(np.fft.rfft(white)))
    assert power[4_200:].mean() < 1e-4 * power[200:3_800].mean()


def test_long_recording_is_whitened_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two halves of other colours: each is flat by itself, which one spectrum for both would not give.
    falling, flat = coloured(4 * FRAME), RNG.normal(size=4 * FRAME).astype(np.float32)
    white = whiten(np.concatenate([falling, flat]))
    assert len(white) == 8 * FRAME
    inner = (white[FRAME : 3 * FRAME], white[5 * FRAME : 7 * FRAME])
    for half in inner:
        assert np.ptp(10 * np.log10(band_powers(half))) < 1
    monkeypatch.setattr(module, "FRAME", 16 * FRAME)
    whole = whiten(np.concatenate([falling, flat]))
    assert np.ptp(10 * np.log10(band_powers(whole[5 * FRAME : 7 * FRAME]))) > 10


def test_halved_rate_keeps_the_times() -> None:
    wave = np.zeros(2_000, np.float32)
    wave[1_000] = 1
    assert np.abs(halve_rate(wave)).argmax() == 500
    assert len(halve_rate(wave[:1_999])) == 1_000
