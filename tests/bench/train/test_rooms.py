"""Rooms of training: their t60, how much of a response is kept, and the past that still rings in a segment."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.fft import next_fast_len

from bench import registry
from bench.audio.pcm import prepare_corpus
from bench.config import resolve
from bench.data import TrainingSet, _build_training_measured, _prepare_measured, _prepare_simulated
from bench.degrade.cells import validation_config
from bench.degrade.measured import keep_from_training
from bench.degrade.room import DIRECT_AT, RoomBank, prepare_rooms
from bench.errors import BenchError, ConfigError, DataError
from bench.settings import RunConfig, TrainConfig
from bench.store import Store
from bench.testing import Arrays
from bench.train.draws import draw_pairs
from bench.train.pairs import Batch, cut_pairs, degrade_pairs
from bench.train.pool import TrainingPool, load_pool
from bench.values import RATE_HZ, no_progress

SEGMENT = 4_000  # a quarter of a second
CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_pairs=6, clean=0.0, noise_only=0.0, reverb_only=1.0, noise_and_reverb=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    store = Store(tmp_path_factory.mktemp("store"))
    waves = {f"m{i}": np.random.default_rng(i).uniform(-0.5, 0.5, 48_000) for i in range(4)}
    corpora = [
        prepare_corpus(store, name, Arrays(waves, {}), min_track_s=1.0, workers=1) for name in ("music", "noise")
    ]
    return TrainingSet(*corpora, ())


def bank_of(*responses: np.ndarray) -> RoomBank:
    """Return a bank of responses, each behind DIRECT_AT zeros: the rise before the direct sound."""
    import pandas as pd

    waves = [np.concatenate([np.zeros(DIRECT_AT), wave]).astype(np.float32) for wave in responses]
    lengths = np.array([len(wave) for wave in waves])
    table = pd.DataFrame({"name": "x", "split": "train", "start": lengths.cumsum() - lengths, "num_samples": lengths})
    return RoomBank(table, pd.DataFrame(), np.concatenate(waves), "bank")


def pool_of(data: TrainingSet, config: TrainConfig, *responses: np.ndarray) -> TrainingPool:
    return load_pool(replace(data, banks=(bank_of(*responses),)), data.music.numbers("train"), config, SEGMENT, CPU)


def click(pool: TrainingPool, before: int) -> Batch:
    """Return a batch of one pair in room 0, of music that is one click, so many samples before its segment."""
    total = pool.context + SEGMENT + DIRECT_AT
    music_BT = torch.zeros(1, total, dtype=torch.int16)
    music_BT[0, pool.context - before] = 16_384
    row, one = torch.zeros(1, dtype=torch.int64), torch.ones(1, 1)
    silence = torch.zeros_like(music_BT)
    return Batch(music_BT[:, :SEGMENT], music_BT, silence, row, row, 0 * one, one, torch.zeros(1, 0, 2, 2))


def echo_after(samples: int) -> np.ndarray:
    wave = np.zeros(samples + 1)
    wave[0], wave[samples] = 1.0, 0.5
    return wave


# The past


def test_defaults_read_and_convolve_as_before(data: TrainingSet) -> None:
    long = np.random.default_rng(0).standard_normal(20_000)
    pool = pool_of(data, CONFIG, long)
    assert pool.context == 8_000 and pool.fft_samples == next_fast_len(8_000 + SEGMENT + DIRECT_AT, real=True)
    cut = torch.zeros(1, pool.fft_samples)
    cut[0, DIRECT_AT:8_000] = torch.from_numpy(long[: 8_000 - DIRECT_AT].astype(np.float32))
    assert torch.equal(pool.spectra_RF, torch.fft.rfft(cut))


def test_echo_of_the_past_is_heard_where_the_response_is_whole(data: TrainingSet) -> None:
    # A click 10,000 samples before the segment, with an echo 12,000 samples later: 2,000 samples into the segment.
    room = echo_after(12_000)
    whole = pool_of(data, replace(CONFIG, max_rir_s=0.0), room)
    assert whole.context == RATE_HZ  # 1 s
    _, heard_BT = degrade_pairs(click(whole, 10_000), whole)
    assert int(heard_BT.abs().argmax()) == 2_000
    # Alone in the segment, it has the peak of a positive, 1; the rest is rounding of the transform.
    assert heard_BT[0, 2_000] == pytest.approx(1.0) and float(heard_BT.abs().sum()) == pytest.approx(1.0, abs=0.01)
    cut = pool_of(data, replace(CONFIG, past_s=1.0), room)  # responses of 0.5 s: the echo is cut off
    assert cut.context == RATE_HZ
    assert not torch.any(cut_wet(cut, click(cut, 10_000)).abs() > 1e-6)


def cut_wet(pool: TrainingPool, batch: Batch) -> torch.Tensor:
    """Return the reverberated segment at the level that it has, without the scaling to a peak of 1."""
    from bench.train.pairs import _reverberate

    here = slice(pool.context, pool.context + SEGMENT)
    return _reverberate(batch.music_BT.float() / 16_384, pool.spectra_RF[batch.response], here, pool.fft_samples)


def test_room_of_1_s_falls_by_15_db_in_the_quarter_of_a_second_of_a_segment(data: TrainingSet) -> None:
    room = 10.0 ** (-3 * np.arange(24_000) / RATE_HZ)  # 60 dB in 1 s
    pool = pool_of(data, replace(CONFIG, max_rir_s=0.0), room)
    wet_T = cut_wet(pool, click(pool, 8_000))[0].numpy()
    # The click was 0.5 s ago: 30 dB down at the segment's start, 45 dB at its end.
    level_db = 20 * np.log10(np.abs(wet_T[[0, -1]]))
    np.testing.assert_allclose(level_db, [-30, -45 + 60 / RATE_HZ], atol=0.01)  # one sample before the end


@pytest.mark.parametrize(
    ("max_rir_s", "past_s", "context"), [(0.0, 0.0, 16_000), (0.0, 0.1, 1_600), (1.5, 0.2, 3_200), (0.5, 2.0, 32_000)]
)
def test_positive_is_the_convolution_with_all_that_its_past_allows(
    data: TrainingSet, max_rir_s: float, past_s: float, context: int
) -> None:
    rooms = [np.random.default_rng(i).standard_normal(n) * 0.9997 ** np.arange(n) for i, n in enumerate((900, 30_000))]
    config = replace(CONFIG, max_rir_s=max_rir_s, past_s=past_s)
    pool = pool_of(data, config, *rooms)
    assert pool.context == context
    draws = draw_pairs(pool, config, 0, 0)
    batch = cut_pairs(draws, pool, CPU)
    _, positive_BT = degrade_pairs(batch, pool)
    kept = round(max_rir_s * RATE_HZ) or None
    assert set(draws.response_B.tolist()) == {0, 1}
    for row, response in enumerate(draws.response_B.tolist()):
        room = np.concatenate([np.zeros(DIRECT_AT), rooms[response]])[:kept]
        wet = np.convolve(batch.music_BT[row].numpy().astype(np.float64), room)[DIRECT_AT + context :][:SEGMENT]
        # 1e-4: transforms in float32, of a response as loud at its end as at its beginning.
        np.testing.assert_allclose(positive_BT[row].numpy(), wet / np.abs(wet).max(), atol=1e-4)


def test_other_settings_of_rooms_leave_the_draws_alone(data: TrainingSet) -> None:
    room = np.random.default_rng(0).standard_normal(20_000)
    plain, longer = CONFIG, replace(CONFIG, max_rir_s=0.0, past_s=2.0, t60_s=(0.5, 2.0))
    one, other = (draw_pairs(pool_of(data, config, room), config, 3, 7) for config in (plain, longer))
    for name, value in vars(one).items():
        assert np.array_equal(np.asarray(value), np.asarray(getattr(other, name))), name


# The range of t60


def test_rooms_of_another_t60_train_and_leave_the_test_rooms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.datasets import rooms

    def simulate(t60_s: float, draw: np.random.Generator, *_: object) -> np.ndarray:
        length = round(1.2 * t60_s * RATE_HZ)
        wave = 0.1 * draw.standard_normal(length) * 10.0 ** (-3 * np.arange(length) / RATE_HZ / t60_s)
        return np.concatenate([np.zeros(DIRECT_AT), [1.0], wave]).astype(np.float32)

    def prepare(*overrides: str) -> list[RoomBank]:
        plugin = registry.load("encoder", "random-projection")
        config = resolve("random-projection", plugin, "tiny", overrides=overrides)
        return _prepare_simulated(config, Store(tmp_path), no_progress)

    monkeypatch.setattr(rooms, "_draw_response", simulate)
    (usual,), (tests, longer) = prepare(), prepare("train.t60_s=[0.8, 1.0]")
    assert tests.digest == usual.digest  # it is in the key of the queries
    assert tests.numbers("test").tolist() == usual.numbers("test").tolist() and len(usual.numbers("train")) == 48
    assert len(tests.numbers("train")) == len(longer.numbers("test")) == 0
    t60_s = longer.table["t60_s"].to_numpy()
    # 8 %: the t60 of a decay of noise, measured on one realisation.
    assert len(t60_s) == 48 and 0.8 / 1.08 < t60_s.min() < 0.85 and 0.95 < t60_s.max() < 1.08


# Measured rooms


def folder_of_rooms(folder: Path) -> Path:
    """Fill a folder with two channels of ten rooms of 0.3 s."""
    folder.mkdir(parents=True)
    for room in "abcdefghij":
        for channel in ("left", "right"):
            draw = np.random.default_rng([ord(room), len(channel)])
            wave = 0.1 * draw.standard_normal(6_000) * 10.0 ** (-3 * np.arange(6_000) / RATE_HZ / 0.3)
            wave[0] = 1.0
            soundfile.write(folder / f"{room}_{channel}.wav", wave, RATE_HZ, subtype="FLOAT")
    return folder


def configured(*overrides: str) -> RunConfig:
    plugin = registry.load("encoder", "random-projection")
    return resolve("random-projection", plugin, "tiny", overrides=("eval.measured_t60_s=[0.3]", *overrides))


def test_folder_that_trains_and_tests_has_no_room_on_both_sides(tmp_path: Path) -> None:
    folder = folder_of_rooms(tmp_path / "rir" / "real")
    config = configured(f"eval.measured_rooms={folder}")  # and data.rir=auto takes the same responses
    measured = _prepare_measured(config, tmp_path, Store(tmp_path / "store"), no_progress)
    source = _build_training_measured(config, tmp_path)
    assert source is not None
    trained = keep_from_training(prepare_rooms(Store(tmp_path / "store"), *source, no_progress), measured.bank)
    tested_rooms = {measured.bank.table["name"].iloc[row][0] for row in measured.rows_of[0.3].tolist()}
    train_rooms = {name.removeprefix("real/")[0] for name in trained.table["name"].iloc[trained.numbers("train")]}
    assert tested_rooms and train_rooms and tested_rooms | train_rooms == set("abcdefghij")
    assert not tested_rooms & train_rooms
    validated = replace(config, eval=validation_config(config.eval))
    kept_out = _prepare_measured(validated, tmp_path, Store(tmp_path / "store"), no_progress)
    assert not kept_out.rows_of and kept_out.bank.table.equals(measured.bank.table)  # no cell, and none in training


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("rooms", ConfigError, "eval.measured_rooms must name measured responses, got rooms, which are simulated"),
        ("synth", ConfigError, "data set 'synth' holds music, not rir"),
        ("/nowhere", BenchError, "/nowhere"),
        ("air", DataError, "no file such as air_binaural_lecture_0_1_1.mat in"),
        ("rir-folder", DataError, "no audio found in"),
    ],
)
def test_measured_rooms_that_are_none_are_refused(
    tmp_path: Path, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        _prepare_measured(configured(f"eval.measured_rooms={name}"), tmp_path, Store(tmp_path), no_progress)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.t60_s=[0.1, 1.0]", "train.t60_s must be (low, high) between 0.15 and 2, got (0.1, 1.0)"),
        ("train.t60_s=[1.0, 0.5]", "train.t60_s must be (low, high) between 0.15 and 2, got (1.0, 0.5)"),
        ("train.max_rir_s=0.01", "train.max_rir_s must be between 0.05 and 2, or 0 for whole responses, got 0.01"),
        ("train.past_s=2.5", "train.past_s must be between 0 and 2, got 2.5"),
        ("eval.measured_t60_s=[0.01]", "eval.measured_t60_s must be between 0.05 and 2, got (0.01,)"),
        ("eval.measured_t60_s=[0.4, 0.4]", "eval.measured_t60_s must not name anything twice"),
    ],
)
def test_settings_of_rooms_out_of_range_are_refused(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        configured(override)
