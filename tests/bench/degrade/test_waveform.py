"""Transforms of waveforms: what each does is measured; what is drawn is a function of the seed alone."""

import os
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from bench.degrade.waveform import transform_waves
from bench.errors import ConfigError
from bench.settings import Transforms
from bench.values import RATE_HZ, Floats

ALL = Transforms(
    time_stretch=0.5, resample_jitter=0.5, tanh=0.5, coloured_noise=0.5, pitch_shift=0.5, compress=0.5, clip=0.5,
    codec=0.5, device=0.5,
)  # fmt: skip
SAMPLES = RATE_HZ


def seeds(number: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + number, dtype=np.int64)


def music(number: int = 4, samples: int = SAMPLES) -> Floats:
    draw = np.random.default_rng(1)
    return (0.2 * draw.standard_normal((number, samples))).astype(np.float32)


def tone(hz: float, number: int = 1) -> Floats:
    return np.tile(0.5 * np.sin(2 * np.pi * hz * np.arange(SAMPLES) / RATE_HZ), (number, 1)).astype(np.float32)


def pitch_hz(wave: Floats) -> float:
    """Return the frequency of the highest peak of the middle half second, to 0.1 Hz."""
    middle = wave[2_000:10_000] * np.hanning(8_000)
    return float(np.abs(np.fft.rfft(middle, 10 * RATE_HZ)).argmax()) / 10


# Seeds


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    wave = music()
    one, again, other = (transform_waves(wave, ALL, seeds(4, first)) for first in (0, 0, 4))
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes() and one.dtype == np.float32 and one.shape == wave.shape


def test_an_item_depends_on_its_wave_and_seed_alone() -> None:
    wave, numbers = music(6), seeds(6)
    together = transform_waves(wave, ALL, numbers)
    order = np.array([3, 0, 5, 1, 4, 2])
    assert np.array_equal(transform_waves(wave[order], ALL, numbers[order]), together[order])
    for i in range(6):
        assert np.array_equal(transform_waves(wave[i : i + 1], ALL, numbers[i : i + 1])[0], together[i])
    strided = np.asfortranarray(wave)
    assert np.array_equal(transform_waves(strided, ALL, numbers), together)


def test_global_generators_are_neither_read_nor_changed() -> None:
    wave = music()
    random.seed(5)
    np.random.seed(5)
    kept, kept_numpy = random.getstate(), np.random.get_state()
    first = transform_waves(wave, ALL, seeds(4))
    assert random.getstate() == kept
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), kept_numpy, strict=True))
    random.seed(6)
    np.random.seed(6)
    assert np.array_equal(transform_waves(wave, ALL, seeds(4)), first)


def test_global_generators_are_put_back_after_an_error() -> None:
    kept = random.getstate()
    with pytest.raises(ValueError, match="shorter"):
        transform_waves(music(2), ALL, seeds(1))
    with pytest.raises(ValueError, match="non-negative"):
        transform_waves(music(1), ALL, np.array([-1]))
    assert random.getstate() == kept


def test_waves_that_are_given_stay_as_they_are() -> None:
    wave = music()
    wave.flags.writeable = False
    kept = wave.copy()
    transform_waves(wave, replace(ALL, time_stretch=1.0, tanh=1.0, coloured_noise=1.0), seeds(4))
    assert np.array_equal(wave, kept)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_worker_processes_give_the_same_bytes(way: str) -> None:
    if way == "fork" and os.name != "posix":
        pytest.skip("needs a system that forks")
    wave = music()
    with ProcessPoolExecutor(1, get_context(way)) as pool:
        found = pool.submit(transform_waves, wave, ALL, seeds(4)).result()
    assert found.tobytes() == transform_waves(wave, ALL, seeds(4)).tobytes()


# What is never applied


def test_probability_zero_is_the_wave_itself() -> None:
    wave = music()
    assert transform_waves(wave, Transforms(), seeds(4)) is wave


def test_probability_zero_imports_nothing() -> None:
    code = (
        "import sys, numpy as np\n"
        "from bench.settings import Transforms\n"
        "from bench.degrade.waveform import transform_waves\n"
        "transform_waves(np.zeros((2, 9), np.float32), Transforms(), np.arange(2))\n"
        "print([m for m in ('audiomentations', 'librosa', 'scipy', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", ["time_stretch", "resample_jitter", "tanh", "coloured_noise"])
def test_each_is_applied_as_often_as_its_probability_says(name: str) -> None:
    wave = np.repeat(music(1, 2_000), 400, axis=0)
    found = transform_waves(wave, replace(Transforms(), **{name: 0.3}), seeds(400))
    share = float((found != wave).any(axis=1).mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5


# What each does


@pytest.mark.parametrize("rate", [0.95, 1.05])
def test_stretch_moves_clicks_and_keeps_the_pitch(rate: float) -> None:
    stretch = Transforms(time_stretch=1.0, stretch_rate=(rate, rate))
    assert pitch_hz(transform_waves(tone(1_000), stretch, seeds(1))[0]) == pytest.approx(1_000, abs=0.5)
    clicks = np.zeros((1, SAMPLES), dtype=np.float32)
    clicks[0, [3_200, 8_000, 12_800]] = 1
    found = transform_waves(clicks, stretch, seeds(1))[0]
    for place in (3_200, 8_000, 12_800):
        wanted = round(place / rate)
        around = np.abs(found[wanted - 400 : wanted + 400])
        assert abs(int(around.argmax()) - 400) <= 32  # 2 ms


def test_stretch_spans_its_range() -> None:
    number = 60
    clicks = np.zeros((number, SAMPLES), dtype=np.float32)
    clicks[:, 12_000] = 1
    found = np.abs(transform_waves(clicks, Transforms(time_stretch=1.0), seeds(number))).argmax(axis=1)
    rates = 12_000 / found
    assert 0.948 < rates.min() < 0.96 and 1.04 < rates.max() < 1.052
    assert rates.mean() == pytest.approx(1.0, abs=0.02)


def test_jitter_moves_clicks_and_pitch_together_both_ways_and_never_by_less_than_a_percent() -> None:
    number = 60
    wave = tone(1_000, number)
    speeds = np.array(
        [pitch_hz(w) / 1_000 for w in transform_waves(wave, Transforms(resample_jitter=1.0), seeds(number))]
    )
    change = np.abs(speeds - 1)
    assert 0.0098 < change.min() < 0.012 and 0.028 < change.max() < 0.0302
    assert 0.25 < (speeds > 1).mean() < 0.75
    clicks = np.zeros((number, SAMPLES), dtype=np.float32)
    clicks[:, 12_000] = 1
    places = np.abs(transform_waves(clicks, Transforms(resample_jitter=1.0), seeds(number))).argmax(axis=1)
    np.testing.assert_allclose(12_000 / places, speeds, atol=2e-4)  # the same seeds, and so the same speeds


def test_length_is_kept_with_silence_after_what_became_shorter() -> None:
    wave = music(40)
    for transforms in (Transforms(time_stretch=1.0), Transforms(resample_jitter=1.0)):
        found = transform_waves(wave, transforms, seeds(40))
        assert found.shape == wave.shape
        quiet = (found[:, -100:] == 0).all(axis=1)
        assert 0.2 < quiet.mean() < 0.8  # the faster half
        assert (np.abs(found[:, :15_000]).mean(axis=1) > 0.1).all()


@pytest.mark.parametrize("amount", [0.01, 0.3, 0.7])
def test_tanh_is_its_formula(amount: float) -> None:
    wave = music(1)
    found = transform_waves(wave, Transforms(tanh=1.0, tanh_amount=(amount, amount)), seeds(1))[0]
    threshold = np.percentile(np.abs(wave[0]), 100 - 99 * amount)
    bent = np.tanh(0.5 * wave[0].astype(np.float64) / threshold)
    wanted = bent * np.sqrt(np.mean(wave[0].astype(np.float64) ** 2) / np.mean(bent**2))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)  # the library adds 1e-6 to the threshold


def test_tanh_adds_odd_harmonics_alone() -> None:
    found = transform_waves(tone(500), Transforms(tanh=1.0, tanh_amount=(0.7, 0.7)), seeds(1))[0]
    lines = np.abs(np.fft.rfft(found))[[500, 1_000, 1_500, 2_000]]  # a bin is 1 Hz
    assert lines[2] > 0.05 * lines[0] and lines[1] < 1e-3 * lines[0] and lines[3] < 1e-3 * lines[0]


@pytest.mark.parametrize("snr_db", [5.0, 40.0])
def test_noise_has_the_ratio(snr_db: float) -> None:
    wave = music(8)
    found = transform_waves(wave, Transforms(coloured_noise=1.0, colour_snr_db=(snr_db, snr_db)), seeds(8))
    noise = found.astype(np.float64) - wave
    ratio = 10 * np.log10((wave.astype(np.float64) ** 2).mean(axis=1) / (noise**2).mean(axis=1))
    np.testing.assert_allclose(ratio, snr_db, atol=0.01)


def test_ratio_spans_its_range() -> None:
    wave = music(60)
    noise = transform_waves(wave, Transforms(coloured_noise=1.0), seeds(60)) - wave
    ratio = 10 * np.log10((wave**2).mean(axis=1) / (noise**2).mean(axis=1))
    assert 4.9 < ratio.min() < 8 and 37 < ratio.max() < 40.1


def test_noise_is_pink_or_brown() -> None:
    wave = music(40)
    transforms = Transforms(coloured_noise=1.0, colour_snr_db=(0.0, 0.0))
    noise = transform_waves(wave, transforms, seeds(40)).astype(np.float64) - wave
    power = np.abs(np.fft.rfft(noise * np.hanning(SAMPLES))) ** 2
    octaves = np.array([power[:, 125 * 2**k : 250 * 2**k].mean(axis=1) for k in range(6)])  # 125 Hz to 8 kHz
    slope_db = 10 * np.polyfit(np.arange(6), np.log10(octaves), 1)[0]
    pink = slope_db > -4.5
    # One second gives a slope to about 0.3 dB, and these are 12 or more of each colour.
    assert slope_db[pink].mean() == pytest.approx(-3.01, abs=0.3) and slope_db[pink].std() < 0.6
    assert slope_db[~pink].mean() == pytest.approx(-6.02, abs=0.3) and slope_db[~pink].std() < 0.6
    assert 0.25 < pink.mean() < 0.75
    audible = power[:, 50:].sum(axis=1) / power.sum(axis=1)
    assert audible[pink].min() > 0.5 and audible[~pink].min() > 0.1  # not all of it an offset


def test_silence_stays_a_number() -> None:
    found = transform_waves(np.zeros((8, SAMPLES), dtype=np.float32), replace(ALL, tanh=1.0), seeds(8))
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tanh": 1.5}, "tanh is a probability.* got 1.5"),
        ({"time_stretch": -0.1}, "time_stretch is a probability"),
        ({"stretch_rate": (1.1, 0.9)}, "stretch_rate"),
        ({"jitter": (0.0, 0.03)}, "jitter"),
        ({"tanh_amount": (0.1, 1.1)}, "tanh_amount"),
        ({"colour_snr_db": (9.0, 5.0)}, "colour_snr_db"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Transforms(**wrong)


# The distortions of v2


@pytest.mark.parametrize("name", ["pitch_shift", "compress", "clip", "codec", "device"])
def test_distortion_changes_every_wave_of_probability_1_and_moves_none(name: str) -> None:
    draw = np.random.default_rng(2)
    # Noise whose level changes every 100 ms, so that there are levels to compress and times to keep.
    level = np.repeat(draw.uniform(0.05, 1, (8, 10)), SAMPLES // 10, axis=1)
    smooth = np.apply_along_axis(np.convolve, 1, draw.standard_normal((8, SAMPLES)), np.ones(5) / 5, mode="same")
    wave = (0.2 * level * smooth).astype(np.float32)
    changed = transform_waves(wave, Transforms(**{name: 1.0}), seeds(8))
    assert changed.shape == wave.shape and changed.dtype == np.float32 and np.isfinite(changed).all()
    for before, after in zip(wave, changed, strict=True):
        assert not np.array_equal(before, after)
        # Of a shifted pitch only the envelope is alike, which a phase vocoder keeps to some ms.
        pair = (np.abs(before), np.abs(after)) if name == "pitch_shift" else (before, after)
        spectra = [np.fft.rfft(each - each.mean(), 2 * SAMPLES) for each in pair]
        lag = int(np.argmax(np.fft.irfft(spectra[1] * np.conj(spectra[0]))))
        assert abs(lag if lag < SAMPLES else lag - 2 * SAMPLES) <= (160 if name == "pitch_shift" else 1)


def test_range_beyond_what_a_distortion_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.transforms\.codec_kbps must be \(low, high\) between 16 and 64"):
        Transforms(codec_kbps=(8.0, 32.0))
    with pytest.raises(ConfigError, match=r"train\.transforms\.device is a probability"):
        Transforms(device=2.0)
