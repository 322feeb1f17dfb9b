"""Promotion: the difference from the preset's run in the store is known before a model is made champion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import registry
from bench.results import Result, write_result
from bench.settings import RunConfig
from bench.store import Store
from bench.sweeps import promote as promotion
from bench.sweeps.promote import compare_with_preset
from bench.sweeps.space import Basis, Parameter, Space, distributions
from bench.sweeps.study import Definition, Origin, create_or_join, open_storage
from bench.values import no_progress

NUM_QUERIES = 100


@pytest.fixture
def preset() -> RunConfig:
    return Basis("now-playing", "now-playing", registry.load("encoder", "now-playing"), "tiny", None).config()


def build_result(run: str, num_found: int, **changes: Any) -> Result:
    """Return a result that found the first `num_found` queries."""
    names = {"cell": "noise/snr_0", "length_s": 0.96, "index": "exact", "sequence": "rescore"}
    hits = pd.DataFrame({"query": range(NUM_QUERIES), "hit": [q < num_found for q in range(NUM_QUERIES)]})
    rows = [names | {"kind": "noise", "snr_db": 0.0, "system": "now-playing", "metric": "segment_top1", "queries": "q"}]
    summary = {
        "run": run, "benchmark": "synth-segment/v1", "system": "now-playing", "index": "exact", "sequence": "rescore",
        "digests": {"music": "m"}, "seconds": {"training": 1.0}, "queries_per_cell": NUM_QUERIES,
        "database_vectors": 9, "database_tracks": 9, "parameters": 7,
    }  # fmt: skip
    return Result(pd.DataFrame(rows), hits.assign(track_hit=hits["hit"], **names), pd.DataFrame(), summary | changes)


def write(store: Store, result: Result, config: RunConfig) -> None:
    folder = store.root / "runs" / result.summary["run"]
    folder.mkdir(parents=True)
    write_result(folder, result, config)


@pytest.mark.parametrize(
    ("num_found", "points", "verdict", "is_worse"),
    [(40, "-30.0", "worse", True), (69, "-1.0", "not significantly different", False), (90, "+20.0", "better", False)],
)
def test_promoted_run_is_compared_with_the_run_of_the_preset(
    tmp_path: Path, preset: RunConfig, num_found: int, points: str, verdict: str, is_worse: bool
) -> None:
    store = Store(tmp_path)
    write(store, build_result("aaaaaaaa", 70), preset)
    comparison = compare_with_preset(build_result("bbbbbbbb", num_found), preset, store)
    assert (comparison.preset_run, comparison.is_worse) == ("aaaaaaaa", is_worse)
    assert f"the preset tiny (run aaaaaa): {points} points, 95 % interval " in comparison.sentence
    assert comparison.sentence.endswith(f": {verdict}")


@pytest.mark.parametrize(
    "changes",
    [
        {"benchmark": "fma-segment/v1"},
        {"digests": {"music": "other"}},
        {"seconds": {}},  # tested with weights that another run trained
        {"system": "grafprint"},
    ],
)
def test_run_that_is_not_of_the_preset_on_the_same_data_is_not_compared_with(
    tmp_path: Path, preset: RunConfig, changes: dict[str, Any]
) -> None:
    store = Store(tmp_path)
    other = replace(preset, train=replace(preset.train, lr=0.5))
    write(store, build_result("aaaaaaaa", 70, **changes), preset)
    write(store, build_result("cccccccc", 70), other)
    comparison = compare_with_preset(build_result("bbbbbbbb", 40), preset, store)
    assert (comparison.preset_run, comparison.is_worse) == ("", False)
    assert "no finished run of the preset tiny with the same data is in the store" in comparison.sentence


def test_trial_that_is_the_preset_itself_is_said_to_be(tmp_path: Path, preset: RunConfig) -> None:
    store = Store(tmp_path)
    write(store, build_result("aaaaaaaa", 70), preset)
    comparison = compare_with_preset(build_result("aaaaaaaa", 70), preset, store)
    assert comparison.sentence == "the promoted trial has the settings of the preset tiny itself"
    assert not comparison.is_worse


@pytest.mark.parametrize(("anyway", "alias"), [(False, ""), (True, "champion")])
def test_model_that_is_worse_than_the_preset_becomes_no_champion_unless_asked_for(
    tmp_path: Path, preset: RunConfig, monkeypatch: pytest.MonkeyPatch, anyway: bool, alias: str
) -> None:
    store = Store(tmp_path)
    write(store, build_result("aaaaaaaa", 70), preset)
    space = Space("tiny", {"train.lr": Parameter(1e-4, 1e-2, log=True)})
    definition = Definition("now-playing", "synth-validation/v1", "d", "s", "0", (), ("segment_top1",), space)
    study = create_or_join(open_storage(None, store), definition, Origin("now-playing", None, None), None)
    trial = study.ask(distributions(space))
    study.tell(trial, 0.5)
    registered: list[object] = []
    monkeypatch.setattr(promotion, "run", lambda *_: build_result("bbbbbbbb", 40))
    monkeypatch.setattr(promotion, "_register_model", lambda *arguments: registered.append(arguments[-1]) or "1")
    made = promotion.promote(study.study_name, None, None, None, None, store, no_progress, print, anyway)
    assert registered == [alias]
    assert made.is_champion is anyway and made.comparison.is_worse
