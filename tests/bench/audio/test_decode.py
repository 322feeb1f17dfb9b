import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.audio.decode import decode, decode_noted, decode_stream, decoder_version
from bench.errors import DataError
from bench.values import RATE_HZ


def tone(rate_hz: int, seconds: float, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz)


def test_stereo_24_bit_44100_becomes_mean_of_channels_at_16_khz(tmp_path: Path) -> None:
    left = tone(44_100, 2.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100, subtype="PCM_24")
    wave = decode(tmp_path / "a.wav")
    assert wave.dtype == np.float32 and wave.shape == (2 * RATE_HZ,)
    middle = slice(1000, -1000)  # the resampling filter needs what is before and after the file
    assert np.abs(wave - 0.5 * tone(RATE_HZ, 2.0))[middle].max() < 1e-4


def test_16_khz_flac_passes_sample_for_sample(tmp_path: Path) -> None:
    pcm = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", pcm, RATE_HZ)
    assert np.array_equal(decode(tmp_path / "a.flac") * 2**15, pcm)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blocks_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 3 * 4096 + extra), 22_050)
    whole = decode(tmp_path / "a.wav")
    monkeypatch.setattr("bench.audio.decode.BLOCK_FRAMES", 4096)
    assert np.array_equal(decode(tmp_path / "a.wav"), whole)


def test_truncated_mp3_gives_the_audio_it_has(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.mp3", tone(RATE_HZ, 4.0), RATE_HZ, format="MP3")
    whole = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(whole[: len(whole) // 2])
    assert RATE_HZ < len(decode(tmp_path / "a.mp3")) < 3 * RATE_HZ


@pytest.mark.parametrize("content", [b"", b"ID3", b"RIFF\0\0\0\0WAVE", b"no audio at all" * 100])
@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac", "wav"])
def test_what_is_no_audio_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"bad.{suffix}") as error:
        decode(path)
    assert "exist" not in str(error.value) and "pipe" not in str(error.value)


def test_truncated_flac_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), RATE_HZ)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.flac cannot be decoded"):
        decode(tmp_path / "a.flac")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_samples_are_refused(tmp_path: Path, value: float) -> None:
    wave = tone(RATE_HZ, 1.0)
    wave[77] = value
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN or infinite"):
        decode(tmp_path / "a.wav")


def test_header_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(0), RATE_HZ)
    with pytest.raises(DataError, match="holds no samples"):
        decode(tmp_path / "a.wav")


def test_rate_that_no_sound_has_is_refused_instead_of_resampled_to_hours(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 64_000), 1)
    with pytest.raises(DataError, match=r"a\.wav says that its sample rate is 1 Hz, less than the 1000 Hz"):
        decode(tmp_path / "a.wav")


def test_name_that_is_not_utf_8_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\xff.wav")
    with path.open("wb") as file:
        soundfile.write(file, tone(RATE_HZ, 1.0), RATE_HZ, format="WAV")
    with pytest.raises(DataError, match="its name is not UTF-8; rename it"):
        decode(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(DataError, match="no audio file at"):
            decode(path)


def test_decoder_names_versions() -> None:
    assert soundfile.__version__ in decoder_version() and "soxr" in decoder_version()


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 44_100])
@pytest.mark.parametrize("level", [0.2, -0.7])
def test_constant_is_silence(tmp_path: Path, rate_hz: int, level: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(3 * rate_hz, level), rate_hz)
    decoded = decode_noted(tmp_path / "a.wav")
    assert np.abs(decoded.wave_T).max() < 1e-4
    assert decoded.note == f"has a constant offset of {level:.3f}, which was removed"


def test_dead_input_with_rounding_noise_is_silence(tmp_path: Path) -> None:
    pcm = (6000 + np.random.default_rng(0).integers(-1, 2, 2 * RATE_HZ)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", pcm, RATE_HZ)
    assert not decode(tmp_path / "a.wav").any()


@pytest.mark.parametrize("offset", [0.02, 0.1, 0.3])
def test_sound_with_a_constant_offset_is_the_sound(tmp_path: Path, offset: float) -> None:
    hiss = 0.1 * np.random.default_rng(0).standard_normal(2 * 44_100)
    soundfile.write(tmp_path / "a.wav", hiss - hiss.mean(), 44_100, subtype="FLOAT")
    soundfile.write(tmp_path / "b.wav", hiss - hiss.mean() + offset, 44_100, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav") - decode(tmp_path / "b.wav")).max() < 1e-5


def test_offsets_of_two_channels_do_not_hide_each_other(tmp_path: Path) -> None:
    wave = np.stack([tone(RATE_HZ, 1.0) + 0.3, tone(RATE_HZ, 1.0) - 0.3], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav") - tone(RATE_HZ, 1.0)).max() < 1e-3


def test_ordinary_sound_with_a_slight_offset_is_left_as_it_is(tmp_path: Path) -> None:
    pcm = (np.random.default_rng(0).normal(0, 3000, RATE_HZ) + 20).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", pcm, RATE_HZ)
    decoded = decode_noted(tmp_path / "a.flac")
    assert decoded.note == "" and np.array_equal(decoded.wave_T * 2**15, pcm)


@pytest.mark.parametrize("gain", [-1.0, -0.95, -1.1])
def test_of_channels_that_cancel_each_other_the_louder_is_taken(tmp_path: Path, gain: float) -> None:
    left = tone(RATE_HZ, 1.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, gain * left], axis=1), RATE_HZ, subtype="FLOAT")
    decoded = decode_noted(tmp_path / "a.wav")
    assert np.allclose(decoded.wave_T, left if abs(gain) <= 1 else gain * left, atol=1e-6)
    assert "channels that cancel each other out" in decoded.note


def test_independent_channels_do_not_cancel_each_other(tmp_path: Path) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal((RATE_HZ, 8))
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype="FLOAT")
    decoded = decode_noted(tmp_path / "a.wav")
    assert decoded.note == "" and np.allclose(decoded.wave_T, wave.mean(axis=1), atol=1e-6)


def test_published_benchmark_has_its_samples_as_recorded(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(RATE_HZ, 1.0) + 0.3, RATE_HZ, subtype="FLOAT")
    assert np.allclose(decode_noted(tmp_path / "a.wav", as_recorded=True).wave_T, tone(RATE_HZ, 1.0) + 0.3)


def test_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").touch()
    with pytest.raises(DataError, match=r"a\.mp3 is empty \(0 bytes\)"):
        decode(tmp_path / "a.mp3")


def test_foreign_format_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(DataError, match=r"that cannot be read \(\.m4a\); convert it: ffmpeg -i a\.m4a a\.flac"):
        decode(tmp_path / "a.m4a")


def test_half_an_hour_is_decoded_without_being_held(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.flac", "w", RATE_HZ, 1, "PCM_16") as file:
        for _minute in range(30):
            file.write(np.tile(np.array([0.1, -0.1], dtype=np.float32), 30 * RATE_HZ))
    tracemalloc.start()
    num_samples, note = decode_stream(tmp_path / "long.flac", lambda blocks: sum(len(block_T) for block_T in blocks))
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (num_samples, note) == (30 * 60 * RATE_HZ, "")
    assert peak_bytes < 20 << 20  # all samples are 115 MB


def test_an_error_of_who_uses_the_samples_is_not_told_of_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "fine.wav", np.ones(RATE_HZ), RATE_HZ)

    def fail(blocks: object) -> None:
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"^CUDA out of memory$"):
        decode_stream(tmp_path / "fine.wav", fail)
