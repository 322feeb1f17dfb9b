"""From hits to rows, headline numbers and the table: by hand, on a grid of two cells."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from bench import config, registry
from bench.errors import ConfigError, StoreError
from bench.results import CONDITIONS, CONFIG, HITS, ROWS, SUMMARY, Result, headline, read_result, write_result
from bench.runs import find_run
from bench.score.rows import SCHEMA_VERSION, Row, load_schema, to_frame, to_records
from bench.settings import RunConfig
from bench.store import Store

jsonschema = pytest.importorskip("jsonschema")

DISTORTED_CELLS = (
    ("speed", "speed_1.01"), ("tempo", "tempo_0.96"), ("pitch", "pitch_+50"), ("codec", "mp3_16"),
    ("dynamics", "clip_12"), ("device", "telephone"),
)  # fmt: skip


def row(system: str, kind: str, value: float, **more: object) -> Row:
    told = {"snr_db": 0.0 if kind == "noise" else None, "length_s": 0.96, "index": "exact", "metric": "segment_top1"}
    told |= more
    told = {"sequence": "rescore", "distortion": None, "distractors": 0, "origin": None} | told
    return Row(
        SCHEMA_VERSION, "0" * 16, "fma-segment/v1", "q", system, kind, kind, t60_s=None, n=10,
        low=0.0, high=1.0, value=value, **told,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def settings() -> RunConfig:
    plugin = registry.load("encoder", "random-projection")
    return config.resolve("mine", plugin, "tiny", overrides=["eval.lengths_s=[0.96, 2.0]"])


@pytest.fixture
def rows() -> pd.DataFrame:
    return to_frame(
        [
            row("mine", "identity", 1.0),
            row("mine", "noise", 0.5),
            row("mine", "noise", 0.9, length_s=2.0),
            row("mine", "noise", 0.7, metric="audio_top1"),
            row("mine", "noise", 0.4, index="falconn"),
            row("mine", "noise", 0.9, index="falconn", length_s=2.0),
            row("mine", "identity", 1.0, index="falconn"),
            row("random-projection", "noise", 0.2),
            row("random-projection", "identity", 1.0),
            row("shuffled-labels", "clean", 0.01),
            row("mine", "identity", 0.8, length_s=2.0),
            row("mine", "noise", 0.8, sequence="interpolate"),
            row("mine", "noise", 0.9, sequence="interpolate", length_s=2.0),
            row("mine", "identity", 1.0, sequence="interpolate"),
            row("mine", "noise", 0.0, sequence="interpolate", index="falconn"),
        ]
    )


def test_headline_means_are_over_degraded_cells_and_the_floor_is_at_the_shortest_length(
    rows: pd.DataFrame, settings: RunConfig
) -> None:
    conditions = pd.DataFrame(
        [{"cell": "noise", "length_s": 0.96, "snr_db_min": -0.01, "snr_db_mean": 0.0, "snr_db_max": 0.03}]
    )
    numbers = headline(rows, conditions, settings, 0.96)
    assert numbers["segment_top1/mean"] == pytest.approx(0.7)
    assert numbers["segment_top1/mean_0.96s"] == pytest.approx(0.5)
    assert numbers["audio_top1/mean"] == pytest.approx(0.7)
    assert numbers["control/identity"] == 1.0
    longer = headline(rows, conditions, settings, 1.0)  # 0.96 s do not hold a segment of this encoder
    assert longer == numbers | {"control/identity": 0.8}
    assert numbers["control/random_projection"] == pytest.approx(0.2)
    assert numbers["control/shuffled_labels"] == pytest.approx(0.01)
    assert numbers["index/falconn_loses_points"] == pytest.approx(100 * (3.2 / 4 - 2.3 / 3))
    assert numbers["sequence/interpolate_gains_points"] == pytest.approx(15.0)  # 0.85 instead of 0.7
    assert "sequence/vote_gains_points" not in numbers  # there are no such rows
    assert numbers["conditions/largest_snr_error_db"] == pytest.approx(0.03)


def test_rows_of_v2_are_in_the_means_and_fit_the_schema(rows: pd.DataFrame, settings: RunConfig) -> None:
    more = to_frame([row("mine", kind, 0.9, distortion=name) for kind, name in DISTORTED_CELLS])
    numbers = headline(pd.concat([rows, more]), pd.DataFrame(), settings, 0.96)
    # noise 0.5 and 0.9 as before, and six distortions
    assert numbers["segment_top1/mean"] == pytest.approx((0.5 + 0.9 + 6 * 0.9) / 8)
    told = to_records(more.assign(benchmark="fma-segment/v2"))
    assert [record["distortion"] for record in told] == [name for _kind, name in DISTORTED_CELLS]
    jsonschema.validate(told, load_schema())


def test_run_before_there_were_distortions_is_read(tmp_path: Path, result: Result, settings: RunConfig) -> None:
    write_result(tmp_path, replace(result, rows=result.rows.drop(columns="distortion")), settings)
    assert read_result(tmp_path).rows["distortion"].isna().all()


def test_records_say_null_for_what_is_not_there_and_fit_the_schema(rows: pd.DataFrame) -> None:
    told = to_records(rows)
    assert told[0]["snr_db"] is None and told[1]["snr_db"] == 0.0
    jsonschema.validate(told, load_schema())


@pytest.fixture
def result(rows: pd.DataFrame) -> Result:
    summary = {
        "run": "0" * 16, "benchmark": "fma-segment/v1", "system": "mine", "preset": "tiny", "index": "exact",
        "sequence": "rescore", "queries_per_cell": 10, "headline": {"segment_top1/mean": 0.7},
        "seconds": {"training": 61.0},
    }  # fmt: skip
    return Result(rows, pd.DataFrame({"query": [0]}), pd.DataFrame({"cell": ["noise"]}), summary)


def test_table_shows_conditions_intervals_and_the_floor(result: Result) -> None:
    console = Console(width=120, record=True, file=StringIO())
    console.print(registry.load("report", "grid").render(result))
    text = console.export_text()
    assert "noise 0 dB" in text and "on the grid" in text
    assert "50.0  0-100" in text and "20.0  0-100" in text
    assert "exact" in text and "n = 10" in text
    assert "40.0" not in text  # FALCONN's row is not the one shown


def test_kept_result_is_found_by_the_beginning_of_its_key_or_as_the_latest(
    result: Result, settings: RunConfig, tmp_path: Path
) -> None:
    for key in ("aa11", "ab22"):
        folder = tmp_path / "runs" / key
        folder.mkdir(parents=True)
        write_result(folder, result, settings)
        assert {path.name for path in folder.iterdir()} == {ROWS, HITS, CONDITIONS, SUMMARY, CONFIG}
    pd.testing.assert_frame_equal(find_run(Store(tmp_path), "aa").load_result().rows, result.rows)
    pd.testing.assert_frame_equal(find_run(Store(tmp_path)).load_result().rows, result.rows)
    with pytest.raises(ConfigError, match="2 runs begin with 'a'"):
        find_run(Store(tmp_path), "a")
    with pytest.raises(ConfigError, match="no run called 'zz'"):
        find_run(Store(tmp_path), "zz")
    with pytest.raises(ConfigError, match="no finished run"):
        find_run(Store(tmp_path / "empty"), None)


def test_damaged_result_is_named(result: Result, settings: RunConfig, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "aa11"
    folder.mkdir(parents=True)
    write_result(folder, result, settings)
    (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:50])
    with pytest.raises(StoreError, match=r"rows\.parquet is damaged"):
        find_run(Store(tmp_path), "aa11").load_result()
