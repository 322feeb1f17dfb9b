"""Front ends by their definitions, one frame and one band after another."""

import math

import numpy as np
import pytest
import torch

from bench.audio.frontend import FLOOR_DB, LogMel, MagnitudeMel, mel_power

SEGMENT = 15_360


def waves(number: int = 6, seed: int = 0, num_samples: int = SEGMENT) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tones = torch.sin(torch.arange(num_samples) * torch.rand(number, 1, generator=draw))
    return 0.3 * tones + 0.1 * torch.randn(number, num_samples, generator=draw)


# Power, 64 bands of HTK, 16 kHz


def mel_weights(num_bands: int, num_bins: int, rate_hz: int) -> np.ndarray:
    """Return HTK's triangles (bands, bins), peaks of one, from 0 Hz to half the rate."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    top = mel(rate_hz / 2)
    corners = [700 * (10 ** (top * i / (num_bands + 1) / 2595) - 1) for i in range(num_bands + 2)]
    weights = np.zeros((num_bands, num_bins))
    for band in range(num_bands):
        low, middle, high = corners[band : band + 3]
        for b in range(num_bins):
            hz = b * rate_hz / 2 / (num_bins - 1)
            weights[band, b] = max(0.0, min((hz - low) / (middle - low), (high - hz) / (high - middle)))
    return weights


def slow_patch(wave: np.ndarray) -> np.ndarray:
    """Return the patch of one segment: centred STFT, window 512, hop 160, 64 bands, last frame dropped."""
    padded = np.pad(wave.astype(np.float64), 256, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = np.stack([padded[t * 160 : t * 160 + 512] * window for t in range(96)])
    turns = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512)
    power = np.abs(frames @ turns.T) ** 2
    level = 10 * np.log10(np.maximum(mel_weights(64, 257, 16_000) @ power.T, 1e-10))
    return 1 + np.maximum(level - level.max(), -80) / 40


def test_front_end_is_the_log_mel_by_its_definition() -> None:
    wave = waves(2, seed=3)
    patches = LogMel()(wave)
    assert patches.shape == (2, 1, 64, 96)
    for found, one in zip(patches[:, 0].numpy(), wave.numpy(), strict=True):
        np.testing.assert_allclose(found, slow_patch(one), atol=2e-4)  # float32 and 1/40 per dB


@pytest.mark.parametrize("gain", [0.01, 0.3, 10.0])
def test_front_end_does_not_hear_the_level(gain: float) -> None:
    wave = waves()
    np.testing.assert_allclose(LogMel()(gain * wave), LogMel()(wave), atol=2e-4)


def test_front_end_looks_at_each_segment_alone() -> None:
    wave = waves()
    np.testing.assert_allclose(LogMel()(wave)[:1], LogMel()(wave[:1]), atol=1e-6)
    louder = torch.cat([wave[:1], 1000 * wave[1:]])
    np.testing.assert_allclose(LogMel()(louder)[:1], LogMel()(wave)[:1], atol=1e-6)


@pytest.mark.parametrize("hop", [1_600, 160, 800, 1_000, 20_000])
def test_patches_of_overlapping_segments_are_those_of_each_alone(hop: int) -> None:
    front_end = LogMel()
    long = waves(3, num_samples=40_000) * torch.linspace(0.001, 1, 40_000)
    long[1, 10_000:30_000] = 0  # whole segments of silence, and ends in silence
    found = front_end.of_windows(long, SEGMENT, hop)
    count = (40_000 - SEGMENT) // hop + 1
    assert found.shape == (3, count, 1, 64, 96)
    for number in range(count):
        alone = front_end(long[:, number * hop : number * hop + SEGMENT])
        np.testing.assert_allclose(found[:, number], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "step", "segment"), [(512, 160, 15_360), (400, 160, 8_000), (512, 255, 9_999), (512, 256, 9_999)]
)
def test_overlapping_segments_of_any_window_and_length(window: int, step: int, segment: int) -> None:
    front_end = LogMel(window=window, hop=step)
    long = waves(2, num_samples=30_000)
    found = front_end.of_windows(long, segment, 5 * step)
    alone = front_end(long.unfold(1, segment, 5 * step).reshape(-1, segment))
    np.testing.assert_allclose(found.flatten(0, 1), alone, atol=1e-6)


def test_power_in_bands_is_that_of_torchaudio() -> None:
    mel = LogMel().mel
    np.testing.assert_allclose(mel_power(mel, waves()), mel(waves()), rtol=1e-5)


def test_patches_lie_between_minus_one_and_one_and_silence_is_flat() -> None:
    click = torch.zeros(2, SEGMENT)
    click[0, 5_000] = 1
    patches = LogMel()(click)
    assert FLOOR_DB == 80
    assert float(patches[0].max()) == 1 and float(patches[0].min()) == -1
    assert torch.equal(patches[1], torch.ones(1, 64, 96))


# Magnitudes, 256 bands of Slaney, 8 kHz


def slaney_hz(mel: float) -> float:
    """Return the frequency of a mel: 200/3 Hz each up to 1 kHz, then 27 to a factor of 6.4."""
    return 200 / 3 * mel if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def slaney_mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def test_scale_of_slaney_worked_by_hand() -> None:
    assert slaney_mel(300) == pytest.approx(4.5) and slaney_hz(15) == pytest.approx(1000)
    assert slaney_hz(42) == pytest.approx(6400) and slaney_mel(6400) == pytest.approx(42)


def slow_magnitude_patch(wave: np.ndarray) -> np.ndarray:
    """Return 32 frames of 256 triangles of unit area between 300 and 4000 Hz, as log10(x + 0.06)."""
    padded = np.concatenate([np.zeros(512), wave.astype(np.float64), np.zeros(512)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    low, high = slaney_mel(300), slaney_mel(4000)
    corners = [slaney_hz(low + (high - low) * i / 257) for i in range(258)]
    triangles = np.zeros((256, 513))
    for band in range(256):
        left, middle, right = corners[band : band + 3]
        for b in range(513):
            hz = b * 8000 / 1024
            height = min((hz - left) / (middle - left), (right - hz) / (right - middle))
            triangles[band, b] = max(0.0, height) * 2 / (right - left)
    frames = [np.abs(np.fft.rfft(padded[t * 256 : t * 256 + 1024] * window)) for t in range(32)]
    return np.log10(triangles @ np.stack(frames, axis=1) + 0.06)


@pytest.mark.parametrize("maxnorm", [False, True])
def test_magnitude_front_end_is_the_log_mel_by_its_definition(maxnorm: bool) -> None:
    wave = waves(2, seed=3, num_samples=8_000)
    patches = MagnitudeMel(maxnorm)(wave)
    assert patches.shape == (2, 1, 256, 32)
    for found, one in zip(patches[:, 0].numpy(), wave.numpy(), strict=True):
        level = slow_magnitude_patch(one)
        below_top = level - level.max()
        half = below_top.min() / 2
        wanted = (below_top - half) / abs(half) if maxnorm else below_top
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_maxnorm_spans_minus_one_to_one_and_silence_is_flat() -> None:
    wave = waves(2, num_samples=8_000)
    wave[1] = 0
    plain, scaled = MagnitudeMel()(wave), MagnitudeMel(maxnorm=True)(wave)
    assert float(plain[0].max()) == 0 and float(plain[0].min()) < -1
    np.testing.assert_allclose([float(scaled[0].min()), float(scaled[0].max())], [-1, 1], atol=1e-6)
    assert not plain[1].any() and not scaled[1].any()


@pytest.mark.parametrize("maxnorm", [False, True])
def test_magnitude_front_end_looks_at_each_segment_alone(maxnorm: bool) -> None:
    wave = waves(num_samples=8_000)
    louder = torch.cat([wave[:1], 1000 * wave[1:]])
    front_end = MagnitudeMel(maxnorm)
    np.testing.assert_allclose(front_end(louder)[:1], front_end(wave[:1]), atol=1e-5)


def test_no_front_end_has_anything_to_learn_or_to_save() -> None:
    for front_end in (LogMel(), MagnitudeMel()):
        assert not list(front_end.parameters()) and not front_end.state_dict()
