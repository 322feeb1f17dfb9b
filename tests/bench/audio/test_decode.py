from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.audio.decode import decode, decoder_version
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
    with pytest.raises(DataError, match=f"bad.{suffix}"):
        decode(path)


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


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(DataError, match="no audio file at"):
            decode(path)


def test_decoder_names_versions() -> None:
    assert soundfile.__version__ in decoder_version() and "soxr" in decoder_version()
