"""A matcher beside encoders: its answers, impostors, misses and repetitions, and what a broken one is told."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path

import correlating_matcher
import numpy as np
import pandas as pd
import pytest
from one_room import OneRoom

from bench.audio.pcm import prepare_corpus
from bench.data import BenchmarkData
from bench.degrade.queries import prepare_queries
from bench.degrade.room import prepare_rooms
from bench.errors import PluginError
from bench.evaluate import SHUFFLED, UNSHUFFLED, Evaluation, evaluate
from bench.match.searcher import MatcherSearcher, build_matcher_searcher
from bench.plugin_check import check_matcher
from bench.search.repetitions import find_repeated_samples
from bench.settings import EvalConfig
from bench.store import Store
from bench.testing import Arrays
from bench.values import OWN, RATE_HZ, Cell, Found, no_progress

CONFIG = EvalConfig(
    snr_db=(10.0,), t60_s=(0.2,), noise_reverb_t60_s=0.2, lengths_s=(0.05, 0.5, 1.0), indexes=("exact",), top_k=4
)
CLEAN = Cell("clean")


def noise(seed: int, seconds: float) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE_HZ))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(store: Store) -> BenchmarkData:
    loop = np.round(noise(7, 0.7) * 2**15) / 2**15
    waves = {f"m{i}": noise(i, 2.5 + i / 5) for i in range(3)} | {"loop": np.tile(loop, 5)}
    music = prepare_corpus(store, "m", Arrays(waves, dict.fromkeys(waves, "test")), min_track_s=1, workers=1)
    hiss = prepare_corpus(store, "n", Arrays({"n": noise(99, 4.0)}, {"n": "test"}), min_track_s=1, workers=1)
    rooms = prepare_rooms(store, "toy", OneRoom(), no_progress)
    return BenchmarkData(music, hiss, (rooms,), prepare_queries(store, CONFIG, music, hiss, rooms, no_progress))


@pytest.fixture(scope="module")
def searcher(store: Store, data: BenchmarkData) -> MatcherSearcher:
    return build(store, data)


def build(store: Store, data: BenchmarkData, plugin: types.ModuleType = correlating_matcher) -> MatcherSearcher:
    return build_matcher_searcher("toy", plugin, plugin.Config(), data.music, CONFIG, store, no_progress)


@pytest.fixture(scope="module")
def found(store: Store, data: BenchmarkData, searcher: MatcherSearcher) -> Evaluation:
    return evaluate(searcher, data, CONFIG, store, no_progress)


def of(found: Evaluation, cell: Cell, length_s: float, truth: str = UNSHUFFLED) -> pd.DataFrame:
    hits = found.hits[cell]
    return hits[(hits["truth"] == truth) & (hits["length_s"] == length_s)]


def test_clean_queries_are_found_at_their_very_sample(found: Evaluation) -> None:
    hits = of(found, CLEAN, 1.0)
    assert len(hits) == 4 and hits["hit"].all()
    once = hits[hits["track"] < 3]  # the loop may be found at any of its repetitions
    assert once["found_s"].to_numpy() == pytest.approx(once["start_s"].to_numpy(), abs=0.5 / RATE_HZ)


def test_answers_bear_the_name_of_no_index(found: Evaluation) -> None:
    for hits in found.hits.values():
        assert set(hits["index"]) == set(hits["sequence"]) == {OWN}


def test_a_query_too_short_for_the_matcher_is_a_miss(found: Evaluation, searcher: MatcherSearcher) -> None:
    hits = of(found, CLEAN, 0.05)
    assert len(hits) == 4 and not hits[["hit", "near", "track_hit"]].any(axis=None)
    assert (hits["found_track"] == -1).all() and hits[["score", "found_s", "impostor_score"]].isna().all(axis=None)
    assert searcher.facts["lengths_too_short_s"] == [0.05]


def test_the_impostor_is_the_best_answer_outside_the_own_track(
    found: Evaluation, searcher: MatcherSearcher, data: BenchmarkData
) -> None:
    for query, row in enumerate(of(found, CLEAN, 0.5).itertuples()):
        wave_BT = data.queries.wave(CLEAN, query, 0.5)[None]
        every = searcher.matcher.find(wave_BT, 20)
        other = searcher.tracks[every.row_QR[0]] != row.track
        assert row.impostor_score == pytest.approx(np.nanmax(np.where(other, every.score_QR[0], np.nan)))


def test_shuffled_labels_are_found_by_nobody(found: Evaluation) -> None:
    assert not of(found, CLEAN, 1.0, SHUFFLED)["hit"].any()


def test_a_repetition_has_the_very_samples_of_the_query(data: BenchmarkData) -> None:
    tracks, loop = data.music.numbers("test"), round(0.7 * RATE_HZ)
    row = int(np.flatnonzero(data.music.tracks["id"].to_numpy()[tracks] == "loop")[0])
    other = 1 - min(row, 1)

    def repeats(row: int, start: int, found_start: int, num_samples: int = 8_000) -> bool:
        answer = Found(np.array([[row]]), np.array([[found_start]]), np.array([[1.0]], np.float32))
        wrong, starts = np.array([[True]]), np.array([start])
        return bool(find_repeated_samples(data.music, tracks, answer, num_samples, 800, wrong, starts)[0, 0])

    assert repeats(row, 1_000, 1_000 + loop)
    assert repeats(row, 1_000 + 2 * loop, 1_000 + 800)
    assert not repeats(row, 1_000, 1_000 + loop + 801)
    assert not repeats(row, 1_000, 1_000 + loop // 2)
    assert not repeats(row, 1_000, 1_000 + 4 * loop, 12_000)  # the query would not fit into the track
    assert not repeats(other, 1_000, 1_000 + loop)


def altered(**parts: object) -> types.ModuleType:
    """Return the toy matcher as a module of its own, with some of its parts replaced."""
    plugin = types.ModuleType("altered")
    plugin.__dict__.update({name: value for name, value in vars(correlating_matcher).items() if name[:2] != "__"})
    plugin.__dict__.update(parts, __file__=correlating_matcher.__file__)
    return plugin


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda b, r: Found(np.zeros((b, 1), int), np.zeros((b, 1), int), np.zeros((b, 1))), r"shape .*\(1, 3\)"),
        (lambda b, r: Found(np.full((b, r), 9), np.zeros((b, r), int), np.zeros((b, r))), "rows are below 2"),
        (lambda b, r: Found(np.full((b, r), -1), np.zeros((b, r), int), np.zeros((b, r))), "NaN where there is no"),
    ],
)
def test_answers_that_break_the_contract_are_told_before_a_run(answer: object, told: str) -> None:
    class Broken:
        shortest_s, num_bytes, fixed_bytes = 0.0, 1, 0

        def find(self, wave_BT: np.ndarray, num_answers: int, without_B: object = None) -> Found:
            return answer(len(wave_BT), num_answers)  # type: ignore[operator, no-any-return]

    plugin = altered(load=lambda config, folder: Broken())
    with pytest.raises(PluginError, match=told):
        check_matcher(plugin, "toy", plugin.Config())


def test_a_matcher_without_its_parts_is_told_which() -> None:
    plugin = altered(load=lambda config, folder: object())
    with pytest.raises(PluginError, match="shortest_s, num_bytes, fixed_bytes, find"):
        check_matcher(plugin, "toy", plugin.Config())


def test_a_build_that_was_killed_leaves_nothing_behind(tmp_path: Path, data: BenchmarkData) -> None:
    def die(config: object, tracks: Iterator[np.ndarray], folder: Path) -> None:
        (folder / "left").write_text("half")
        raise KeyboardInterrupt

    fresh, plugin = Store(tmp_path), altered(build=die)
    with pytest.raises(KeyboardInterrupt):
        build(fresh, data, plugin)
    assert list((tmp_path / "matchers").glob("*.partial/prints/left"))
    made = build(fresh, data)
    assert not list((tmp_path / "matchers").glob("*/prints/left")) and len(made.tracks) == 4


def test_settings_of_answers_share_the_prints(store: Store, data: BenchmarkData) -> None:
    guarded = correlating_matcher.Config(guard_s=0.5)
    plain, other = (
        build_matcher_searcher("toy", correlating_matcher, config, data.music, CONFIG, store, no_progress)
        for config in (correlating_matcher.Config(), guarded)
    )
    assert plain.key[0] == other.key[0] and plain.key != other.key
