"""Indexes compared: by hand with plug-ins of known errors, and those that die, fail or are not there."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.config import flatten, resolve
from bench.errors import ConfigError, PluginError
from bench.results import CONFIG, SUMMARY
from bench.speed import search as speed
from bench.speed.isolated import measure_isolated
from bench.speed.search import (
    IndexSpec,
    LabelledQueries,
    SearchSpeedOptions,
    compare_indexes,
    parse_index_specs,
    recall,
)
from bench.store import Store, write_json
from bench.values import Fingerprints, no_progress

TRACKS, LENGTH, DIM, SEGMENTS, HOP = 5, 20, 16, 4, 1_600
PLUGIN = '''
"""An index of one fault, for a test: its answers are those of brute force, but for what it is asked to do wrong."""
import os
import signal
from dataclasses import dataclass

import numpy as np

from bench.errors import PluginError


@dataclass(frozen=True)
class Config:
    fault: str = ""
    every: int = 1


def presets():
    return {"good": Config(), "wrong": Config("wrong", 4)}


def build(config, vectors_ND):
    if config.fault == "missing":
        try:
            import no_such_library
        except ImportError as error:
            raise PluginError("it needs the package no_such_library; install it") from error
    if config.fault == "refuses":
        raise PluginError("it needs more vectors")
    if config.fault == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    if config.fault == "killed" and len(vectors_ND) > 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.fault == "leaves":
        os._exit(3)
    return Index(config, vectors_ND)


class Index:
    exact = False

    def __init__(self, config, vectors_ND):
        self.config, self.vectors_ND = config, vectors_ND
        self.num_bytes = vectors_ND.nbytes
        self.kept = np.ones(24 << 20, np.uint8) if config.fault == "heavy" and len(vectors_ND) > 2 else None

    def neighbours(self, queries_QD, top_k):
        found_QK = np.argsort(-(queries_QD @ self.vectors_ND.T), axis=1, kind="stable")[:, :top_k]
        if self.config.fault == "wrong":  # of every fourth query vector the first two are the wrong way round
            found_QK[:: self.config.every, :2] = found_QK[:: self.config.every, 1::-1]
        if self.config.fault == "lost":  # every query vector finds its nearest, and nothing more
            found_QK[:, 1:] = -1
        return found_QK
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "faulty.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fingerprints, Path]:
    draw = np.random.default_rng(1)
    vectors = draw.standard_normal((TRACKS * LENGTH, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    path = tmp_path_factory.mktemp("database") / "vectors.npy"
    np.save(path, vectors)
    first = LENGTH * np.arange(TRACKS + 1)
    return Fingerprints(vectors, 7 + np.arange(TRACKS), first, HOP, "database"), path


@pytest.fixture(scope="module")
def questions(database: tuple[Fingerprints, Path]) -> LabelledQueries:
    """Return clean pieces of tracks 0 to 3 from vector 5 on; the truth of the last is another track."""
    vectors = database[0].vectors
    pieces = np.stack([vectors[LENGTH * t + 5 : LENGTH * t + 5 + SEGMENTS] for t in range(4)])
    return LabelledQueries(pieces, np.array([7, 8, 9, 11]), np.full(4, 5 * HOP))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes of their own, which inherit the environment


def faulty(plugin: str, fault: str, every: int = 1) -> IndexSpec:
    return IndexSpec(plugin, fault, registry.load("index", plugin).Config(fault, every))


def brute() -> IndexSpec:
    return IndexSpec("exact", "", registry.load("index", "exact").Config())


def test_recall_by_hand() -> None:
    true = np.array([[3, 5, 7], [1, 2, -1], [8, 4, 6]])
    assert recall(true, true) == (1.0, 1.0)
    near = np.array([[3, 7, 9], [2, 1, 0], [-1, -1, -1]])
    assert recall(near, true) == (pytest.approx(1 / 3), pytest.approx(4 / 8))  # 3 and 7, 2 and 1, nothing of 8
    assert recall(np.full((1, 2), -1), np.full((1, 2), -1)) == (0.0, 0.0)
    other = np.array([[5, 3, 7], [1, 2, 9], [100, 8, 3]])  # numbers above all true ones are nobody's
    assert recall(other, true) == (pytest.approx(1 / 3), pytest.approx(6 / 8))


def test_indexes_are_compared_with_brute_force_and_those_that_die_are_rows(
    plugin: str, database: tuple[Fingerprints, Path], questions: LabelledQueries
) -> None:
    faults = ("wrong", "lost", "missing", "killed", "heavy")
    rows = [brute(), *(faulty(plugin, fault, 4) for fault in faults)]
    found = dict(
        zip(("exact", *faults), compare_indexes(rows, *database, questions, 3, HOP // 2, no_progress), strict=True)
    )
    exact, wrong, lost = (found[name].quality for name in ("exact", "wrong", "lost"))
    assert exact is not None and wrong is not None and lost is not None
    assert (exact.recall_at_1, exact.recall_at_k) == (1.0, 1.0)
    assert (wrong.recall_at_1, wrong.recall_at_k) == (0.75, 1.0)  # 4 of 16 query vectors, in another order
    assert (lost.recall_at_1, lost.recall_at_k) == (1.0, pytest.approx(1 / 3))
    for quality in (exact, wrong, lost):
        assert (quality.hits, quality.top1) == (3, 0.75)  # the fourth is judged by another truth
        assert quality.top1_low == pytest.approx(0.3006, abs=1e-4)  # Wilson, 3 of 4
        assert quality.top1_high == pytest.approx(0.9544, abs=1e-4)
    costs, heavy = found["exact"].costs, found["heavy"].costs
    assert costs is not None and heavy is not None
    assert costs.exact and not heavy.exact
    assert costs.num_bytes == TRACKS * LENGTH * DIM * 4
    assert min(costs.build_s, costs.single_ms, costs.batched_ms) > 0
    assert costs.single_calls >= 100
    assert heavy.own_mib > 20 and heavy.peak_mib > 20  # the 24 MiB it keeps
    missing, killed = found["missing"], found["killed"]
    assert missing.outcome == "not installed" and "install it" in missing.told
    assert killed.outcome == "out of memory" and "was killed" in killed.told
    assert missing.costs is missing.quality is killed.costs is killed.quality is None
    assert [row.name for row in found.values()][:2] == ["exact", "faulty/wrong"]
    assert found["wrong"].settings == {"fault": "wrong", "every": 4}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("fault", "outcome", "told"),
    [("refuses", "failed", "more vectors"), ("memory", "out of memory", "allocate"), ("leaves", "failed", "code 3")],
)
def test_what_a_plug_in_raises_is_told(
    plugin: str, database: tuple[Fingerprints, Path], fault: str, outcome: str, told: str
) -> None:
    settings = {"fault": fault}
    ending = measure_isolated("it", plugin, settings, database[1], database[0].vectors[:3], 2, no_progress)
    assert ending.outcome == outcome and told in ending.reason
    assert ending.costs is None and ending.near_PK is None


def test_without_brute_force_there_is_nothing_to_compare_with(
    plugin: str, database: tuple[Fingerprints, Path], questions: LabelledQueries
) -> None:
    with pytest.raises(PluginError, match=r"brute force, .* could not be measured: it needs more vectors"):
        compare_indexes([faulty(plugin, "refuses")], *database, questions, 3, HOP // 2, no_progress)
    with pytest.raises(PluginError, match="make it inexact"):
        compare_indexes([faulty(plugin, "")], *database, questions, 3, HOP // 2, no_progress)


def test_presets_are_rows_and_brute_force_is_first(plugin: str) -> None:
    rows = parse_index_specs(["falconn", plugin], [])
    assert [(row.index, row.preset) for row in rows] == [
        ("exact", ""), ("falconn", "singh"), ("falconn", "singh-hyperplane"), ("falconn", "shifted"), (plugin, "good"),
        (plugin, "wrong"),
    ]  # fmt: skip
    assert [row.preset for row in parse_index_specs([f"{plugin}:wrong"], [])] == ["", "wrong"]
    assert [row.preset for row in parse_index_specs(["falconn:singh", "falconn:singh"], [])] == ["", "singh"]
    assert [row.preset for row in parse_index_specs(["exact"], [])] == ["fp32", "fp16", "int8"]


def test_brute_force_is_measured_once_under_the_name_of_its_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = registry.load("index", "exact")
    presets = {"here": exact.Config(device="cpu"), "plain": exact.Config()}
    monkeypatch.setattr(exact, "presets", lambda: presets, raising=False)
    assert [row.preset for row in parse_index_specs(["exact"], [])] == ["plain", "here"]
    assert [row.preset for row in parse_index_specs(["falconn:singh"], [])] == ["", "singh"]
    monkeypatch.delattr(exact, "presets")
    assert [row.preset for row in parse_index_specs(["exact"], [])] == [""]


def test_settings_change_every_preset_of_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    falconn = registry.load("index", "falconn")
    presets = {"few": falconn.Config(tables=4, probes=8), "plain": falconn.Config()}
    monkeypatch.setattr(falconn, "presets", lambda: presets, raising=False)
    _, few, plain = parse_index_specs(["falconn"], ["index.falconn.bits=12"])
    assert (few.config.tables, few.config.probes, few.config.bits) == (4, 8, 12)
    assert plain.config == falconn.Config(bits=12)


@pytest.mark.parametrize(
    ("names", "overrides", "told"),
    [
        (["exact"], ["train.lr=1"], "--set must be a setting of an index here"),
        (["exact"], ["index.falconn.bits=3"], "index among the measured"),
        (["falconn"], ["index.falconn.bit=3"], r"index\.falconn\.bits"),
        (["falconn"], ["index.falconn.bits=99"], "bits 1 to 24"),
        (["falcon"], [], "did you mean 'falconn'"),
        (["exact:nothing"], [], "preset of the index 'exact'"),
    ],
)
def test_names_and_settings_that_there_are_not(names: list[str], overrides: list[str], told: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=told):
        parse_index_specs(names, overrides)


def wanted(**change: Any) -> SearchSpeedOptions:
    values: dict[str, Any] = {
        "run": None, "vectors": 150, "indexes": ["exact"], "snr_db": 5.0, "length_s": 1.0, "top_k": 3, "queries": 9,
        "overrides": [],
    }  # fmt: skip
    return SearchSpeedOptions(**values | change)


def keep_run(store: Path, key: str, summary: dict[str, Any]) -> None:
    """Write what a finished run leaves behind: its settings and its summary."""
    encoder = registry.load("encoder", "random-projection")
    folder = store / "runs" / key
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, flatten(resolve("random-projection", encoder, "tiny")))
    write_json(folder / SUMMARY, {"run": key} | summary)


def test_measurement_is_kept_drawn_and_logged(
    tmp_path: Path, database: tuple[Fingerprints, Path], questions: LabelledQueries, plugin: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keep_run(tmp_path, "abcdef12", {"encoder": "mine", "database_vectors": 100})
    monkeypatch.setattr(speed, "fingerprint_run", lambda *_: (database[0], questions))
    logged: dict[str, float] = {}
    kept = f"{plugin}:wrong"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setattr("bench.logbook.book.Logbook.metrics", lambda _, values, *__: logged.update(values))
    result, folder = speed.measure_indexes(
        wanted(indexes=[kept]), None, Store(tmp_path), no_progress, lambda told: None,
        lambda result, path: path.write_bytes(b"a picture"),
    )  # fmt: skip
    assert (result.vectors, result.real_vectors, result.queries, result.query_vectors) == (150, 100, 4, 16)
    assert (result.run, result.cell, result.rows[0].name) == ("abcdef12", "noise/snr_5", "exact")
    assert folder.parent == tmp_path / "speed" and (folder / speed.PICTURE).read_bytes() == b"a picture"
    told = json.loads((folder / speed.RECORD).read_text())
    assert told["rows"][1]["quality"]["recall_at_1"] == logged["faulty/wrong/recall_at_1"]
    assert logged["exact/times_faster_batched"] == 1.0
    assert logged["exact/bytes_per_vector"] == DIM * 4


def test_wishes_that_cannot_be_met_are_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--top-k must be >= 1, got 0"):
        wanted(top_k=0)
    with pytest.raises(ConfigError, match="--queries must be >= 1, got 0"):
        wanted(queries=0)

    def go(wish: SearchSpeedOptions) -> None:
        speed.measure_indexes(wish, None, Store(tmp_path), no_progress, lambda told: None, lambda result, path: None)

    with pytest.raises(ConfigError, match="no finished run"):
        go(wanted())
    keep_run(tmp_path, "aa", {"checkpoint": {"key": "bb"}, "database_vectors": 100})
    with pytest.raises(ConfigError, match="--length must be at most the run's longest query"):
        go(wanted(length_s=100.0))
    with pytest.raises(ConfigError, match="the weights of the run aa are not in the store"):
        go(wanted())
    with pytest.raises(ConfigError, match="--vectors must be at least the run's own 100, got 99"):
        go(wanted(vectors=99))
