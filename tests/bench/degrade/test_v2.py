"""The second version of the benchmark: its grid and names, its queries, and that the first one stays what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soxr

from bench.audio.pcm import Corpus, prepare_corpus
from bench.config import parse_section
from bench.degrade import distort
from bench.degrade.cells import benchmark_name, list_cells, list_ignored_levels, validation_config
from bench.degrade.queries import GRID_DISTANCE, QuerySet, draw_offsets, hop_samples, prepare_queries
from bench.degrade.room import DIRECT_AT, Response, align_direct_sound, measure_direct_ratio, prepare_rooms
from bench.errors import ConfigError, DataError
from bench.settings import EvalConfig, GridV2
from bench.store import Store
from bench.testing import Arrays
from bench.values import RATE_HZ, Cell, no_progress

GRID = GridV2(snr_db=(0.0, 10.0), t60_s=(0.2,), noise_reverb_t60_s=0.4)
CONFIG = EvalConfig(version="v2", v2=GRID, lengths_s=(0.96, 1.5))
TRACKS = 6
LOUDSPEAKER = Cell("device", snr_db=10.0, t60_s=0.4, distortion="loudspeaker")


class Rooms:
    """Three responses of decaying noise."""

    def names(self) -> list[str]:
        return ["0/0.2", "1/0.4", "2/0.4"]

    def load(self, name: str) -> Response:
        number, _, t60_s = name.partition("/")
        decay = 10.0 ** (-3 * np.arange(4_000) / RATE_HZ / float(t60_s))
        wave = 0.3 * decay * np.random.default_rng(int(number)).standard_normal(4_000)
        wave[0] = 2.0
        return Response(name, align_direct_sound(wave.astype(np.float32)), "test", float(t60_s))

    def digest(self) -> str:
        return "rooms of v2"


def sounds(root: Path, name: str, seconds: list[float], first: int = 0) -> Corpus:
    draws = [np.random.default_rng(first + i) for i in range(len(seconds))]
    waves = {f"{name}{i}": draw.uniform(-0.5, 0.5, round(seconds[i] * RATE_HZ)) for i, draw in enumerate(draws)}
    return prepare_corpus(Store(root), name, Arrays(waves, dict.fromkeys(waves, "test")), min_track_s=1.0, workers=1)


def made(root: Path, config: EvalConfig = CONFIG, seconds: list[float] | None = None) -> QuerySet:
    music = sounds(root, "m", seconds or [4.0 + i / 5 for i in range(TRACKS)])
    rooms = prepare_rooms(Store(root), "toy", Rooms(), no_progress)
    return prepare_queries(Store(root), config, music, sounds(root, "n", [3.0], 50), rooms, no_progress)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def queries(home: Path) -> QuerySet:
    return made(home)


@pytest.fixture(scope="module")
def music(home: Path, queries: QuerySet) -> Corpus:
    return sounds(home, "m", [4.0 + i / 5 for i in range(TRACKS)])


# The grid and its name


def test_grid_is_that_of_the_definition() -> None:
    names = [cell.name for cell in list_cells(EvalConfig(version="v2"))]
    assert names == [
        "identity", "clean", "noise/snr_0", "noise/snr_10", "reverb/t60_0.4", "reverb/t60_0.8",
        "noise_reverb/snr_0/t60_0.5", "noise_reverb/snr_10/t60_0.5",
        *(f"speed/speed_{speed}" for speed in (0.98, 0.99, 0.995, 1.005, 1.01, 1.02)),
        "tempo/tempo_0.96", "tempo/tempo_1.04", "pitch/pitch_-50", "pitch/pitch_+50",
        "codec/mp3_16", "codec/mp3_32", "codec/opus_16", "dynamics/clip_12", "dynamics/compress_8", "device/telephone",
        "device/snr_0/t60_0.5/loudspeaker", "device/snr_10/t60_0.5/loudspeaker",
    ]  # fmt: skip
    assert len(names) <= 30  # a test of them all takes minutes


def test_each_setting_of_the_grid_defines_v2_and_none_defines_v1() -> None:
    assert benchmark_name("fma", EvalConfig(version="v2")) == "fma-segment/v2"
    changes = [
        {"snr_db": (0.0,)}, {"t60_s": (0.4,)}, {"noise_reverb_t60_s": 0.4}, {"direct_to_reverberant_db": 3.0},
        {"speeds": ()}, {"tempos": (0.9,)}, {"pitch_cents": (100.0,)}, {"codecs": ("mp3-64",)}, {"clip_db": (6.0,)},
        {"compression_ratios": (4.0,)}, {"devices": ("telephone",)},
    ]  # fmt: skip
    grids = [parse_section("eval.v2", GridV2, change) for change in changes]
    names = {benchmark_name("fma", EvalConfig(version="v2", v2=grid)) for grid in grids}
    assert len(names) == len(changes) and all(name.startswith("fma-segment/v2+custom-") for name in names)
    assert {benchmark_name("fma", EvalConfig(v2=grid)) for grid in grids} == {"fma-segment/v1"}
    lengths = EvalConfig(version="v2", lengths_s=(0.96,))
    assert benchmark_name("fma", lengths).startswith("fma-segment/v2+custom-")
    sweep = validation_config(EvalConfig(version="v2"))
    assert benchmark_name("fma", sweep, "validation") == "fma-validation/v2"


def test_levels_of_v1_are_said_to_be_ignored() -> None:
    changed = EvalConfig(snr_db=(0.0,), noise_reverb_t60_s=0.4)
    assert list_ignored_levels(changed) == []
    assert list_ignored_levels(replace(changed, version="v2")) == ["eval.snr_db", "eval.noise_reverb_t60_s"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speeds": (1.0,)}, r"eval\.v2\.speeds must be between 0\.5 and 2, and not 1.*\(1\.0,\)"),
        ({"tempos": (3.0,)}, r"eval\.v2\.tempos must be between 0\.5 and 2"),
        ({"pitch_cents": (0.0,)}, r"eval\.v2\.pitch_cents must be between -1200 and 1200, and not 0"),
        ({"codecs": ("aac-32",)}, r"eval\.v2\.codecs must name mp3 or opus .* such as mp3-16 or opus-16, got 'aac-32'"),
        ({"codecs": ("mp3-8",)}, r"the rate of mp3 at 16 kHz must be one of \(16, 24, .*got 'mp3-8'"),
        ({"codecs": ("opus",)}, r"eval\.v2\.codecs must name .* got 'opus'"),
        ({"codecs": ("opus-3",)}, r"the rate of opus must be between 6\.5 and 64"),
        ({"clip_db": (0.0,)}, r"eval\.v2\.clip_db must be in \(0, 60\]"),
        ({"compression_ratios": (1.0,)}, r"eval\.v2\.compression_ratios must be in \(1, 100\]"),
        ({"devices": ("radio",)}, r"eval\.v2\.devices"),
        ({"snr_db": ()}, r"eval\.v2\.devices with loudspeaker needs levels of the noise in eval\.v2\.snr_db"),
        ({"speeds": (1.1, 1.1)}, r"eval\.v2\.speeds must not name anything twice"),
        ({"t60_s": (0.1,)}, r"eval\.v2\.t60_s must be between 0\.15 and 2"),
        ({"direct_to_reverberant_db": 30.0}, r"eval\.v2\.direct_to_reverberant_db must be between -20 and 20"),
    ],
)
def test_bad_value_is_refused_with_the_rule(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("eval", EvalConfig, {"v2": change})


# The first version


def test_settings_of_v2_change_no_query_of_v1(home: Path) -> None:
    standard = EvalConfig(snr_db=(0.0,), t60_s=(0.2,), noise_reverb_t60_s=0.4, lengths_s=(0.96,))
    assert made(home, standard).key == made(home, replace(standard, v2=GRID)).key


# The queries


def test_key_holds_the_distortions_and_the_versions_of_libraries(
    home: Path, queries: QuerySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = GridV2(
        snr_db=(), t60_s=(0.2,), speeds=(1.1,), tempos=(), pitch_cents=(), codecs=(), clip_db=(), compression_ratios=(),
        devices=(),
    )  # fmt: skip
    keys = {queries.key, made(home, replace(CONFIG, v2=few)).key}
    keys.add(made(home, replace(CONFIG, v2=replace(few, speeds=(1.2,)))).key)
    monkeypatch.setattr(distort, "list_versions", lambda: ("another libsndfile",))
    keys.add(made(home, replace(CONFIG, v2=few)).key)
    assert len(keys) == 4


def test_query_set_is_the_same_to_the_bit_each_time(tmp_path: Path, queries: QuerySet) -> None:
    again = made(tmp_path)
    assert again.key == queries.key and again.table.equals(queries.table)
    stems = sorted(path.name for path in queries.folder.glob("*.i16"))
    assert len(stems) == 24 and stems == sorted(path.name for path in again.folder.glob("*.i16"))
    for name in stems:
        assert (queries.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_every_cell_has_a_wave_of_every_query(queries: QuerySet) -> None:
    for cell in list_cells(CONFIG):
        for query in range(TRACKS):
            wave = queries.wave(cell, query, 1.5)
            assert wave.shape == (24_000,) and np.isfinite(wave).all() and np.abs(wave).max() == 1


@pytest.mark.parametrize("speed", GRID.speeds)
def test_query_at_a_speed_starts_at_its_true_start_and_covers_as_much_more(
    queries: QuerySet, music: Corpus, speed: float
) -> None:
    cell = Cell("speed", distortion=f"speed_{speed:g}")
    track_Q, start_Q = queries.truth(cell)
    for query in range(TRACKS):
        track, start = int(track_Q[query]), int(start_Q[query])
        whole = np.pad(music.read(track, 0, music.num_samples(track)).astype(np.float64), (4_000, 0))
        before = round(4_000 * speed)  # a whole number at all speeds of the grid, so that samples fall on samples
        excerpt = whole[4_000 + start - before : 4_000 + start + round(24_000 * speed) + 2_000]
        played = soxr.resample(excerpt, speed * RATE_HZ, RATE_HZ)[4_000:][:24_000]
        wave = queries.wave(cell, query, 1.5)[: len(played)]
        likeness = played @ wave / np.linalg.norm(played) / np.linalg.norm(wave)
        assert likeness > 0.999
        assert start + 24_000 * speed <= music.num_samples(track)


def test_starts_are_uniform_over_the_hop_and_their_distance_to_the_grid_is_told(queries: QuerySet) -> None:
    hop, num = hop_samples(CONFIG), 358
    offset_Q = draw_offsets(num, hop, np.random.default_rng(0))
    assert sorted((offset_Q * num // hop).tolist()) == pytest.approx(list(range(num)), abs=1)  # one in each part
    assert offset_Q.min() >= 0 and offset_Q.max() < hop
    table = queries.table
    np.testing.assert_array_equal(table[GRID_DISTANCE], table["start_sample"] - table["identity_sample"])
    assert table[GRID_DISTANCE].abs().max() <= hop // 2
    parts = np.sort(table["start_sample"].to_numpy() % hop * TRACKS // hop)
    assert parts.tolist() == list(range(TRACKS))  # each sixth of the hop has one of the six starts


def test_track_that_a_faster_query_would_leave_is_refused_with_the_speed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"longest query \(1\.5 s, 1\.04 times as fast\)"):
        made(tmp_path, seconds=[1.56, 1.58])


@pytest.mark.parametrize("snr_db", [0.0, 10.0])
def test_loudspeaker_is_heard_in_its_room_at_the_nominal_ratio(queries: QuerySet, snr_db: float) -> None:
    cell = replace(LOUDSPEAKER, snr_db=snr_db)
    achieved = queries.conditions(cell, 0.96)
    assert achieved["snr_db_min"] == pytest.approx(snr_db, abs=0.05)
    assert achieved["snr_db_max"] == pytest.approx(snr_db, abs=0.05)
    _mixture, alone = queries.parts(cell, 0, 1.5)
    power = np.square(np.abs(np.fft.rfft(alone)))
    bass = round(150 * 1.5)  # the bin of 150 Hz
    assert power[:bass].sum() < 1e-3 * power.sum()


def test_achieved_conditions_of_every_cell_are_measured(home: Path, queries: QuerySet) -> None:
    wanted = {
        "speed": {"speed"}, "tempo": {"tempo"}, "pitch": {"pitch_cents"}, "codec": {"kbit_per_s"},
        "dynamics/clip_12": {"clipped_percent", "crest_change_db"}, "device/telephone": {"outside_band_db"},
        "dynamics/compress_8": {"level_range_change_db", "crest_change_db"}, "identity": set(), "clean": set(),
        "noise": {"snr_db"}, "reverb": {"t60_s", "drr_db"}, "noise_reverb": {"snr_db", "t60_s", "drr_db"},
        "device": {"snr_db", "t60_s", "drr_db"},
    }  # fmt: skip
    for cell in list_cells(CONFIG):
        achieved = queries.conditions(cell, 0.96)
        quantities = wanted.get(cell.name, wanted.get(cell.kind, set()))
        quantities = quantities | (set() if cell.kind == "identity" else {"grid_distance_ms"})
        assert set(achieved) == {f"{q}_{end}" for q in quantities for end in ("min", "mean", "max")}, cell.name
        for q in quantities:  # up to the rounding of a mean of equal values
            assert achieved[f"{q}_min"] - 1e-9 <= achieved[f"{q}_mean"] <= achieved[f"{q}_max"] + 1e-9
    rooms = prepare_rooms(Store(home), "toy", Rooms(), no_progress)
    row = queries.table.iloc[0]
    assert row["drr_db_t60_0.4"] == measure_direct_ratio(rooms.response(int(row["room_t60_0.4"])))
    fast = queries.conditions(Cell("speed", distortion="speed_1.01"), 0.96)
    assert fast["speed_mean"] == pytest.approx(1.01, abs=1e-4)


def test_direct_sound_is_where_it_was(queries: QuerySet) -> None:
    clean, reverb = (queries.wave(cell, 0, 1.5) for cell in (Cell("clean"), Cell("reverb", t60_s=0.2)))
    correlation = np.correlate(reverb[DIRECT_AT:-DIRECT_AT], clean, mode="valid")[::-1]
    assert int(np.argmax(correlation)) == DIRECT_AT
