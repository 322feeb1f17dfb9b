"""What a result becomes in MLflow: which metrics, at which steps, and the description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import registry
from bench.config import resolve
from bench.logbook import mlflow_metrics, note
from bench.logbook.mlflow_metrics import METRIC_KEYS, OTHER_KEYS, log_result
from bench.results import Result
from bench.settings import RunConfig

COLUMNS = (
    "system",
    "kind",
    "cell",
    "snr_db",
    "t60_s",
    "length_s",
    "index",
    "sequence",
    "metric",
    "value",
    "low",
    "high",
)
NAN = float("nan")


class Heard:
    """A logbook that remembers the metrics and the description."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int], float] = {}
        self.described = ""

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.points |= {(name, step): value for name, value in values.items()}

    def note(self, markdown: str) -> None:
        self.described = markdown

    def table(self, *told: object) -> None:
        pass

    def artifact(self, *told: object) -> None:
        pass

    @property
    def keys(self) -> set[str]:
        return {name for name, _ in self.points}


def row(kind: str, snr_db: float, t60_s: float, length_s: float, metric: str, value: float) -> tuple[Any, ...]:
    cell = f"{kind}/{snr_db}/{t60_s}"
    return (
        "mine",
        kind,
        cell,
        snr_db,
        t60_s,
        length_s,
        "exact",
        "rescore",
        metric,
        value,
        max(0.0, value - 0.1),
        value + 0.1,
    )


@pytest.fixture
def settings() -> RunConfig:
    # Registered ones, as a run has them; the rows are those of an encoder called `mine`.
    aligners = "align.aligners=['nosync', 'fingerprint-median', 'fingerprint-path']"
    return resolve("mine", registry.load("encoder", "random-projection"), "small", overrides=[aligners])


@pytest.fixture
def result() -> Result:
    conditions = [("clean", NAN, NAN), ("noise", 0.0, NAN), ("noise", 5.0, NAN), ("reverb", NAN, 0.3)]
    rows = [
        row(*condition, length_s, metric, length_s / 10)
        for condition in conditions
        for length_s in (0.96, 5.0)
        for metric in ("segment_top1", "audio_top1", "mrr")
    ]
    summary = {
        "run": "k", "benchmark": "fma-segment/v1", "system": "mine", "preset": "small", "index": "exact",
        "sequence": "rescore", "queries_per_cell": 10, "database_vectors": 100, "database_tracks": 5, "parameters": 7,
        "headline": {"segment_top1/mean": 0.25, "control/identity": 1.0},
        "seconds": {"training": 9.0, "decoding": 3.0, "control_database": 1.0, "database": 2.0},
    }  # fmt: skip
    return Result(pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(), pd.DataFrame(), summary)


def logged(result: Result, settings: RunConfig) -> Heard:
    heard = Heard()
    log_result(heard, Path("run"), result, settings)  # type: ignore[arg-type]
    return heard


def with_aligners(result: Result, sets: int, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Return the result with errors of three aligners on so many sets."""
    names = [f"set-{number}" for number in range(sets)]
    aligners = ("nosync", "fingerprint-median", "fingerprint-path")
    errors = {
        f"{error}/{name}/{each}": 0.5 for error in ("align_mse", "align_mae_ms") for name in names for each in aligners
    }
    table = pd.DataFrame([{"set": n, "aligner": a, "mae_ms": 2440.3, "mse_s2": 0.5} for n in names for a in aligners])
    for module in (mlflow_metrics, note):
        monkeypatch.setattr(module, "summarise_sets", lambda files: table)
    summary = result.summary | {"headline": result.summary["headline"] | errors}
    files = pd.DataFrame({"name": ["one", "two"]})
    return Result(result.rows, result.hits, result.conditions, summary, files)


def test_curves_are_of_segments_at_every_length_and_of_tracks_at_the_longest(
    result: Result, settings: RunConfig
) -> None:
    heard = logged(result, settings)
    curves = {name for name in heard.keys if "s/" in name}
    assert curves == {
        *("segment_top1_0.96s/noise", "segment_top1_0.96s/reverb", "segment_top1_5s/noise", "segment_top1_5s/reverb"),
        *("audio_top1_5s/noise", "audio_top1_5s/reverb"),
    }
    assert {step for name, step in heard.points if name == "segment_top1_5s/noise"} == {0, 5}  # dB
    assert {step for name, step in heard.points if name == "audio_top1_5s/reverb"} == {300}  # ms
    assert heard.points["segment_top1/clean", 0] == pytest.approx((0.096 + 0.5) / 2)


def test_distortions_are_logged_as_one_mean_for_each_kind(
    result: Result, settings: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"speed": ("speed_0.98", "speed_1.02"), "device": ("telephone", "loudspeaker")}
    levels = {"loudspeaker": 0.0}
    distorted = pd.DataFrame(
        [
            (*row(kind, levels.get(name, NAN), NAN, length_s, "segment_top1", value / 10), name)
            for kind, names in kinds.items()
            for value, name in enumerate(names, 1)
            for length_s in (0.96, 5.0)
        ],
        columns=[*COLUMNS, "distortion"],
    )
    distorted["cell"] += "/" + distorted["distortion"]
    rows = pd.concat([result.rows.assign(distortion=None), distorted], ignore_index=True)
    heard = logged(replace(result, rows=rows), settings)
    assert heard.points["segment_top1_0.96s/speed", 0] == pytest.approx(0.15)
    assert heard.points["segment_top1_0.96s/device", 0] == pytest.approx(0.15)
    assert not {"segment_top1_5s/speed", "segment_top1_5s/device"} & heard.keys
    assert "| speed -2 %&nbsp;" in heard.described and "| loudspeaker, 0 dB&nbsp;" in heard.described


def test_costs_are_those_that_depend_on_the_encoder(result: Result, settings: RunConfig) -> None:
    costs = {name for name in logged(result, settings).keys if name.startswith("cost/")}
    assert costs == {"cost/training_s", "cost/database_s", "cost/parameters"}


def test_aligners_that_hear_by_the_encoder_are_logged(
    result: Result, settings: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = logged(with_aligners(result, 2, monkeypatch), settings).keys
    assert {"align_mse/set-0/fingerprint-path", "align_mae_ms/set-1/fingerprint-median"} <= keys
    assert not {name for name in keys if name.endswith("nosync")}


def test_with_many_sets_the_best_known_aligner_alone_is_logged_and_keys_stay_few(
    result: Result, settings: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = logged(with_aligners(result, 12, monkeypatch), settings).keys
    aligned = {name for name in keys if name.startswith("align_")}
    assert len(aligned) == 24 and all(name.endswith("/fingerprint-path") for name in aligned)
    assert len(keys) + OTHER_KEYS < METRIC_KEYS


def test_description_has_headline_grid_and_aligners(
    result: Result, settings: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = logged(with_aligners(result, 1, monkeypatch), settings).described.replace("&nbsp;", "")
    lines = text.splitlines()
    assert lines[0].endswith("Segment-level top-1, mean of the degraded cells: **25.0%**.")
    assert "| control/identity | 1.0000 |" in lines
    assert "| condition | 0.96 s | 5 s |" in lines
    assert "| noise, 5 dB | 9.6 (0-20) | 50.0 (40-60) |" in lines
    assert "| reverb, 0.3 s | 9.6 (0-20) | 50.0 (40-60) |" in lines
    assert "| fingerprint-path | 2440 ms, 0.5 s2 |" in lines
    assert "align_mse" not in text
