"""The Aachen Impulse Response database, from `.mat` files that the test writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.io import savemat

from bench.datasets import air
from bench.degrade.room import DIRECT_AT, RoomBank, measure_t60, prepare_rooms
from bench.errors import DataError
from bench.store import Store
from bench.testing import check_responses
from bench.values import RATE_HZ, no_progress


def decay(t60_s: float, rate_hz: int, seconds: float = 0.6, seed: int = 0) -> np.ndarray:
    """Return decaying noise behind a direct sound at 10 ms."""
    envelope = 10.0 ** (-3 * np.arange(round(seconds * rate_hz)) / rate_hz / t60_s)
    wave = 0.1 * envelope * np.random.default_rng(seed).standard_normal(len(envelope))
    wave[0] = 1.0
    return np.concatenate([np.zeros(rate_hz // 100), wave])


def saved(root: Path, name: str, wave: Any, rate_hz: Any = 48_000, **others: Any) -> Path:
    path = root / "AIR_1_4" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(
        path, {"h_air": np.atleast_2d(wave), "air_info": {"fs": rate_hz, "room": "x"}} | others, do_compression=True
    )
    return path


def read(root: Path) -> air.Air:
    return air.build(air.Config(), root)


def prepared(root: Path) -> RoomBank:
    return prepare_rooms(Store(root / "store"), "air", read(root), no_progress)


def test_rooms_of_the_paper_test_and_the_others_train(tmp_path: Path) -> None:
    names = [
        "air_binaural_lecture_0_1_1.mat",
        "air_binaural_aula_carolina_0_1_1_90_3.mat",
        "air_phone_office_hfrp_1.mat",
        "air_phone_bathroom_hhp_0.mat",
        "air_phone_BT_meeting_hhp_0.mat",
        "air_binaural_booth_1_0_2.mat",
        "air_binaural_stairway_1_1_1_0.mat",
    ]
    for seed, name in enumerate(names):
        saved(tmp_path, name, decay(0.3, 48_000, seed=seed))
    (tmp_path / "AIR_1_4" / "load_air.m").write_text("% reads a response")
    source = read(tmp_path)
    assert {name: source.load(name).split for name in source.names()} == {
        "aula_carolina/air_binaural_aula_carolina_0_1_1_90_3.mat": "train",
        "bathroom/air_phone_bathroom_hhp_0.mat": "train",
        "booth/air_binaural_booth_1_0_2.mat": "test",
        "lecture/air_binaural_lecture_0_1_1.mat": "test",
        "meeting/air_phone_BT_meeting_hhp_0.mat": "test",
        "office/air_phone_office_hfrp_1.mat": "test",
        "stairway/air_binaural_stairway_1_1_1_0.mat": "train",
    }
    check_responses(source)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_response_is_resampled_aligned_and_keeps_its_t60(tmp_path: Path, rate_hz: int) -> None:
    saved(tmp_path, "air_binaural_lecture_0_1_1.mat", decay(0.4, rate_hz), float(rate_hz))
    wave_T = read(tmp_path).load("lecture/air_binaural_lecture_0_1_1.mat").wave_T
    assert wave_T.dtype == np.float32 and int(np.argmax(np.abs(wave_T))) == DIRECT_AT
    assert len(wave_T) == pytest.approx(0.6 * RATE_HZ + DIRECT_AT, abs=2)
    # 3 %: a t60 of noise is estimated from one realisation.
    assert measure_t60(wave_T)[0] == pytest.approx(0.4, rel=0.03)


@pytest.mark.parametrize("shape", [(2, -1), (-1, 2)])
def test_first_channel_of_a_stereo_response_is_used(tmp_path: Path, shape: tuple[int, int]) -> None:
    first, second = decay(0.4, 16_000), decay(0.2, 16_000, seed=1)
    both = np.stack([first, second]) if shape[0] == 2 else np.stack([first, second], axis=1)
    saved(tmp_path, "air_binaural_office_0_1_1.mat", both, 16_000)
    saved(tmp_path, "air_binaural_office_0_1_2.mat", first, 16_000)
    source = read(tmp_path)
    stereo_T, mono_T = (source.load(name).wave_T for name in source.names())
    np.testing.assert_array_equal(stereo_T, mono_T)


def test_bad_files_are_left_out_with_a_sentence_and_stop_no_other(tmp_path: Path) -> None:
    wave = decay(0.3, 48_000)
    good = saved(tmp_path, "air_binaural_office_0_0_1.mat", wave)
    bad = {
        "cut": "cannot be read as a MATLAB file", "text": "cannot be read as a MATLAB file",
        "variable": "has no matrix of numbers h_air", "words": "has no matrix of numbers h_air",
        "rate": "has no sample rate from 8000 to 192000 Hz", "info": "has no sample rate",
        "nan": "holds NaN or infinite samples", "silent": "is empty or silent", "empty": "holds no samples",
        "hiss": "no decay to measure",
    }  # fmt: skip
    paths = {what: tmp_path / "AIR_1_4" / f"air_binaural_{what}_0_0_1.mat" for what in bad}
    whole = good.read_bytes()
    paths["cut"].write_bytes(whole[: len(whole) // 2])
    paths["text"].write_text("no MATLAB file, but longer than its header: " + "x" * 200)
    savemat(paths["variable"], {"h": wave, "air_info": {"fs": 48_000}})
    savemat(paths["words"], {"h_air": "words", "air_info": {"fs": 48_000}})
    saved(tmp_path, paths["rate"].name, wave, 48_000.5)
    savemat(paths["info"], {"h_air": wave})
    saved(tmp_path, paths["nan"].name, np.where(np.arange(len(wave)) == 900, np.nan, wave))
    saved(tmp_path, paths["silent"].name, 0 * wave)
    savemat(paths["empty"], {"h_air": np.zeros((1, 0)), "air_info": {"fs": 48_000}})
    saved(tmp_path, paths["hiss"].name, np.random.default_rng(1).standard_normal(20_000))
    bank = prepared(tmp_path)
    assert bank.table["name"].tolist() == ["office/air_binaural_office_0_0_1.mat"]
    problems = {name.partition("/")[0]: problem for name, problem in bank.left_out.to_numpy()}
    assert problems.keys() == bad.keys()
    assert [what for what, reason in bad.items() if reason not in problems[what]] == []


def test_every_cut_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path, "air_binaural_office_0_0_1.mat", decay(0.3, 16_000, 0.3), 16_000)
    whole, source = path.read_bytes(), read(tmp_path)
    for length in (0, 3, 60, 127, 128, 130, 140, 200, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"air_binaural_office_0_0_1\.mat (cannot be read|has no|holds no)"):
            source.load("office/air_binaural_office_0_0_1.mat")


def test_converted_files_are_read_and_long_rooms_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "rir" / "air"
    folder.mkdir(parents=True)
    soundfile.write(folder / "air_type1_air_binaural_lecture_0_1.wav", decay(0.5, 16_000), 16_000)
    soundfile.write(folder / "air_type1_air_binaural_hall_0_1.wav", decay(3.0, 16_000, 3.0), 16_000, subtype="FLOAT")
    source = read(tmp_path)
    assert source.load("lecture/air_type1_air_binaural_lecture_0_1.wav").split == "test"
    with pytest.raises(DataError, match=r"hall.*rings for (2\.9|3\.0|3\.1) s, longer than max_t60_s = 2"):
        source.load("hall/air_type1_air_binaural_hall_0_1.wav")


def test_folder_without_the_database_is_told_its_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file such as air_binaural_lecture_0_1_1\.mat in .*AIR_1_4.*unpack"):
        read(tmp_path)
    with pytest.raises(DataError, match="--data-root"):
        air.build(air.Config(), None)


def test_changed_file_changes_the_digest(tmp_path: Path) -> None:
    path = saved(tmp_path, "air_binaural_office_0_0_1.mat", decay(0.3, 16_000), 16_000)
    before = read(tmp_path).digest()
    assert before == read(tmp_path).digest()
    path.write_bytes(path.read_bytes() + b" ")
    assert before != read(tmp_path).digest() != air.build(air.Config(max_t60_s=1.0), tmp_path).digest()
