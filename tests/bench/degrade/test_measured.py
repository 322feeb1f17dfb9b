"""Measured rooms as a test condition: which of them test, at which t60, and that none of these trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.audio.pcm import Corpus, prepare_corpus
from bench.degrade.cells import benchmark_name, list_cells, measured_classes, validation_config
from bench.degrade.measured import MeasuredRooms, keep_from_training, name_rooms, sort_by_t60, split_by_room
from bench.degrade.queries import CONTEXT_S, QuerySet, prepare_queries
from bench.degrade.room import DIRECT_AT, Response, RoomBank, align_direct_sound, prepare_rooms
from bench.errors import DataError
from bench.settings import EvalConfig
from bench.store import Store
from bench.testing import Arrays
from bench.values import RATE_HZ, Cell, no_progress

CONFIG = EvalConfig(
    snr_db=(0.0,), t60_s=(0.2,), noise_reverb_t60_s=0.2, lengths_s=(0.96, 1.2),
    measured_rooms="x", measured_t60_s=(0.1, 0.3),
)  # fmt: skip


def decay(t60_s: float, seed: int) -> np.ndarray:
    wave = 0.1 * np.random.default_rng(seed).standard_normal(8_000) * 10.0 ** (-3 * np.arange(8_000) / RATE_HZ / t60_s)
    wave[0] = 1.0
    return align_direct_sound(wave.astype(np.float32))


def bank_of(*rows: tuple[str, str, float]) -> RoomBank:
    """Return a bank of (name, split, t60), whose row i has the samples of seed i."""
    waves = [decay(t60_s, seed) for seed, (_name, _split, t60_s) in enumerate(rows)]
    table = pd.DataFrame(rows, columns=["name", "split", "t60_s"]).assign(num_samples=[len(wave) for wave in waves])
    table["start"] = table["num_samples"].cumsum() - table["num_samples"]
    return RoomBank(table, pd.DataFrame(columns=["name", "problem"]), np.concatenate(waves), repr(rows))


# Rooms by their names


def test_room_is_the_folder_below_what_all_have_in_common() -> None:
    assert name_rooms(["a/1.wav", "a/2.wav", "b/deep/3.wav"]) == ["a", "a", "b"]
    assert name_rooms(["real/x/a/1.wav", "real/x/b/2.wav"]) == ["a", "b"]


def test_room_is_the_first_word_of_a_file_where_all_lie_in_one_folder() -> None:
    names = ["hall_left.wav", "hall-right.wav", "stairwell.wav", "st andrews.wav", "living_room_1.wav"]
    rooms = ["hall", "hall", "stairwell", "st", "living"]
    assert name_rooms(names) == rooms
    assert name_rooms([f"rir/real/{name}" for name in names]) == rooms


# Sides


def test_channels_of_a_room_are_on_one_side_and_added_rooms_move_none() -> None:
    rooms = [f"room{chr(97 + i)}" for i in range(26)]
    bank = split_by_room(bank_of(*((f"{room}_{side}.wav", "train", 0.3) for room in rooms for side in "lr")))
    split = bank.table["split"].to_numpy().reshape(-1, 2)
    assert (split[:, 0] == split[:, 1]).all()
    assert 5 < (split[:, 0] == "test").sum() < 21  # 26 draws of one half: beyond 3 standard deviations of 2.5
    fewer = split_by_room(bank_of(*((f"{room}_l.wav", "train", 0.3) for room in rooms[:9])))
    assert fewer.table["split"].tolist() == split[:9, 0].tolist()


def test_only_room_of_a_folder_is_tested_in() -> None:
    names = [f"{chr(97 + i)}_x.wav" for i in range(26)]
    sides = {split_by_room(bank_of((name, "train", 0.3))).table["split"].iloc[0] for name in names}
    assert sides == {"test"}


def test_sides_that_a_collection_states_are_kept() -> None:
    bank = bank_of(("a/1.wav", "train", 0.3), ("b/1.wav", "test", 0.3))
    assert split_by_room(bank) is bank


def test_training_gets_neither_a_tested_room_nor_a_copy_of_its_response() -> None:
    tested = bank_of(("hall_left.wav", "test", 0.3), ("cave_1.wav", "train", 0.3))
    bank = bank_of(
        ("copies/renamed.wav", "train", 0.3),  # seed 0: the samples of hall_left
        ("hall/right.wav", "train", 0.3),
        ("attic/1.wav", "train", 0.3),
        ("own/test.wav", "test", 0.3),
    )
    louder = replace(bank, samples=bank.samples * np.float32(1.05))  # -26 dB off: a copy in another format
    for each in (bank, louder):
        assert keep_from_training(each, tested).table["split"].tolist() == ["none", "none", "train", "test"]
    assert bank.table["split"].tolist() == ["train", "train", "train", "test"]  # values do not change


def test_copy_is_told_though_v2_aligns_it_by_another_peak() -> None:
    wave_T = np.pad(decay(0.3, 7), (100, 0))
    wave_T[100 + DIRECT_AT + 160] = 1.5  # a reflection 10 ms after the direct sound, louder than it
    both = [align_direct_sound(wave_T, version) for version in ("v1", "v2")]
    assert int(np.argmax(np.abs(both[0]))) == DIRECT_AT and int(np.argmax(np.abs(both[1]))) == DIRECT_AT + 160
    trained, tested = (
        replace(bank_of((name, split, 0.3)), samples=wave_T, table=bank_of((name, split, 0.3)).table.assign(
            num_samples=len(wave_T)))
        for (name, split), wave_T in zip((("copies/renamed.wav", "train"), ("hall_1.wav", "test")), both, strict=True)
    )  # fmt: skip
    assert keep_from_training(trained, tested).table["split"].tolist() == ["none"]


def test_same_folder_is_divided_without_a_room_on_both_sides() -> None:
    whole = bank_of(*((f"{chr(97 + i)}_{side}.wav", "train", 0.3) for i in range(12) for side in "lr"))
    tested = split_by_room(whole)
    trained = keep_from_training(whole, tested)
    assert set(tested.numbers("test")) | set(trained.numbers("train")) == set(range(24))
    assert not set(tested.numbers("test")) & set(trained.numbers("train"))


# Classes of t60


def test_room_belongs_to_the_nearest_t60_by_ratio_within_a_quarter() -> None:
    t60s = (0.161, 0.159, 0.249, 0.28, 0.29, 0.499, 0.51)
    bank = bank_of(*((f"{i}/x.wav", "test", t60_s) for i, t60_s in enumerate(t60s)), ("t/x.wav", "train", 0.2))
    rows_of = sort_by_t60(bank, (0.2, 0.4))
    # 0.159 is below 0.2 / 1.25; 0.28 is nearer to 0.2 by ratio but above 0.25; 0.29 is below 0.32; 0.51 is above 0.5.
    assert {t60_s: rows.tolist() for t60_s, rows in rows_of.items()} == {0.2: [0, 2], 0.4: [5]}


def test_t60_without_a_room_is_refused_with_the_setting_that_works() -> None:
    bank = bank_of(("a/x.wav", "test", 0.43), ("b/x.wav", "test", 1.9), ("c/x.wav", "train", 0.2))
    with pytest.raises(
        DataError, match=r"no measured test room .* of 0\.2 s: the 2 test responses have 0\.43, 1\.90 s"
    ):
        sort_by_t60(bank, (0.2, 0.4))
    with pytest.raises(DataError, match=r"set eval\.measured_t60_s='\[0\.4\]'"):
        sort_by_t60(bank, (0.2, 0.4))
    with pytest.raises(DataError, match=r"set eval\.measured_t60_s to some of these"):
        sort_by_t60(bank, (0.2,))


# Cells


def test_cells_of_measured_rooms_are_beside_the_simulated_ones_and_the_benchmark_custom() -> None:
    names = [cell.name for cell in list_cells(CONFIG)]
    assert names == [
        "identity", "clean", "noise/snr_0", "reverb/t60_0.2", "measured_reverb/t60_0.1", "measured_reverb/t60_0.3",
        "noise_reverb/snr_0/t60_0.2",
    ]  # fmt: skip
    standard = EvalConfig()
    assert benchmark_name("fma", replace(standard, measured_t60_s=(0.3,))) == "fma-segment/v1"  # without rooms: unused
    one, other = (benchmark_name("fma", replace(standard, measured_rooms=name)) for name in ("air", "folder"))
    assert one == other and one.startswith("fma-segment/v1+custom-")


def test_validation_looks_at_no_measured_room() -> None:
    config = validation_config(replace(EvalConfig(), measured_rooms="air"))
    assert config.measured_rooms == "air"  # its rooms stay out of training
    assert measured_classes(config) == ()
    assert benchmark_name("fma", config, "validation") == "fma-validation/v1"


# Queries


@dataclass(frozen=True)
class Simulated:
    """One room of 0.2 s."""

    def names(self) -> list[str]:
        return ["test/0.2/0"]

    def load(self, name: str) -> Response:
        return Response(name, decay(0.2, 99), "test", 0.2)

    def digest(self) -> str:
        return "simulated"


@dataclass(frozen=True)
class Made:
    root: Path
    music: Corpus
    noise: Corpus
    rooms: RoomBank
    bank: RoomBank

    def queries(self, config: EvalConfig, measured: MeasuredRooms | None) -> QuerySet:
        rest = {} if measured is None else {"measured": measured}
        return prepare_queries(Store(self.root), config, self.music, self.noise, self.rooms, no_progress, **rest)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("store")
    waves = {f"t{i}": np.random.default_rng(i).uniform(-0.5, 0.5, 48_000) for i in range(6)}
    corpora = [
        prepare_corpus(Store(root), name, Arrays(waves, dict.fromkeys(waves, "test")), min_track_s=1.0, workers=1)
        for name in ("music", "noise")
    ]
    rooms = prepare_rooms(Store(root), "toy", Simulated(), no_progress)
    return Made(root, *corpora, rooms, bank_of(("a/1", "test", 0.1), ("b/1", "train", 0.3), ("c/1", "test", 0.29),
                                               ("d/1", "test", 0.31)))  # fmt: skip


@pytest.fixture(scope="module")
def measured(made: Made) -> MeasuredRooms:
    return MeasuredRooms(made.bank, sort_by_t60(made.bank, CONFIG.measured_t60_s))


def test_query_is_the_music_in_the_measured_room(made: Made, measured: MeasuredRooms) -> None:
    queries = made.queries(CONFIG, measured)
    cell, context = Cell("measured_reverb", t60_s=0.3), round(CONTEXT_S * RATE_HZ)
    assert set(queries.table["room_real_t60_0.3"]) <= {2, 3} and set(queries.table["room_real_t60_0.1"]) == {0}
    for query, row in enumerate(queries.table.to_dict("records")):
        track, start = int(row["track"]), int(row["start_sample"])
        padded = np.pad(made.music.read(track, 0, 48_000).astype(np.float64), context)
        heard = padded[start : start + context + 15_360 + DIRECT_AT]
        wet = np.convolve(heard, made.bank.response(int(row["room_real_t60_0.3"])))
        wanted = wet[context + DIRECT_AT : context + DIRECT_AT + 15_360]
        got = queries.wave(cell, query, 0.96)
        # 1e-4: stems are rounded to 16 bits of their own peak.
        np.testing.assert_allclose(got, wanted / np.abs(wanted).max(), atol=1e-4)
        assert row["measured_real_t60_0.3"] in (0.29, 0.31)
    achieved = queries.conditions(cell, 0.96)
    assert 0.29 <= achieved["t60_s_min"] <= achieved["t60_s_mean"] <= achieved["t60_s_max"] <= 0.31


def test_all_other_cells_are_as_without_measured_rooms(made: Made, measured: MeasuredRooms) -> None:
    standard = replace(CONFIG, measured_rooms="")
    plain, beside = made.queries(standard, None), made.queries(CONFIG, measured)
    assert plain.key != beside.key
    pd.testing.assert_frame_equal(plain.table, beside.table[plain.table.columns])
    for cell in list_cells(standard):
        for query in range(len(plain.table)):
            np.testing.assert_array_equal(plain.wave(cell, query, 1.2), beside.wave(cell, query, 1.2))


def test_rooms_that_are_tested_in_decide_the_key_and_unused_ones_do_not(made: Made, measured: MeasuredRooms) -> None:
    key = made.queries(CONFIG, measured).key
    again = MeasuredRooms(replace(made.bank, digest="another place"), measured.rows_of)
    assert made.queries(CONFIG, again).key == key
    fewer = MeasuredRooms(made.bank, {**measured.rows_of, 0.3: np.array([2])})
    assert made.queries(CONFIG, fewer).key != key
    unused = replace(CONFIG, measured_t60_s=())
    assert (
        made.queries(unused, MeasuredRooms(made.bank)).key == made.queries(replace(CONFIG, measured_rooms=""), None).key
    )
