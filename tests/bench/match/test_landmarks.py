"""Landmarks: equal to the original's, and found where the definition puts them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import ConfigError, StoreError
from bench.match.matchers import landmarks
from bench.match.matchers.landmarks import Config, Landmarks, build, find_landmarks, find_shifted_landmarks, load
from bench.registry import load as load_plugin

OWN_RATE_HZ = 11_025


@cache
def music(seed: int, seconds: float) -> np.ndarray:
    """Return made-up music at 16 kHz."""
    synth = load_plugin("dataset", "synth")
    wave: np.ndarray = synth.compose(np.random.default_rng(seed), round(seconds * 16_000))
    return wave


def as_track(wave: np.ndarray) -> np.ndarray:
    return np.round(wave * 32_767).astype(np.int16)


def matcher_of(waves: Iterable[np.ndarray], folder: Path, config: Config | None = None) -> Landmarks:
    build(config or Config(), (as_track(wave) for wave in waves), folder)
    return load(config or Config(), folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Landmarks:
    """Return the matcher of four tracks of made-up music of 20 s."""
    return matcher_of([music(seed, 20) for seed in range(4)], tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def analyzer() -> Any:
    """Return the original's analysis. When it is imported, it sets up the root logger, which is put back here."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from audfprint2.core.analyzer import Analyzer

    root.handlers[:], root.level = handlers, level
    return Analyzer


def chirps() -> np.ndarray:
    time_s = np.arange(8 * OWN_RATE_HZ) / OWN_RATE_HZ
    up, down = np.sin(2 * np.pi * (300 * time_s + 150 * time_s**2)), np.sin(2 * np.pi * (5_000 - 200 * time_s) * time_s)
    return up + down * (np.sin(7 * time_s) > 0)


WAVES = {
    "music": lambda: music(5, 12)[: 12 * OWN_RATE_HZ],  # at any rate it is a wave
    "noise": lambda: 0.1 * np.random.default_rng(1).standard_normal(9 * OWN_RATE_HZ),
    "chirps": chirps,
    "clicks": lambda: (np.arange(5 * OWN_RATE_HZ) % 4_001 == 7).astype(float),
    "one frame": lambda: np.random.default_rng(2).standard_normal(255),
    "three frames": lambda: np.random.default_rng(3).standard_normal(600),
    "silence": lambda: np.zeros(OWN_RATE_HZ),
}


@pytest.mark.parametrize("density", [20.0, 70.0])
@pytest.mark.parametrize("name", WAVES)
def test_landmarks_are_the_originals(name: str, density: float, analyzer: Any) -> None:
    wave = np.asarray(WAVES[name](), dtype=np.float64)
    original = analyzer(density)
    wanted = original.peaks2landmarks(original.find_peaks(wave, OWN_RATE_HZ))
    frame, hash_ = find_landmarks(Config(density=density), wave)
    packed = landmarks.pack_hashes(*np.array(wanted, dtype=np.int64).reshape(-1, 4).T[1:])
    assert list(zip(frame.tolist(), hash_.tolist(), strict=True)) == [
        (int(pair[0]), int(code)) for pair, code in zip(wanted, packed, strict=True)
    ]
    assert bool(wanted) == (name not in ("one frame", "three frames", "silence"))


def test_hashes_of_the_original_match(analyzer: Any) -> None:
    from audfprint2.core.analyzer import landmarks2hashes

    wanted = [(3, 100, 110, 4), (9, 100, 95, 5), (12, 0, 30, 62), (12, 255, 225, 2)]
    found = landmarks.pack_hashes(*np.array(wanted).T[1:])
    assert found[:2].tolist() == [410_244, 413_381]  # 100 << 12 | 10 << 6 | 4, and 100 << 12 | 59 << 6 | 5
    assert found.tolist() == landmarks2hashes(wanted)[:, 1].tolist()


def test_decay_is_the_originals() -> None:
    assert Config().decay == pytest.approx(0.9951323690, abs=1e-10)
    assert landmarks.presets()["audfprint"] == Config()


def test_a_quieter_wave_has_the_same_landmarks() -> None:
    wave = landmarks._resample(music(6, 10))
    for found, wanted in zip(
        find_landmarks(Config(), np.float32(0.1) * wave), find_landmarks(Config(), wave), strict=True
    ):
        assert np.array_equal(found, wanted)


def test_a_query_is_analysed_from_four_starts_and_its_times_are_true() -> None:
    wave = music(6, 5)
    time, hash_ = find_shifted_landmarks(Config(), wave)
    entries = set()
    for shift in (0, 64, 128, 192):
        frames, hashes = find_landmarks(Config(), wave[shift:])
        entries |= {(256 * t + shift, h) for t, h in zip(frames.tolist(), hashes.tolist(), strict=True)}
    assert list(zip(time.tolist(), hash_.tolist(), strict=True)) == sorted(entries)


def test_a_landmark_that_several_starts_show_counts_once(small: Landmarks) -> None:
    query = music(1, 20)[50_000:130_000]
    time, hash_ = find_shifted_landmarks(Config(), landmarks._resample(query))
    entries = zip(time.tolist(), hash_.tolist(), strict=True)
    matched = {h for h in set(hash_.tolist()) if len(small.table.look_up(np.array([h], np.uint32))[0])}
    distinct = {(t // 256, h) for t, h in entries if h in matched}
    score = small.find(query[None], 1).score_QR[0, 0]
    assert 0.5 * len(distinct) < score <= len(distinct) < len(time)


@pytest.mark.parametrize("frame", [100, 217, 431])
def test_a_query_cut_on_a_frame_is_found_at_that_frame(frame: int, small: Landmarks) -> None:
    # At the own rate, so that the cut's samples are the track's: all its landmarks but those at its ends are equal.
    wave = landmarks._resample(as_track(music(2, 20)).astype(np.float32) / 32_768)
    time, hash_ = find_shifted_landmarks(Config(shifts=1), wave[256 * frame :][: 5 * OWN_RATE_HZ])
    landmark, position = small.table.look_up(hash_)
    row, own = landmarks.rows_of(position, small.first_frame_R)
    found = landmarks.find_alignments(landmark, row, own * 256 - time[landmark], 0, 1)
    assert (found.row_A.tolist(), found.offset_A.tolist()) == ([2], [256.0 * frame])


@pytest.mark.parametrize("start", [0, 12_345, 100_001, 15 * 16_000])
def test_a_query_is_found_within_a_few_milliseconds(start: int, small: Landmarks) -> None:
    found = small.find(music(1, 20)[None, start : start + 80_000], 3)
    assert found.row_QR[0, 0] == 1 and abs(found.start_QR[0, 0] - start) < 16 * 12  # half a frame, 11.6 ms
    assert found.score_QR[0, 0] > 50 > found.score_QR[0, 1]


def test_starts_have_no_bias(small: Landmarks) -> None:
    # The original, which leaves out the shift of a query, would be 8.7 ms late.
    starts = np.random.default_rng(0).integers(0, 15 * 16_000, 24)
    queries = np.stack([music(3, 20)[start : start + 80_000] for start in starts])
    error_ms = (small.find(queries, 1).start_QR[:, 0] - starts) / 16
    assert abs(error_ms.mean()) < 2  # the mean of 24 errors with a standard deviation of 2 to 3 ms


def test_a_long_track_is_found_behind_the_originals_380_s(tmp_path: Path) -> None:
    wave = np.concatenate([music(seed, 25) for seed in range(16)])
    found = matcher_of([music(20, 10), wave], tmp_path).find(wave[None, 390 * 16_000 : 395 * 16_000], 1)
    assert found.row_QR[0, 0] == 1 and abs(found.start_QR[0, 0] / 16_000 - 390) < 0.012


def test_of_two_copies_the_earlier_row_comes_first(tmp_path: Path) -> None:
    waves = [music(seed, 12) for seed in (1, 0, 2, 0)]
    found = matcher_of(waves, tmp_path).find(waves[1][None, 40_000:120_000], 4)
    assert found.row_QR[0, :2].tolist() == [1, 3]
    assert found.score_QR[0, 0] == found.score_QR[0, 1] and found.start_QR[0, 0] == found.start_QR[0, 1]


def test_a_track_that_is_left_out_is_no_answer(small: Landmarks) -> None:
    query = music(1, 20)[None, :80_000]
    found, without = small.find(query, 50), small.find(query, 50, np.array([1]))
    others = found.row_QR[0] != 1
    assert found.row_QR[0, 0] == 1 and (without.row_QR != 1).all()
    count = int((found.row_QR[0, others] >= 0).sum())
    assert without.row_QR[0, :count].tolist() == found.row_QR[0, others][:count].tolist()


@pytest.mark.parametrize("samples", [0, 1, 10, 200, 80_000])
def test_silence_and_what_is_too_short_have_no_answer(samples: int, small: Landmarks) -> None:
    assert (small.find(np.zeros((2, samples), np.float32), 2).row_QR == -1).all()
    if samples <= 200:
        assert (small.find(music(1, 20)[None, :samples], 2).row_QR == -1).all()


def test_fewer_landmarks_than_the_minimum_are_no_answer(small: Landmarks) -> None:
    query = music(1, 20)[None, 50_000:130_000]
    score = small.find(query, 5).score_QR[0]
    least = int(score[1]) + 1
    strict = Landmarks(Config(min_count=least), small.table, small.first_frame_R, small.size_R).find(query, 5)
    assert strict.row_QR[0].tolist() == [1, -1, -1, -1, -1] and np.isnan(strict.score_QR[0, 1:]).all()


def test_a_table_of_other_tracks_is_refused(tmp_path: Path) -> None:
    matcher_of([music(0, 20)], tmp_path)
    np.save(tmp_path / "first_frames.npy", np.array([0, 100]))
    with pytest.raises(StoreError, match=r"first_frames\.npy is damaged \(it is not of this table\); delete"):
        load(Config(), tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("density", 0.0, "above 0 and below 4109, got 0.0"),
        ("density", 5_000.0, "above 0 and below 4109"),
        ("peaks_per_frame", 0, "1 to 256"),
        ("spread_bins", -1.0, "> 0"),
        ("fan_out", 0, ">= 1"),
        ("shifts", 257, "1 to 256"),
        ("window", -1, ">= 0"),
        ("min_count", -1, ">= 0"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{name} must be .*{rule}"):
        Config(**{name: value})
