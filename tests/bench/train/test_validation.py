"""What sweeps choose by: the grid on held-out training tracks, with no part of the test side in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.config import resolve
from bench.data import BenchmarkData, prepare_training, with_queries, with_validation
from bench.degrade.cells import benchmark_name, validation_config
from bench.settings import EvalConfig, RunConfig
from bench.store import Store
from bench.train.loop import TrainingSet, split_tracks
from bench.values import Cell, no_progress


@pytest.fixture(scope="module")
def config() -> RunConfig:
    small = ("music.num_train=24", "music.num_val=6", "music.num_test=8", "eval.snr_db=[10.0]", "eval.max_queries=4")
    small += ("eval.t60_s=[0.3]", "eval.noise_reverb_t60_s=0.3", "eval.rooms_per_t60=1")
    found = resolve("random-projection", registry.load("encoder", "random-projection"), "tiny", overrides=small)
    return replace(found, eval=validation_config(found.eval))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, rooms: Path) -> Store:
    folder = tmp_path_factory.mktemp("store")
    (folder / "rooms").symlink_to(rooms)
    return Store(folder)


@pytest.fixture(scope="module")
def heard(config: RunConfig, store: Store) -> TrainingSet:
    return prepare_training(config, None, store, no_progress)


@pytest.fixture(scope="module")
def held_out(config: RunConfig, heard: TrainingSet, store: Store) -> BenchmarkData:
    return with_validation(config, heard, store, no_progress)


def test_queries_are_of_held_out_tracks_and_training_noise(held_out: BenchmarkData, heard: TrainingSet) -> None:
    table = held_out.queries.table
    _train, kept = split_tracks(heard.music)
    assert set(table["track"]) <= set(kept.tolist())
    assert set(table["noise"]) <= set(heard.noise.numbers("train").tolist())
    tested = {*heard.music.numbers("test").tolist()}
    assert not tested & set(table["track"])
    assert held_out.music.numbers("test").tolist() == kept.tolist()  # the whole database


def test_rooms_are_none_of_the_test(held_out: BenchmarkData, heard: TrainingSet) -> None:
    (bank,) = held_out.banks
    tests = [heard.banks[0].response(i) for i in heard.banks[0].numbers("test")]
    for number in bank.numbers("test"):
        mine = bank.response(number)
        assert not any(len(mine) == len(other) and np.array_equal(mine, other) for other in tests)


def test_several_queries_of_a_track_make_a_cell_of_hundreds(held_out: BenchmarkData) -> None:
    table = held_out.queries.table
    held_back = len(held_out.music.numbers("test"))
    assert table["track"].nunique() == 4  # as many as eval.max_queries allows
    assert (table.groupby("track").size() == -(-500 // held_back)).all()
    assert table.groupby("track")["start_sample"].nunique().min() > 10
    wave = held_out.queries.wave(Cell("noise", snr_db=10.0), len(table) - 1, 0.96)
    assert np.abs(wave).max() == pytest.approx(1.0)


def test_test_side_keeps_its_own_query_set(
    config: RunConfig, heard: TrainingSet, store: Store, held_out: BenchmarkData
) -> None:
    tested = with_queries(config, heard, store, no_progress)
    assert tested.queries.key != held_out.queries.key
    assert len(tested.queries.table) <= 4  # one of each track, as the benchmark is defined
    assert not set(tested.queries.table["track"]) & set(held_out.queries.table["track"])
    assert tested.digest != held_out.digest


def test_held_out_side_has_a_name_of_its_own() -> None:
    standard = EvalConfig()
    assert benchmark_name("fma", validation_config(standard), "validation") == "fma-validation/v1"
    assert benchmark_name("fma", standard) == "fma-segment/v1"
    # The longer lengths are no part of it, so a change of them alone is no other benchmark.
    assert (
        benchmark_name("fma", validation_config(replace(standard, lengths_s=(0.96, 3.0))), "validation")
        == "fma-validation/v1"
    )
    other = benchmark_name("fma", validation_config(replace(standard, snr_db=(0.0,))), "validation")
    assert other.startswith("fma-validation/v1+custom-")


def test_nothing_of_a_run_says_that_it_was_on_the_test_side(config: RunConfig, tmp_path: Path, store: Store) -> None:
    from bench.run import RunContext, run

    context = RunContext(registry.load("encoder", "random-projection"), None, store, no_progress, lambda told: None)
    result = run(replace(config, train=replace(config.train, steps=0)), context, "validation")
    assert result is not None
    assert result.summary["benchmark"].startswith("synth-validation/v1")
    assert set(result.rows["length_s"]) == {0.96}
    assert set(result.rows["index"]) == {"exact"}
    assert result.alignment.empty
    assert result.summary["headline"]["control/identity"] == 1.0
