"""A whole run by stage: how stages inside each other are told, compared, kept and shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import registry
from bench.cli import speed as cli
from bench.config import resolve
from bench.errors import BenchError, ConfigError
from bench.speed import stages
from bench.speed.network import RECORD, Stopwatch, check_alike
from bench.speed.stages import SAME_WORK, RunSpeed, Stage, StageRecorder, check_no_slower, read_run_speed
from bench.store import Store
from bench.timing import time_each

MEASURED = RunSpeed(
    encoder="mine", preset="tiny", dataset="synth", task="all", device="cpu", matrix_tflops=0.1,
    work={"steps": 10, "database_vectors": 100, "query_vectors": 20},
    stages=(
        Stage("run", 1, 10.0, 900.0), Stage("run/weights", 1, 6.0, 800.0, floor_s=1.5),
        Stage("run/weights/forward", 10, 4.0, 700.0), Stage("run/hits", 3, 2.0, 900.0),
        Stage("run/score", 1, 0.05, 0.0),
    ),
)  # fmt: skip


def with_seconds(speed: RunSpeed, **seconds: float) -> RunSpeed:
    """Return the measurement with other seconds of the stages with these last names."""
    changed = (replace(s, seconds=seconds.get(s.path.rpartition("/")[2], s.seconds)) for s in speed.stages)
    return replace(speed, stages=tuple(changed))


def test_stages_inside_each_other_have_paths_and_the_highest_peak_since_they_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    peaks_mib = iter([0.0, 5.0, 9.0, 7.0, 4.0, 3.0])
    monkeypatch.setattr(stages, "take_peak_mib", lambda device: next(peaks_mib))
    recorder = StageRecorder(Stopwatch(torch.device("cpu")))
    with recorder.stage("run"):
        Store(tmp_path, recorder.stage).fetch("pcm", "key", lambda folder: None)
        Store(tmp_path, recorder.stage).fetch("pcm", "key", lambda folder: pytest.fail("it is in the store"))
        with recorder.stage("score"):
            pass
    told = [(stage.path, stage.times, stage.peak_mib) for stage in recorder.stages()]
    assert told == [("run", 1, 9.0), ("run/pcm", 1, 9.0), ("run/score", 1, 4.0)]


def test_a_stage_that_fails_is_left_and_not_told() -> None:
    recorder = StageRecorder(Stopwatch(torch.device("cpu")))
    with recorder.stage("run"):
        with pytest.raises(ZeroDivisionError), recorder.stage("weights"):
            _ = 1 / 0
        with recorder.stage("hits"):
            pass
    assert [stage.path for stage in recorder.stages()] == ["run", "run/hits"]


def test_waiting_for_each_item_is_timed() -> None:
    recorder = StageRecorder(Stopwatch(torch.device("cpu")))
    assert list(time_each(iter("abc"), "wait", recorder.stage)) == ["a", "b", "c"]
    assert [(stage.path, stage.times) for stage in recorder.stages()] == [("wait", 4)]  # the last finds the end


def test_the_rest_of_a_stage_is_what_no_stage_inside_it_took() -> None:
    assert MEASURED.rest_s(MEASURED.whole) == pytest.approx(10.0 - 6.0 - 2.0 - 0.05)
    assert MEASURED.rest_s(MEASURED.stages[1]) == pytest.approx(2.0)


def test_a_stage_slower_by_more_than_is_allowed_is_named_with_both_times() -> None:
    check_no_slower(with_seconds(MEASURED, weights=6.3), MEASURED, 0.05)
    with pytest.raises(
        BenchError, match=r"more than 5 %: run/weights took 6\.36 s, 1\.06 times the 6 s before"
    ) as told:
        check_no_slower(with_seconds(MEASURED, weights=6.36, hits=1.0), MEASURED, 0.05)
    assert told.value.exit_code == 1 and "run/hits" not in str(told.value)


def test_a_stage_below_a_hundredth_of_both_runs_is_not_judged() -> None:
    check_no_slower(with_seconds(MEASURED, score=0.09), MEASURED, 0.05)
    with pytest.raises(BenchError, match=r"run/score took 0\.2 s, 4\.00 times"):
        check_no_slower(with_seconds(MEASURED, score=0.2), MEASURED, 0.05)


def test_a_stage_that_only_one_of_the_runs_has_is_not_judged() -> None:
    check_no_slower(MEASURED, replace(MEASURED, stages=MEASURED.stages[:1]), 0.05)
    check_no_slower(replace(MEASURED, stages=MEASURED.stages[:1]), MEASURED, 0.05)


def test_floors_are_the_arithmetic_over_the_measured_rate() -> None:
    work = {"steps": 10, "database_vectors": 100, "query_vectors": 20}
    floors_s = stages.reckon_floors(work, 600.0, 30.0, 8, (100.0, 10.0, 1000.0))
    assert floors_s == {
        "run/weights": 180.0, "run/weights/forward": 60.0, "run/weights/backward": 120.0,
        "run/fingerprints": 300.0, "run/hits/mix and embed": 60.0,
        "run/hits/scan": 32.0,
    }  # fmt: skip


def test_query_vectors_are_counted_over_cells_lengths_and_segments() -> None:
    plugin = registry.load("encoder", "now-playing")
    settings = ["eval.lengths_s=[0.96, 3.0]", "eval.snr_db=[0.0]", "eval.t60_s=[0.4]"]
    config = resolve("now-playing", plugin, "tiny", overrides=settings)
    # Five cells: two controls, noise, reverb, both. Of segments of 1 s every 100 ms, 3 s hold 21 and 0.96 s one.
    assert stages.count_query_vectors(config, 7, 16_000) == 7 * 5 * (1 + 21)


def test_a_measured_run_is_kept_and_read_and_shown_beside_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps(asdict(MEASURED)))
    assert read_run_speed(tmp_path / RECORD) == MEASURED
    console = Console(width=120, record=True, file=StringIO())
    console.print(registry.load("report", "speed").render_run(MEASURED, with_seconds(MEASURED, weights=12.0)))
    rows = {words[0]: words[1:] for line in console.export_text().splitlines() if (words := line.split())}
    assert rows["weights"] == ["1", "6.00", "60.0%", "800", "4.0", "0.50"]
    assert rows["hits"] == ["3", "2.00", "20.0%", "900", "1.00"]
    assert rows["score"] == ["1", "0.05", "0.5%", "-", "1.00"]
    assert "2.00" in rows["(rest)"] or "1.95" in rows["(rest)"]


def test_a_run_is_compared_with_one_of_the_same_work_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the same work"):
        check_alike(MEASURED, replace(MEASURED, work=MEASURED.work | {"steps": 20}), SAME_WORK)
    (tmp_path / RECORD).write_text('{"kind": "train"}')
    with pytest.raises(ConfigError, match="is no record of `bench speed`"):
        read_run_speed(tmp_path / RECORD)


def test_the_limit_is_a_percentage_and_needs_a_measurement_to_compare_with() -> None:
    assert cli._parse_allowed(None, None) is None
    assert cli._parse_allowed("5%", Path(RECORD)) == 0.05
    assert cli._parse_allowed("2.5 %", Path(RECORD)) == 0.025
    for text in ("5", "-5%", "five"):
        with pytest.raises(ConfigError, match="a percentage such as 5%"):
            cli._parse_allowed(text, Path(RECORD))
    with pytest.raises(ConfigError, match="needs --against"):
        cli._parse_allowed("5%", None)
