"""Files whose header says less, or more, than there is: all of it is read, or the file is named with what is lost."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.audio.decode import decode_noted
from bench.audio.mp3 import parse_frame
from bench.errors import DataError
from bench.values import RATE_HZ, Floats

HISS = (0.1 * np.random.default_rng(0).standard_normal(3 * RATE_HZ)).astype(np.float32)
MP3_ROUNDING = 1e-6  # its decoder rounds by where its buffers lie in memory
NO_CHANGE = ("MP3", "OGG", "FLAC", "WAV", "RF64", "W64", "AIFF", "CAF", "AU")


def encoded(format_: str, wave: Floats = HISS, rate_hz: int = RATE_HZ, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate_hz, subtype, format=format_)
    return buffer.getvalue()


def read(tmp_path: Path, content: bytes) -> tuple[float, str]:
    """Return how many seconds are decoded, and the note."""
    (tmp_path / "a.bin").write_bytes(content)
    decoded = decode_noted(tmp_path / "a.bin")
    return len(decoded.wave_T) / RATE_HZ, decoded.note


def frames(mp3: bytes) -> list[bytes]:
    found, at = [], 0
    while frame := parse_frame(mp3[at : at + 4]):
        found.append(mp3[at : at + frame.num_bytes])
        at += frame.num_bytes
    return found


def id3(size: int) -> bytes:
    return b"ID3\4\0\0" + bytes([0, size >> 14, size >> 7 & 127, size & 127]) + np.random.default_rng(1).bytes(size)


def with_size(content: bytes, after: bytes, order: str, size: int) -> bytes:
    """Return the file with another size behind the first occurrence of a chunk's name."""
    at = content.index(after) + len(after)
    return content[:at] + struct.pack(order, size) + content[at + struct.calcsize(order) :]


@pytest.mark.parametrize("format_", NO_CHANGE)
def test_healthy_file_is_read_as_the_decoder_reads_it_without_a_note(tmp_path: Path, format_: str) -> None:
    (tmp_path / "a").write_bytes(encoded(format_))
    decoded = decode_noted(tmp_path / "a")
    assert decoded.note == ""
    assert np.abs(decoded.wave_T - soundfile.read(tmp_path / "a", dtype="float32")[0]).max() <= MP3_ROUNDING


def test_joined_mp3s_are_read_to_the_end(tmp_path: Path) -> None:
    seconds, note = read(tmp_path, encoded("MP3") + encoded("MP3"))
    assert seconds == pytest.approx(6.0, abs=0.2)
    assert note.startswith("is longer than its header says (3.0 s, where there are 6.")


def test_joined_mp3s_with_tags_between_them_are_read_to_the_end(tmp_path: Path) -> None:
    seconds, _note = read(tmp_path, id3(3000) + encoded("MP3") + b"TAG" + bytes(125) + id3(60_000) + encoded("MP3"))
    assert seconds == pytest.approx(6.0, abs=0.2)


def test_mp3_of_variable_bitrate_without_a_count_is_read_to_the_end(tmp_path: Path) -> None:
    quiet_then_loud = np.concatenate([HISS, np.zeros(5 * RATE_HZ, np.float32), HISS])
    whole = frames(encoded("MP3", quiet_then_loud))[1:]  # without the Xing header
    assert len({len(frame) for frame in whole}) > 2
    assert read(tmp_path, b"".join(whole))[0] == pytest.approx(11.0, abs=0.2)


def test_mp3_with_a_count_that_is_too_low_keeps_its_start(tmp_path: Path) -> None:
    stale = with_size(encoded("MP3"), b"Xing\0\0\0\x0f", ">I", 20)
    whole, _rate = soundfile.read(io.BytesIO(encoded("MP3")), dtype="float32")
    (tmp_path / "a.mp3").write_bytes(stale)
    decoded = decode_noted(tmp_path / "a.mp3")
    assert "longer than its header says (0.6 s, where there are 3.0 s)" in decoded.note
    assert np.abs(decoded.wave_T[: len(whole)] - whole)[:-1152].max() <= MP3_ROUNDING


def test_mp3_with_a_count_of_one_frame_is_read_to_the_end(tmp_path: Path) -> None:
    seconds, note = read(tmp_path, with_size(encoded("MP3"), b"Xing\0\0\0\x0f", ">I", 1))
    assert seconds == pytest.approx(3.0, abs=0.1)
    assert "longer than its header says (0.0 s, where there are 3.0 s)" in note


def test_bytes_between_frames_end_no_mp3(tmp_path: Path) -> None:
    parts = frames(encoded("MP3"))
    content = b"".join(parts[:40]) + np.random.default_rng(0).bytes(5000) + b"".join(parts[40:])
    seconds, note = read(tmp_path, content)
    assert seconds == pytest.approx(3.0, abs=0.1)
    assert "no audio between its frames" in note


def test_cut_off_mp3_is_named_with_what_is_missing(tmp_path: Path) -> None:
    whole = encoded("MP3")
    seconds, note = read(tmp_path, whole[: len(whole) // 2])
    assert 1.2 < seconds < 1.7
    assert note.startswith("is cut off: of 3.0 s the last 1.")


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + np.random.default_rng(2).bytes(30_000)])
def test_tags_behind_an_mp3_are_nothing_to_name(tmp_path: Path, tail: bytes) -> None:
    assert read(tmp_path, id3(200_000) + encoded("MP3") + tail) == (3.0, "")


@pytest.mark.parametrize(("format_", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 24_000])
def test_chained_streams_are_all_read_at_their_own_rates(
    tmp_path: Path, format_: str, subtype: str, rate_hz: int
) -> None:
    second = 0.1 * np.random.default_rng(3).standard_normal((2 * rate_hz, 2)).astype(np.float32)
    seconds, note = read(tmp_path, encoded(format_, subtype=subtype) + encoded(format_, second, rate_hz, subtype))
    assert seconds == pytest.approx(5.0, abs=0.01)
    assert note == "holds 2 streams one after another; all of them were read"


@pytest.mark.parametrize("format_", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"])
@pytest.mark.parametrize("rate_hz", [RATE_HZ, 24_000])
def test_joined_files_with_sizes_are_all_read_at_their_own_rates(tmp_path: Path, format_: str, rate_hz: int) -> None:
    other = 0.1 * np.random.default_rng(3).standard_normal((2 * rate_hz, 2)).astype(np.float32)
    (tmp_path / "a").write_bytes(encoded(format_) + encoded(format_, other, rate_hz) + encoded(format_, HISS[:99]))
    decoded = decode_noted(tmp_path / "a")
    alone = soundfile.read(io.BytesIO(encoded(format_)), dtype="float32")[0]
    assert np.array_equal(decoded.wave_T[: len(alone)], alone)  # no header is played as noise
    assert len(decoded.wave_T) == 5 * RATE_HZ + 99
    assert decoded.note == "holds 3 streams one after another; all of them were read"


@pytest.mark.parametrize("format_", ["WAV", "W64", "AIFF", "AU"])
def test_joined_files_of_which_the_last_is_cut_off_are_named(tmp_path: Path, format_: str) -> None:
    seconds, note = read(tmp_path, encoded(format_) + encoded(format_)[:48_044])
    assert seconds == pytest.approx(4.5, abs=0.01)
    assert note.endswith("it is cut off: of the last stream 50% are missing; restore it to have them")


@pytest.mark.parametrize("size", [24, 1024])
def test_w64_with_a_size_that_is_too_low_is_read_to_the_end_and_named(tmp_path: Path, size: int) -> None:
    whole = encoded("W64")
    at = whole.index(b"data\xf3") + 16
    seconds, note = read(tmp_path, whole[:at] + struct.pack("<Q", size) + whole[at + 8 :])
    assert (seconds, note) == (3.0, "is longer than its header says (0.0 s, where there are 3.0 s); all of it was read")


def test_chunk_behind_the_samples_of_a_w64_is_nothing_to_name(tmp_path: Path) -> None:
    whole = encoded("W64")
    at = whole.index(b"data\xf3")
    chunk = b"list" + whole[at + 4 : at + 16] + struct.pack("<Q", 24 + 40_000) + bytes(range(1, 201)) * 200
    assert read(tmp_path, whole + chunk)[1] == ""


def test_ogg_without_its_end_is_named(tmp_path: Path) -> None:
    whole = encoded("OGG")
    seconds, note = read(tmp_path, whole[: 2 * len(whole) // 3])
    assert 0.5 < seconds < 2.5
    assert "cut off" in note


@pytest.mark.parametrize("total", [0, RATE_HZ])
def test_flac_with_a_count_that_is_too_low_is_read_to_the_end(tmp_path: Path, total: int) -> None:
    whole = encoded("FLAC")
    stale = whole[:21] + bytes([whole[21] & 0xF0]) + struct.pack(">I", total) + whole[26:]
    (tmp_path / "a.flac").write_bytes(stale)
    decoded = decode_noted(tmp_path / "a.flac")
    assert np.array_equal(decoded.wave_T, soundfile.read(io.BytesIO(whole), dtype="float32")[0])
    assert f"({total / RATE_HZ:.1f} s, where there are 3.0 s)" in decoded.note


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE", "PCM_U8", "ULAW"])
@pytest.mark.parametrize("size", [0, 1000, 0xFFFF_FFFF])
def test_wav_with_a_size_that_is_too_low_or_unknown_is_read_to_the_end(tmp_path: Path, subtype: str, size: int) -> None:
    whole = encoded("WAV", subtype=subtype)
    (tmp_path / "a.wav").write_bytes(with_size(whole, b"data", "<I", size))
    decoded = decode_noted(tmp_path / "a.wav")
    assert np.array_equal(decoded.wave_T, soundfile.read(io.BytesIO(whole), dtype="float32")[0])
    assert decoded.note == "" if size > 1000 else "longer than its header says (0." in decoded.note


def test_wav_of_a_recorder_that_lost_power_has_no_size_at_all(tmp_path: Path) -> None:
    unfinished = with_size(with_size(encoded("WAV"), b"data", "<I", 0), b"RIFF", "<I", 0)
    assert read(tmp_path, unfinished)[0] == 3.0


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "ALAW"])
def test_wav_of_a_compressed_encoding_without_a_size_is_read_to_the_end(tmp_path: Path, subtype: str) -> None:
    seconds, note = read(tmp_path, with_size(encoded("WAV", subtype=subtype), b"data", "<I", 0))
    assert seconds == pytest.approx(3.0, abs=0.1) and "longer than its header says (0.0 s" in note


@pytest.mark.parametrize(
    "tail", [b"LIST\x04\0\0\0abcd", b"bext\x02\0\0\0hiiXML\x04\0\0\0<x/>", bytes(30_000)], ids=["list", "bext", "zeros"]
)
def test_chunks_and_padding_behind_the_samples_are_no_audio(tmp_path: Path, tail: bytes) -> None:
    assert read(tmp_path, encoded("WAV") + tail) == (3.0, "")


def test_metadata_before_the_samples_does_not_hide_them(tmp_path: Path) -> None:
    whole = encoded("WAV")
    bext = b"bext" + struct.pack("<I", 602) + b"recorder".ljust(602, b"\0") + b"iXML\x04\0\0\0<x/>"
    assert read(tmp_path, whole[:12] + bext + whole[12:]) == (3.0, "")
    unfinished = with_size(whole, b"data", "<I", 0)
    assert read(tmp_path, unfinished[:12] + bext + unfinished[12:])[0] == 3.0


@pytest.mark.parametrize("size", [0, 1000])
def test_rf64_with_a_size_that_is_too_low_is_read_to_the_end(tmp_path: Path, size: int) -> None:
    whole = encoded("RF64")
    at = whole.index(b"ds64") + 16
    assert read(tmp_path, whole[:at] + struct.pack("<Q", size) + whole[at + 8 :])[0] == 3.0


def test_rf64_whose_size_was_never_written_is_read_to_the_end(tmp_path: Path) -> None:
    whole = encoded("RF64")
    at = whole.index(b"ds64") + 16
    assert read(tmp_path, whole[:at] + b"\xff" * 8 + whole[at + 8 :]) == (3.0, "")


@pytest.mark.parametrize("tail", [b"", b"axml\x04\0\0\0<x/>"], ids=["alone", "axml"])
def test_bw64_is_read_as_rf64(tmp_path: Path, tail: bytes) -> None:
    assert read(tmp_path, b"BW64" + encoded("RF64")[4:] + tail) == (3.0, "")
    assert "cut off: of 3.0 s" in read(tmp_path, b"BW64" + encoded("RF64")[4:50_000])[1]


@pytest.mark.parametrize(("format_", "name", "order"), [("AIFF", b"SSND", ">I"), ("CAF", b"data", ">Q")])
@pytest.mark.parametrize("size", [0, 1000])
def test_aiff_and_caf_are_read_to_the_end(tmp_path: Path, format_: str, name: bytes, order: str, size: int) -> None:
    assert read(tmp_path, with_size(encoded(format_), name, order, size))[0] == 3.0


@pytest.mark.parametrize("size", [0, 1000, 0xFFFF_FFFF])
def test_au_is_read_to_the_end(tmp_path: Path, size: int) -> None:
    whole = encoded("AU")
    assert read(tmp_path, whole[:8] + struct.pack(">I", size) + whole[12:])[0] == 3.0


@pytest.mark.parametrize("format_", ["WAV", "RF64", "W64", "AIFF", "CAF", "AU"])
def test_cut_off_file_is_named_with_what_is_missing(tmp_path: Path, format_: str) -> None:
    whole = encoded(format_)
    seconds, note = read(tmp_path, whole[: len(whole) // 2])
    assert seconds == pytest.approx(1.5, abs=0.1)
    assert note.startswith(("is cut off: of 3.0 s the last 1.5 s", "is cut off: the last 5"))


def test_file_of_more_than_4_gib_whose_size_wrapped_is_opened_whole(tmp_path: Path) -> None:
    whole = encoded("WAV", np.zeros((10, 8), np.float32), 192_000, "PCM_24")
    at = whole.index(b"data") + 8
    num_bytes = 24 * 200_000_000
    path = tmp_path / "long.wav"
    path.write_bytes(with_size(whole[:at], b"data", "<I", num_bytes & 0xFFFF_FFFF))
    with path.open("r+b") as file:  # a sparse file: it takes no space
        for sounding in (num_bytes & 0xFFFF_FFFF, num_bytes - 1):  # zeros behind the size that is told are padding
            file.seek(at + sounding)
            file.write(b"\1")
    from bench.audio.decode import Recording

    with Recording(path) as recording:
        assert recording.most_frames == pytest.approx(200_000_000, abs=8)


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize(("format_", "subtype"), [("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_24")])
def test_rates_from_8_to_192_khz_and_eight_channels_of_24_bit_and_float(
    tmp_path: Path, rate_hz: int, format_: str, subtype: str
) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
    soundfile.write(tmp_path / "a", np.stack(8 * [tone], axis=1), rate_hz, subtype, format=format_)
    decoded = decode_noted(tmp_path / "a")
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
    assert decoded.note == "" and abs(len(decoded.wave_T) - RATE_HZ) <= 1
    assert np.abs(decoded.wave_T[:RATE_HZ] - expected[: len(decoded.wave_T)])[500:-500].max() < 1e-3


def test_nothing_is_made_of_random_bytes(tmp_path: Path) -> None:
    magics: list[bytes] = [b"RIFF", b"RF64", b"OggS", b"fLaC", b".snd", b"caff", b"FORM", b"riff", b"ID3", b"\xff\xfb"]
    for magic in magics:
        for seed in range(12):
            (tmp_path / "a.bin").write_bytes(magic + np.random.default_rng(seed).bytes(seed * 37))
            with pytest.raises(DataError, match=r"a\.bin"):
                decode_noted(tmp_path / "a.bin")
