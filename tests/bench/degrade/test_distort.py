"""Distortions of the music: what each does by hand-worked numbers, and that none of them moves it in time."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from bench.degrade import distort
from bench.degrade.cells import describe_distortion, list_distortions
from bench.degrade.distort import (
    clip,
    code,
    code_mu_law,
    compress,
    compressed_level,
    count_samples,
    measure_pitch,
    pass_telephone,
    play_by_loudspeaker,
    record_in_room,
    stretch,
)
from bench.degrade.room import DIRECT_AT
from bench.errors import ConfigError
from bench.settings import MP3_KBPS, EvalConfig
from bench.values import RATE_HZ

CONTEXT, QUERY = RATE_HZ, 2 * RATE_HZ
NAMES = [name for name in list_distortions(EvalConfig(version="v2")) if name != "loudspeaker"]
KEEPS_TIME = [name for name in NAMES if name.partition("_")[0] in ("mp3", "opus", "clip", "compress", "telephone")]


def tone(frequency_hz: float, seconds: float, peak: float = 0.5) -> np.ndarray:
    return peak * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def music(seconds: float, seed: int = 0) -> np.ndarray:
    """Return noise that falls with frequency, and whose level changes ten times a second."""
    draw = np.random.default_rng(seed)
    num_samples = round(seconds * RATE_HZ)
    spectrum = np.fft.rfft(draw.standard_normal(num_samples))
    spectrum /= np.maximum(1.0, np.fft.rfftfreq(num_samples, 1 / RATE_HZ) / 500)
    at = np.arange(0, num_samples, 1_600)
    level = np.interp(np.arange(num_samples), at, draw.uniform(0.1, 1, len(at)))
    wave = np.fft.irfft(spectrum, num_samples) * level
    return 0.9 * wave / np.abs(wave).max()


def frequency_of(wave: np.ndarray) -> float:
    """Return the frequency of the strongest line, between bins by a parabola."""
    level = np.log(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) + 1e-12)
    top = int(np.argmax(level[1:-1])) + 1
    before, at, after = level[top - 1 : top + 2]
    return float((top + (before - after) / (2 * (before - 2 * at + after))) * RATE_HZ / len(wave))


def lag_of(later: np.ndarray, earlier: np.ndarray) -> int:
    """Return by how many samples the first wave is behind the second: the largest cross-correlation."""
    size = 2 * max(len(later), len(earlier))
    correlation = np.fft.irfft(np.fft.rfft(later, size) * np.conj(np.fft.rfft(earlier, size)))
    at = int(np.argmax(correlation))
    return at if at < size // 2 else at - size


def level_db(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave))))


# Speed, tempo, pitch


@pytest.mark.parametrize(("speed", "wanted_hz"), [(1.01, 1_010), (0.98, 980), (2.0, 2_000)])
def test_tone_of_1_khz_rises_with_the_speed_and_shortens(speed: float, wanted_hz: float) -> None:
    wave = tone(1_000, 4.0)
    faster = distort.change_speed(wave, speed)
    assert frequency_of(faster) == pytest.approx(wanted_hz, abs=0.1)
    assert len(faster) == pytest.approx(len(wave) / speed, abs=1)


@pytest.mark.parametrize("tempo", [0.96, 1.04])
def test_tempo_keeps_the_pitch_and_changes_the_length(tempo: float) -> None:
    wave = tone(1_000, 4.0)
    changed = stretch(wave, tempo)
    assert frequency_of(changed[8_000:-8_000]) == pytest.approx(1_000, abs=1)
    assert len(changed) == pytest.approx(len(wave) / tempo, abs=2)


@pytest.mark.parametrize(("cents", "wanted_hz"), [(50, 1_029.30), (-50, 971.53), (1_200, 2_000)])
def test_pitch_keeps_the_length_and_moves_the_tone(cents: float, wanted_hz: float) -> None:
    wave = tone(1_000, 4.0)
    changed = stretch(wave, pitch_cents=cents)  # 1,000 x 2 ** (cents / 1,200)
    assert frequency_of(changed[8_000:-8_000]) == pytest.approx(wanted_hz, abs=2)  # good to 3 cents
    assert len(changed) == len(wave)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in KEEPS_TIME])
def test_sounds_of_a_faster_or_stretched_query_come_when_its_speed_says(name: str) -> None:
    before, after = count_samples(name, CONTEXT, QUERY)
    clicks = np.zeros(before + after)
    at = before + np.arange(0, 24_000, 4_000)
    clicks[at] = 1.0
    query = distort.distort(name, clicks, CONTEXT, QUERY).wave_T
    for click in at[1:]:  # the first is at sample 0 of the query, which has no sample before it
        wanted = round((click - before) / distort.track_speed(name))
        near = np.abs(query[wanted - 1_000 : wanted + 1_000])
        # A resampled click is at its sample; the phase vocoder is good to a millisecond.
        assert abs(int(np.argmax(near)) - 1_000) <= (1 if name.startswith("speed") else RATE_HZ // 1_000)


@pytest.mark.parametrize("cents", [-100.0, -34.5, 0.0, 50.0])
def test_achieved_pitch_is_measured_from_the_spectrum(cents: float) -> None:
    wave = music(4.0) + sum(tone(220 * k, 4.0, 0.3 / k) for k in range(1, 15))
    moved = distort.change_speed(wave, 2 ** (cents / 1_200))  # moves every frequency by exactly that
    assert measure_pitch(wave, moved, round(cents / 50) * 50.0) == pytest.approx(cents, abs=3)


# Codecs


@pytest.mark.parametrize(
    ("codec", "kbps"), [*(("mp3", kbps) for kbps in MP3_KBPS), *(("opus", kbps) for kbps in (6.5, 8, 16, 64))]
)
def test_delay_of_a_codec_is_taken_out_and_its_rate_is_achieved(codec: str, kbps: float) -> None:
    wave = music(4.0)
    coded, achieved_kbps = code(wave, codec, kbps)
    assert len(coded) == len(wave)
    assert abs(lag_of(coded, wave)) <= 1
    # MP3 has a constant rate and a last frame; Opus only aims at its rate.
    assert achieved_kbps == pytest.approx(kbps, rel=0.04 if codec == "mp3" else 0.25)


def test_lower_rate_loses_more() -> None:
    wave = music(4.0)
    left = [level_db(code(wave, "mp3", kbps)[0] - wave) - level_db(wave) for kbps in (16, 32, 64)]
    assert left[0] > left[1] > left[2] and left[2] < -10


def test_codec_that_libsndfile_lacks_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    distort.check_codecs("eval.v2.codecs", ("mp3-16", "opus-8"))
    monkeypatch.setattr(soundfile, "available_subtypes", lambda _: {"VORBIS": "Vorbis"})
    with pytest.raises(
        ConfigError,
        match=r"eval\.v2\.codecs uses opus-8, which libsndfile .* cannot write; install soundfile from PyPI",
    ):
        distort.check_codecs("eval.v2.codecs", ("opus-8",))


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [(0, 0), (4, 8), (8, 8), (12, 16), (1_000, 988), (-1_000, -988), (32_767, 32_124), (-32_768, -32_124)],
)
def test_mu_law_by_the_table_of_g711(sample: int, wanted: int) -> None:
    # In units of 16 bits: the first decision values are 4 and 12, the first outputs 0, 8 and 16. 1,000 + 132 = 1,132 is
    # in the segment from 1,024 to 2,047 with steps of 64: step 1, whose middle is 1,120, and 1,120 - 132 = 988.
    assert round(code_mu_law(np.array([sample / 32_768]))[0] * 32_768) == wanted


# Dynamics


@pytest.mark.parametrize("depth_db", [3.0, 12.0])
def test_wave_is_cut_off_at_exactly_the_stated_level(depth_db: float) -> None:
    wave = tone(440, 1.0, 0.8)
    limit = np.abs(wave).max() * 10 ** (-depth_db / 20)
    clipped = clip(wave, depth_db)
    assert np.abs(clipped).max() == pytest.approx(limit, rel=1e-12)
    np.testing.assert_array_equal(clipped[np.abs(wave) <= limit], wave[np.abs(wave) <= limit])


def test_share_of_clipped_samples_of_a_sine_by_hand() -> None:
    # 6.02 dB below the peak is half of it: a sine is above it for 2/3 of the time.
    name = "clip_6.0206"
    before, after = count_samples(name, CONTEXT, QUERY)
    achieved = distort.distort(name, tone(440, (before + after) / RATE_HZ), CONTEXT, QUERY).achieved
    assert achieved["clipped_percent"] == pytest.approx(200 / 3, abs=0.5)
    # Half of its peak, clipped: mean square 0.25 x 2/3 plus what is left of the sine around its zeros.
    mean_square = 0.25 * 2 / 3 + (1 / 3) * 0.5 * (1 - np.sin(np.pi / 3) / (np.pi / 3))
    wanted_db = 10 * np.log10(0.25 / mean_square) - 10 * np.log10(2)
    assert achieved["crest_change_db"] == pytest.approx(wanted_db, abs=0.05)


def test_static_curve_by_hand() -> None:
    # The threshold is -30 dB: at a ratio of 8, 24 dB above it become 3.
    np.testing.assert_allclose(compressed_level(np.array([-60.0, -30.0, -6.0, 0.0]), 8), [-60, -30, -27, -26.25])


@pytest.mark.parametrize(("part_db", "wanted_db"), [(-6.0, -27.0), (-20.0, -28.75), (-40.0, -40.0)])
def test_steady_tone_settles_on_the_static_curve(part_db: float, wanted_db: float) -> None:
    peak = tone(1_000, 0.1, 1.0)
    steady = tone(1_000, 3.0, 10 ** (part_db / 20))
    compressed = compress(np.concatenate([peak, steady]), 8.0)
    settled = compressed[-RATE_HZ:]
    assert 20 * np.log10(np.abs(settled).max()) == pytest.approx(wanted_db, abs=0.1)


def test_compressor_narrows_the_range_of_levels() -> None:
    before, after = count_samples("compress_8", CONTEXT, QUERY)
    achieved = distort.distort("compress_8", music((before + after) / RATE_HZ), CONTEXT, QUERY).achieved
    assert achieved["level_range_change_db"] < -3


# Devices


def test_telephone_passes_its_band_alone() -> None:
    loss_db = {hz: level_db(pass_telephone(tone(hz, 1.0))) - level_db(tone(hz, 1.0)) for hz in (1_000, 3_000)}
    assert all(abs(loss) < 0.3 for loss in loss_db.values())
    for outside_hz in (100, 5_000):
        both = tone(outside_hz, 1.0) + tone(1_000, 1.0)
        line = np.abs(np.fft.rfft(pass_telephone(both) * np.hanning(len(both))))
        assert 20 * np.log10(line[outside_hz] / line[1_000]) < -30  # what is left is the noise of 8 bits


def test_loudspeaker_has_no_bass_and_adds_no_delay() -> None:
    quiet = 0.01  # of a peak elsewhere, so that the limiter is linear
    peak = np.zeros(RATE_HZ)
    peak[100] = 1.0
    gain_db = {
        hz: level_db(play_by_loudspeaker(np.concatenate([peak, tone(hz, 1.0, quiet)]))[-8_000:-1_000])
        - level_db(tone(hz, 1.0, quiet))
        for hz in (200, 600, 1_200)
    }
    assert gain_db[600] - gain_db[200] == pytest.approx(30, abs=3)
    assert gain_db[600] - gain_db[1_200] == pytest.approx(0, abs=0.5)
    wave = music(2.0)
    assert lag_of(play_by_loudspeaker(wave), wave) == 0


def test_recording_in_a_room_without_walls_adds_no_delay() -> None:
    response = np.zeros(300, np.float32)
    response[DIRECT_AT] = 1
    wave = music(2.0)
    recorded = record_in_room(wave, response)
    assert len(recorded) == len(wave) - DIRECT_AT and lag_of(recorded, wave) == 0


# All of them


@pytest.mark.parametrize("name", KEEPS_TIME)
def test_query_begins_where_it_did(name: str) -> None:
    before, after = count_samples(name, CONTEXT, QUERY)
    assert before == CONTEXT
    wave = music((before + after) / RATE_HZ)
    query = distort.distort(name, wave, CONTEXT, QUERY).wave_T
    assert abs(lag_of(query, wave[CONTEXT : CONTEXT + QUERY])) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_silence_and_one_click_are_distorted_too_and_twice_alike(name: str) -> None:
    before, after = count_samples(name, CONTEXT, QUERY)
    silence = np.zeros(before + after)
    still = distort.distort(name, silence, CONTEXT, QUERY)
    assert still.wave_T.shape == (QUERY,) and np.abs(still.wave_T).max() < 1e-3
    click = silence.copy()
    click[before + 9_000] = 1.0
    first, again = (distort.distort(name, click, CONTEXT, QUERY) for _ in range(2))
    np.testing.assert_array_equal(first.wave_T, again.wave_T)
    for distorted in (still, first):
        assert np.isfinite(distorted.wave_T).all() and np.isfinite(list(distorted.achieved.values())).all()


def test_speed_and_tempo_are_measured_and_readers_are_told_in_per_cent() -> None:
    for name, quantity in (("speed_1.01", "speed"), ("tempo_0.96", "tempo")):
        before, after = count_samples(name, CONTEXT, QUERY)
        achieved = distort.distort(name, music((before + after) / RATE_HZ), CONTEXT, QUERY).achieved
        assert achieved[quantity] == pytest.approx(float(name.partition("_")[2]), abs=1e-4)
    wanted = {
        "speed_1.01": "speed +1 %", "tempo_0.96": "tempo -4 %", "pitch_+50": "pitch +50 cents",
        "mp3_16": "MP3 16 kbit/s", "clip_12": "clipped by 12 dB", "compress_8": "compressed 8:1",
        "telephone": "telephone",
    }  # fmt: skip
    assert {name: describe_distortion(name) for name in wanted} == wanted
