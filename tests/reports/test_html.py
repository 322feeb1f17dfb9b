"""The report: what stands in it, what is refused, that nothing comes from outside, and how it looks in a browser."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from bench import registry
from bench.cli import app
from bench.errors import ConfigError
from bench.results import CONFIG, HITS, ROWS, SUMMARY
from bench.score.statistics import wilson
from bench.store import Store, write_frame, write_json
from bench.values import RATE_HZ, Cell

report = registry.load("report", "html")
from bench.reports.html.costs import Point, pareto_front  # noqa: E402  # through the registry first, as users load it
from bench.reports.html.failures import worst_queries  # noqa: E402
from bench.reports.html.provenance import without_folders  # noqa: E402
from bench.reports.html.svg import cut, label_width, spread  # noqa: E402

NUM_QUERIES = 40
LENGTHS_S = (0.96, 3.0)
CELLS = (
    Cell("identity"), Cell("clean"), Cell("noise", 0.0), Cell("noise", 20.0), Cell("reverb", t60_s=0.4),
    Cell("noise_reverb", 0.0, 0.5), Cell("noise_reverb", 20.0, 0.5),
)  # fmt: skip
FULL = (
    Cell("identity"), Cell("clean"), *(Cell("noise", float(snr)) for snr in range(0, 21, 5)),
    *(Cell("reverb", t60_s=t60) for t60 in (0.2, 0.4, 0.5, 0.7, 0.8)),
    *(Cell("noise_reverb", float(snr), 0.5) for snr in range(0, 21, 5)),
)  # fmt: skip
VOID = {"meta", "br", "img", "link", "hr", "input"}
LARGEST_MB = 15
LOSSES = ("nt-xent", "triplet")
KEY, OTHER = "a" * 16, "b" * 16


def hits(skill: float, seed: int, cells: tuple[Cell, ...] = CELLS, lengths_s: tuple[float, ...] = LENGTHS_S) -> Any:
    """Return hits of each cell and length in which a query is found where its difficulty is below the skill."""
    difficulty_Q = np.random.default_rng(0).random(NUM_QUERIES)
    draw = np.random.default_rng(seed)
    parts = []
    for cell in cells:
        for length_s in lengths_s:
            hit_Q = difficulty_Q + 0.2 * draw.random(NUM_QUERIES) < skill
            parts.append(
                pd.DataFrame({"query": np.arange(NUM_QUERIES), "hit": hit_Q}).assign(cell=cell.name, length_s=length_s)
            )
    table = pd.concat(parts, ignore_index=True)
    return table.assign(
        near=table["hit"], track_hit=table["hit"], rank=table["hit"].astype(int), start_s=1.5,
        found_s=np.where(table["hit"], 1.5, 9.0), found_track_id=np.where(table["hit"], "here", "there"),
        track_id="here", index="exact", sequence="rescore",
    )  # fmt: skip


def rows(found: pd.DataFrame, run: str, encoder: str, queries: str, benchmark: str) -> pd.DataFrame:
    """Return the rows of both top-1 of these hits."""
    cells = {cell.name: cell for cell in (*CELLS, *FULL)}
    made = []
    for (name, length_s), own in found.groupby(["cell", "length_s"], sort=False):
        cell, n = cells[str(name)], int(own["hit"].sum())
        low, high = wilson(n, len(own))
        for metric in ("segment_top1", "audio_top1"):
            made.append(
                {
                    "schema_version": 5, "run": run, "benchmark": benchmark, "queries": queries, "system": encoder,
                    "cell": name, "kind": cell.kind, "snr_db": cell.snr_db, "t60_s": cell.t60_s, "length_s": length_s,
                    "index": "exact", "sequence": "rescore", "metric": metric, "value": n / len(own), "n": len(own),
                    "low": low, "high": high,
                }
            )  # fmt: skip
    return pd.DataFrame(made).astype({"snr_db": float, "t60_s": float})


def keep(
    root: Path, run: str, found: pd.DataFrame, encoder: str = "mine", queries: str = "q1", benchmark: str = "b/v1"
) -> None:
    """Keep a finished run in a store."""
    folder = root / "runs" / run
    folder.mkdir(parents=True)
    write_frame(folder / ROWS, rows(found, run, encoder, queries, benchmark))
    write_frame(folder / HITS, found)
    seconds = {"training": 60.0, "database": 2.0}
    headline = {"audio_top1/mean": float(found["hit"].mean())}
    summary = {
        "run": run, "benchmark": benchmark, "system": encoder, "preset": "tiny", "index": "exact",
        "sequence": "rescore", "headline": headline, "parameters": 1000 * len(encoder), "seconds": seconds,
        "queries_per_cell": NUM_QUERIES, "database_tracks": 50, "database_vectors": 5000, "checkpoint": {"key": "w"},
    }  # fmt: skip
    write_json(folder / CONFIG, {"encoder": encoder, "model.dim": 64, "eval.hop_ms": 100.0, "seed": 0})
    tags = {
        "bench.version": "0.2.0",
        "bench.git": "0123456789abcdef",
        "bench.cmd": "bench run --data-root /home/me/music",
    }
    events: list[dict[str, Any]] = [
        {"kind": "status", "ms": 0, "value": "RUNNING"},
        {"kind": "tags", "ms": 1, "values": tags},
        {"kind": "dataset", "ms": 1, "name": "fma", "digest": "d1", "context": "train"},
        {"kind": "status", "ms": 90_000, "value": "FINISHED"},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    write_json(folder / SUMMARY, summary)


def keep_queries(root: Path, key: str = "q1") -> None:
    """Keep a query set of noise and more noise in a store."""
    folder = root / "queries" / key
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("music", "noise"):
        stems = draw.integers(-9000, 9000, (NUM_QUERIES, round(max(LENGTHS_S) * RATE_HZ)), dtype=np.int16)
        stems.tofile(folder / f"{name}.i16")
    table = pd.DataFrame({"query": range(NUM_QUERIES), "track": 0, "start_sample": 0, "identity_sample": 0})
    write_frame(folder / "queries.parquet", table)


def keep_alignment(root: Path, run: str, worse: float, truth_s: float = 0.5) -> None:
    """Keep a run that aligned recorders: `nosync` errs as ever, `path` by so much more."""
    folder = root / "runs" / run
    folder.mkdir(parents=True)
    names = [f"{i:03d}.wav" for i in range(8)]
    errors_s = np.linspace(0.1, 0.4, len(names))
    files = pd.concat(
        [
            pd.DataFrame(
                {
                    "set": "fine", "split": "test", "aligner": aligner, "name": names, "mse_s2": (errors_s * by) ** 2,
                    "mae_ms": 1000 * errors_s * by, "median_ms": 1000 * errors_s * by, "num_keypoints": 3,
                    "num_missing": 0, "confidence": 1.0,
                }
            )
            for aligner, by in (("nosync", 1.0), ("path", worse))
        ]
    )  # fmt: skip
    points = pd.DataFrame({"file": names, "time0_s": 1.0, "time1_s": 1.0 + truth_s, "found1_s": 1.0, "confidence": 1.0})
    write_frame(folder / "alignment.parquet", files)
    write_frame(folder / "keypoints.parquet", points.assign(set="fine", split="test", aligner="nosync"))
    write_frame(folder / ROWS, pd.DataFrame())
    write_json(folder / CONFIG, {})
    summary = {"run": run, "benchmark": "fine-align/v1", "system": "mine", "headline": {}, "seconds": {}}
    write_json(folder / SUMMARY, summary | {"parameters": 1})


def keep_sweep(root: Path, name: str, states: list[str], objectives: tuple[str, ...] = ("segment_top1",)) -> None:
    """Keep a sweep whose n-th trial reached 0.5 + n / 100; the second objective falls as the first rises."""
    folder = root / "sweeps" / name
    folder.mkdir(parents=True)
    numbers = np.arange(len(states))
    ended = np.array([state == "complete" for state in states])
    trials = pd.DataFrame({"number": numbers, "state": states, "run": "", "seconds": 12.0, "repeats": -1})
    for i, objective in enumerate(objectives):
        trials[f"value.{objective}"] = np.where(ended, 0.5 + (-1) ** i * numbers / 100, np.nan)
    trials["param.train.lr"] = 10.0 ** -(1 + numbers)
    trials["param.train.loss"] = np.where(numbers % 2, *LOSSES)
    write_frame(folder / "trials.parquet", trials)
    curves = [(n, step, 0.1 + step / 1000) for n in numbers for step in (100, 200)]
    write_frame(folder / "curves.parquet", pd.DataFrame(curves, columns=["number", "step", "value"]))
    best = numbers[ended].tolist() if len(objectives) > 1 else numbers[ended][-1:].tolist()
    about = {
        "study": name, "encoder": "mine", "benchmark": "val/v1", "objectives": objectives, "best": best,
        "directions": ["maximize"] * len(objectives), "importances": {"train.lr": 0.8, "train.loss": 0.2},
        "space": {"train.lr": {"low": 1e-9, "high": 0.1, "log": True}, "train.loss": {"choices": list(LOSSES)}},
        "budget": {"train.steps": 200}, "promoted": None,
    }  # fmt: skip
    write_json(folder / "study.json", about)


class Page(HTMLParser):
    """Reads a page: its tags in balance, its ids, what it refers to, its words, and its tables by their titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.ids: list[str] = []
        self.references: list[str] = []
        self.sources: list[str] = []
        self.words: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._title = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [str(values["id"])] if "id" in values else []
        self.references += re.findall(r"url\(#([^)]+)\)", " ".join(str(v) for v in values.values()))
        self.references += str(values.get("aria-labelledby", "")).split()
        for name in ("href", "src"):
            if (where := values.get(name)) is not None:
                (self.references if where.startswith("#") else self.sources).append(where.removeprefix("#"))
        if tag == "table":
            self.tables[self._title] = []
        elif tag == "tr":
            self.tables[self._title].append([])
        elif tag in ("td", "th") and self.tables:
            self.tables[self._title][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] == "h3":
            self._title = data
        if {"td", "th"} & set(self.open) and self.tables:
            self.tables[self._title][-1][-1] += data

    def cells(self, title: str) -> list[dict[str, str]]:
        """Return the rows of a table as what stands in each column, intervals left out."""
        head, *body = self.tables[title]
        return [dict(zip(head, (cell.strip().split("\n")[0] for cell in row), strict=True)) for row in body]


def page(root: Path, *runs: str, audio: bool = True) -> Page:
    return Page(report.render(Store(root), runs, audio))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    keep(tmp_path, KEY, hits(0.9, 1), "better")
    keep(tmp_path, OTHER, hits(0.5, 2), "worse")
    keep_queries(tmp_path)
    return tmp_path


def test_page_asks_for_nothing_from_outside_and_all_it_refers_to_is_there(two: Path) -> None:
    keep_sweep(two, "study", ["complete"] * 4)
    keep_alignment(two, "c" * 16, 0.1)
    html = report.render(Store(two))
    found = Page(html)
    assert not re.search("https?:", html)
    assert found.sources and all(source.startswith("data:") for source in found.sources)
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.references) <= set(found.ids)
    assert found.count["svg"] == found.count["desc"]
    assert "default-src 'none'" in html


def test_same_runs_give_the_same_page(two: Path) -> None:
    assert report.render(Store(two)) == report.render(Store(two))


def test_names_with_html_in_them_are_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    keep(tmp_path, KEY, hits(0.9, 1), name, benchmark="<b>$x$</b>")
    keep(tmp_path, OTHER, hits(0.5, 2), "other", benchmark="<b>$x$</b>")
    keep_sweep(tmp_path, "<i>study", ["complete"] * 4)
    html = report.render(Store(tmp_path))
    found = Page(html)
    assert name not in html
    assert found.count["script"] == 1 and "b" not in found.count and "i" not in found.count
    assert f"{name} aaaaaa" in found.text and "<b>$x$</b>" in found.text


def test_numbers_of_the_tables_are_those_of_the_result(two: Path) -> None:
    found = page(two)
    own = hits(0.9, 1)
    for length_s in LENGTHS_S:
        (row,) = [
            row for row in found.cells("Segment-level top-1, noise")
            if row["system"] == "better aaaaaa" and row["query"] == f"{length_s:g} s"
        ]  # fmt: skip
        for snr_db in (0, 20):
            right = own[(own["cell"] == f"noise/snr_{snr_db}") & (own["length_s"] == length_s)]["hit"].sum()
            low, high = wilson(int(right), NUM_QUERIES)
            assert row[f"{snr_db} dB"] == f"{100 * right / NUM_QUERIES:.1f} {100 * low:.1f}-{100 * high:.1f}"
    degraded = own[own["cell"].str.contains("noise|reverb")]
    assert found.cells("Ranking")[0]["mean top-1, %"].startswith(f"{100 * degraded['hit'].mean():.1f} ")


def test_best_run_is_named_with_its_lead_and_whether_it_is_significant(two: Path) -> None:
    one, other = (own[own["cell"].str.contains("noise|reverb")]["hit"].mean() for own in (hits(0.9, 1), hits(0.5, 2)))
    found = page(two)
    lead = f"{100 * (one - other):.1f} percentage points ahead"
    assert f"better aaaaaa identifies {100 * one:.1f} % of the queries, {lead}" in found.text
    assert "The difference is significant (paired over the same queries)" in found.text
    best, second = found.cells("Ranking")
    assert best["run"] == "better aaaaaa" and second["significantly worse"] == "yes"
    assert (best["rank"], second["rank"]) == ("1", "2")
    assert second["points behind the best"].startswith(f"{100 * (one - other):.1f} ")


def test_two_runs_that_find_the_same_do_not_differ_significantly(tmp_path: Path) -> None:
    for key in (KEY, OTHER):
        keep(tmp_path, key, hits(0.5, 1))
    found = page(tmp_path)
    assert "0.0 percentage points ahead" in found.text and "not significant" in found.text
    assert found.cells("Ranking")[1]["significantly worse"] == "no"
    assert [row["rank"] for row in found.cells("Ranking")] == ["1", "1"]


def test_run_with_missing_cells_is_shown_with_gaps_and_not_ranked(two: Path) -> None:
    few = hits(1.3, 3)
    keep(two, "c" * 16, few[few["cell"] != "noise/snr_0"], "best")
    found = page(two)
    assert "Not ranked, because conditions that other runs have are missing: best cccccc (2 missing)" in found.text
    assert [row["run"].split()[0] for row in found.cells("Ranking")] == ["better", "worse", "best"]
    noise = [row for row in found.cells("Segment-level top-1, noise") if row["system"] == "best cccccc"]
    assert [row["0 dB"] for row in noise] == ["-", "-"] and noise[0]["20 dB"].startswith("100 ")


def test_runs_of_different_queries_are_apart_with_a_warning(two: Path) -> None:
    keep(two, "c" * 16, hits(0.9, 3), "third", queries="q2")
    keep(two, "d" * 16, hits(0.9, 3), "fourth", benchmark="b/v2")
    found = page(two)
    assert "These runs answered different queries, so they are shown in 3 separate parts" in found.text
    assert {"q0", "q1", "q2"} <= set(found.ids)
    assert "warning" not in report.render(Store(two), [KEY, OTHER]).split("<main")[1]


def test_only_named_runs_are_in_it(two: Path) -> None:
    keep_sweep(two, "study", ["complete"] * 3)
    found = page(two, "bbb")
    assert "worse bbbbbb" in found.text and "better" not in found.tables["Ranking"][1][0]
    assert "sweep-0" not in found.ids


def test_trials_stand_with_their_sweep_and_not_among_the_runs(two: Path) -> None:
    keep_sweep(two, "study", ["complete"] * 3)
    trials = pd.read_parquet(two / "sweeps" / "study" / "trials.parquet").assign(run=["", OTHER, ""])
    write_frame(two / "sweeps" / "study" / "trials.parquet", trials)
    found = page(two)
    assert len(found.cells("Ranking")) == 1 and len(found.cells("Trials of study")) == 3


@pytest.mark.parametrize(("runs", "named"), [((), "no finished run"), (("abc",), "no finished run")])
def test_store_without_a_finished_run_is_refused(tmp_path: Path, runs: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        report.render(Store(tmp_path), runs)


def test_unknown_run_is_refused(two: Path) -> None:
    with pytest.raises(ConfigError, match="no run called 'zzz'"):
        report.render(Store(two), ["zzz"])


def test_damaged_run_is_left_out_and_named(two: Path) -> None:
    (two / "runs" / OTHER / HITS).write_bytes(b"PAR1 no more")
    found = page(two)
    assert "Left out: run bbbbbb: .../hits.parquet is damaged" in found.text
    assert len(found.cells("Ranking")) == 1


def test_worst_queries_can_be_seen_and_heard(two: Path) -> None:
    found = page(two)
    sounds = [source for source in found.sources if source.startswith("data:audio/mpeg")]
    pictures = [source for source in found.sources if source.startswith("data:image/png")]
    assert 1 <= len(sounds) == len(pictures) <= 6
    assert base64.b64decode(pictures[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "noise at 20 dB, queries of 3 s" in found.text


def test_without_audio_no_sound_or_picture_of_it_is_embedded(two: Path) -> None:
    html = report.render(Store(two), audio=False)
    assert "<audio" not in html and "data:" not in html.split("<body")[1]
    assert "missed by 2 of 2 runs" in html


def test_query_set_that_is_gone_is_said(two: Path) -> None:
    shutil.rmtree(two / "queries")
    found = page(two)
    assert "The query set q1 is no longer in the store" in found.text and "audio" not in found.count


def test_worst_queries_are_those_that_most_runs_miss_and_further_off_first() -> None:
    # Query 0 is missed by one run; 1 by both, near; 2 by both, on the wrong track; 3 by none.
    answers = pd.DataFrame(
        {
            "query": [0, 1, 2, 3] * 2,
            "hit": [True, False, False, True, False, False, False, True],
            "track_hit": [True, True, False, True, True, True, False, True],
            "near": [True, True, False, True, False, True, False, True],
        }
    )
    assert worst_queries(answers) == [2, 1, 0]


def test_front_holds_what_nothing_beats() -> None:
    found = [Point(1, 50, "cheap", ""), Point(2, 40, "beaten", ""), Point(3, 60, "good", ""), Point(4, 60, "dear", "")]
    assert [point.name for point in pareto_front(found, less=True)] == ["cheap", "good"]
    assert [point.name for point in pareto_front(found, less=False)] == ["dear"]


def test_labels_are_spread_and_stay_below_the_top() -> None:
    assert spread([10, 11, 50], 5, 60) == [10, 15, 50]
    assert spread([58, 59, 60], 5, 60) == [50, 55, 60]
    assert spread([], 5, 60) == []


def test_long_names_are_cut_beside_points_and_whole_in_tables(tmp_path: Path) -> None:
    name = "an-encoder-with-a-very-long-name-indeed"
    keep(tmp_path, KEY, hits(0.9, 1), name)
    keep(tmp_path, OTHER, hits(0.5, 2))
    html = report.render(Store(tmp_path))
    assert cut(name) == "an-encoder-with-a-very-lo..." and f">{cut(name)}</text>" in html
    assert label_width([name]) == label_width(["x" * 28]) > label_width(["mine"])
    assert page(tmp_path).cells("Ranking")[0]["run"] == f"{name} aaaaaa"


def test_alignment_has_one_row_for_an_aligner_that_erred_alike_and_two_for_one_that_did_not(tmp_path: Path) -> None:
    keep_alignment(tmp_path, KEY, 0.1)
    keep_alignment(tmp_path, OTHER, 0.2)
    found = page(tmp_path)
    names = [row["aligner"] for row in found.cells("fine, test")]
    assert names == ["path (mine aaaaaa)", "path (mine bbbbbb)", "nosync"]
    assert "path (mine aaaaaa) has the lowest mean squared error (mean absolute error 25 ms)" in found.text


def test_alignment_of_other_recordings_of_the_same_name_is_apart(tmp_path: Path) -> None:
    keep_alignment(tmp_path, KEY, 0.1)
    keep_alignment(tmp_path, OTHER, 0.1, truth_s=0.7)
    tables = [title for title in page(tmp_path).tables if title.startswith("fine, test (recordings")]
    assert len(tables) == 2


def test_sweep_shows_its_best_trial_and_what_mattered(two: Path) -> None:
    keep_sweep(two, "study", ["complete", "pruned", "complete", "complete", "failed"])
    html = report.render(Store(two))
    found = Page(html)
    assert "5 trials (3 complete, 1 pruned, 1 failed)" in found.text
    assert "The best is trial 3, with segment_top1 = 0.53." in found.text
    assert "train.lr 80 %; train.loss 20 %" in html
    assert "study: parallel coordinates" in html and "study: Pareto front" not in html
    assert [row["segment_top1"] for row in found.cells("Trials of study")] == ["0.5", "-", "0.52", "0.53", "-"]


def test_sweep_of_two_objectives_has_a_front(two: Path) -> None:
    keep_sweep(two, "study", ["complete"] * 3, ("segment_top1", "segments_per_s"))
    html = report.render(Store(two))
    assert "3 are on the Pareto front" in html
    assert "On the front: trial 2: 0.52 at 0.48; trial 1: 0.51 at 0.49; trial 0: 0.5 at 0.5" in html


def test_sweep_without_a_complete_trial_says_so(two: Path) -> None:
    keep_sweep(two, "study", ["running", "failed"])
    assert "No trial is complete yet." in page(two).text


def test_folders_of_a_machine_are_not_passed_on() -> None:
    assert without_folders("bench run --data-root /home/me/music -m ./mine.py --store=/tmp/s") == (
        "bench run --data-root .../music -m ./mine.py --store=.../s"
    )


def test_provenance_has_version_commit_digest_and_seconds(two: Path) -> None:
    found = page(two)
    (row,) = [row for row in found.cells("Runs") if row["key"] == KEY]
    assert (row["version"], row["commit"], row["duration"]) == ("0.2.0", "0123456789", "1.5 min")
    assert "fma, traind1" in found.text
    assert "training" in found.text and "/home/me" not in found.text


def test_command_writes_the_file_and_refuses_a_folder_that_is_not_there(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    told = CliRunner().invoke(app, ["report", "aaa", "--out", str(out), "--store", str(two), "--without-audio"])
    assert told.exit_code == 0 and "report.html" in told.output
    assert "better aaaaaa" in Page(out.read_text()).text
    refused = CliRunner().invoke(app, ["report", "--out", str(tmp_path / "none" / "r.html"), "--store", str(two)])
    assert isinstance(refused.exception, ConfigError)


@pytest.mark.slow
def test_report_of_a_hundred_runs_stays_small(tmp_path: Path) -> None:
    for i in range(100):
        found = hits(0.2 + i / 100, i, FULL, (0.96, 2.0, 3.0, 5.0))
        keep(tmp_path, f"{i:02d}" + "f" * 14, found, f"encoder-{i % 4}")
    html = report.render(Store(tmp_path))
    assert len(html.encode()) < LARGEST_MB * 1e6
    assert len(Page(html).cells("Ranking")) == 100


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
)
PHONE_PX, DESKTOP_PX = 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if driver is None or binary is None:
        pytest.skip("no Chromium and chromedriver on this machine; install both to see the report tested")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield chrome
    chrome.quit()


def shown(browser: Any, path: Path, width: int, features: Mapping[str, str] | None = None) -> None:
    """Open a page at a width of so many pixels, with media features such as a preference for dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE_PX}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wanted = [{"name": name, "value": value} for name, value in (features or {}).items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
    browser.get(path.as_uri())


@pytest.mark.slow
def test_browser_shows_it_on_desk_and_phone_light_and_dark(browser: Any, two: Path, tmp_path: Path) -> None:
    keep_sweep(two, "study", ["complete", "pruned", "complete", "complete"])
    keep_alignment(two, "c" * 16, 0.1)
    path = tmp_path / "report.html"
    path.write_text(report.render(Store(two)))
    background = "return getComputedStyle(document.body).backgroundColor"
    colours = {}
    for width, scheme in ((DESKTOP_PX, "light"), (PHONE_PX, "light"), (DESKTOP_PX, "dark")):
        shown(browser, path, width, {"prefers-color-scheme": scheme})
        wide = browser.execute_script("return [document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(wide) <= width, f"the page scrolls sideways at {width} px: {wide}"
        colours[scheme] = browser.execute_script(background)
        assert browser.save_screenshot(str(tmp_path / f"{width}-{scheme}.png"))
    assert colours["light"] != colours["dark"]
    browser.find_element("id", "theme").click()  # from dark to light, whatever the system prefers
    assert browser.execute_script(background) == colours["light"]
    browser.execute_script("localStorage.clear()")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.slow
def test_browser_sorts_a_table_by_number(browser: Any, two: Path, tmp_path: Path) -> None:
    keep(two, "c" * 16, hits(0.7, 3), "between")
    path = tmp_path / "report.html"
    path.write_text(report.render(Store(two)))
    shown(browser, path, DESKTOP_PX)
    title = "//h3[normalize-space()='Ranking']/ancestor::div[@class='table']"
    names = f"{title}//tbody/tr/th"
    assert [e.text.split()[0] for e in browser.find_elements("xpath", names)] == ["better", "between", "worse"]
    browser.find_element("xpath", f"{title}//thead//button[contains(., 'mean top-1')]").click()
    assert [e.text.split()[0] for e in browser.find_elements("xpath", names)] == ["worse", "between", "better"]
    assert browser.find_element("xpath", f"{title}//th[@aria-sort]").get_attribute("aria-sort") == "ascending"


def test_measured_rooms_have_a_curve_and_a_row_of_the_map_of_their_own() -> None:
    from bench.reports.html.conditions import AXES, _maps

    cells = (Cell("clean"), Cell("reverb", t60_s=0.4), Cell("measured_reverb", t60_s=0.4))
    shares = pd.DataFrame(
        {"kind": [c.kind for c in cells], "snr_db": np.nan, "t60_s": [np.nan, 0.4, 0.4], "length_s": 3.0,
         "value": [1.0, 0.9, 0.6], "low": 0.5, "high": 1.0, "n": 40}
    )  # fmt: skip
    assert AXES["measured_reverb"][1] == "Reverberation of measured rooms"
    ((_title, heat),) = [(heat.title, heat) for heat in _maps(shares, ([], [0.4], [3.0]))]
    assert [(name, [entry.text for entry in row]) for name, row in heat.rows] == [
        ("none", ["100", "90"]), ("measured rooms", ["", "60"]),
    ]  # fmt: skip
    ((_title, without),) = [(heat.title, heat) for heat in _maps(shares[:2], ([], [0.4], [3.0]))]
    assert [name for name, _row in without.rows] == ["none"]


def test_distortions_have_a_map_of_their_own_and_do_not_stand_for_clean_queries() -> None:
    from bench.reports.html.conditions import _distortion_map, _list_distortions, _maps, _select_distorted

    cells = (Cell("clean"), Cell("codec", distortion="mp3_16"), Cell("device", 0.0, 0.5, "loudspeaker"))
    shares = pd.DataFrame(
        {"cell": [c.name for c in cells], "kind": [c.kind for c in cells], "snr_db": [np.nan, np.nan, 0.0],
         "t60_s": [np.nan, np.nan, 0.5], "distortion": [c.distortion or None for c in cells], "length_s": 3.0,
         "value": [1.0, 0.9, 0.6], "low": 0.5, "high": 1.0, "n": 40}
    )  # fmt: skip
    distorted = _select_distorted(shares)
    (grid,) = _maps(shares.drop(index=distorted.index), ([], [], [3.0]))
    assert [(name, [entry.text for entry in row]) for name, row in grid.rows] == [("none", ["100"])]
    (heat,) = _distortion_map(distorted, _list_distortions([distorted]), [3.0])
    assert [(name, [entry.text for entry in row]) for name, row in heat.rows] == [
        ("MP3 16 kbit/s", ["90"]), ("loudspeaker, 0 dB", ["60"]),
    ]  # fmt: skip
    old = shares[:1].drop(columns="distortion")  # a run before there were distortions
    assert _distortion_map(_select_distorted(old), _list_distortions([_select_distorted(old)]), [3.0]) == []
