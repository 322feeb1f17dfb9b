"""The paper's tables: values by hand on grids of a few cells, published numbers against a second transcription."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.degrade.cells import list_cells
from bench.errors import ConfigError
from bench.reports import paper
from bench.reports._published import load_published_segments
from bench.reports.paper import Entry, Line, PaperTable
from bench.results import Result
from bench.score.statistics import bootstrap_mean, wilson
from bench.settings import EvalConfig
from bench.values import Cell

NOISE = Cell("noise", snr_db=0)
FEW, MANY = [True] * 6 + [False] * 14, [True] * 18 + [False] * 2
Hits = Mapping[tuple[Cell, float], Sequence[bool]]


def result(
    run: str, hits: Hits, encoder: str = "mine", settings: dict[str, Any] | None = None, **summary: Any
) -> Result:
    """Return a result with these hits; the right track is found in every query. The control finds half of 0.96 s."""
    parts, rows = [], []
    for (cell, length_s), found in hits.items():
        names = {"cell": cell.name, "length_s": length_s, "index": "exact", "sequence": "rescore"}
        parts.append(pd.DataFrame({"query": range(len(found)), "hit": found, "track_hit": True}).assign(**names))
        of_cell = {"kind": cell.kind, "snr_db": cell.snr_db, "t60_s": cell.t60_s, "queries": "q1"}
        control = {
            "system": "random-projection",
            "metric": "segment_top1",
            "value": 0.5,
            "low": 0.4,
            "high": 0.6,
            "n": 20,
        }
        rows.append(names | of_cell | (control if length_s == 0.96 else {"system": encoder, "metric": "segment_top1"}))
    facts = {
        "run": run * 16, "benchmark": "fma-segment/v1", "system": encoder, "index": "exact", "sequence": "rescore",
        "queries_per_cell": 20, "parameters": 1234567, "database_vectors": 1000, "seconds": {"database": 4.0},
    }  # fmt: skip
    facts |= {"settings": settings} if settings else {}
    return Result(pd.DataFrame(rows), pd.concat(parts, ignore_index=True), pd.DataFrame(), facts | summary)


def on_the_grid(run: str, encoder: str = "mine", settings: dict[str, Any] | None = None) -> Result:
    """Return a result of all cells and lengths of the benchmark."""
    standard = EvalConfig()
    return result(
        run, {(cell, s): MANY for cell in list_cells(standard) for s in standard.lengths_s}, encoder, settings
    )


def table(results: Sequence[Result], key: str) -> PaperTable:
    return next(each for each in paper.paper_tables(results) if each.key == key)


def runs(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.origin == "run"]


def column(*hits: Sequence[bool]) -> list[Entry]:
    """Return the entries of noise at 0 dB of runs with these hits."""
    own = [result(letter, {(NOISE, 0.96): found}) for letter, found in zip("abcd", hits, strict=False)]
    return [entry for line in runs(table(own, "segment_noise").lines) if (entry := line.entries[0])]


def shown(drawn: object, width: int, styles: bool = False) -> str:
    console = Console(width=width, record=True, file=StringIO(), force_terminal=True, color_system="standard")
    console.print(drawn)
    return console.export_text(styles=styles)


def test_a_share_has_its_interval_and_the_best_is_told_from_those_worse_and_those_alike() -> None:
    one_less = [False, *MANY[1:]]
    few, many, alike = column(FEW, MANY, one_less)
    assert (few.value, few.low, few.high, few.n) == (0.3, *wilson(6, 20), 20)
    # Twelve queries by the best alone: p = 2 / 2 ** 12. One by the best alone: p = 1.
    assert [(e.best, e.alike) for e in (few, many, alike)] == [(False, False), (True, False), (False, True)]


def test_the_test_is_corrected_for_the_comparisons_of_a_column() -> None:
    six_less = MANY[:12] + [False] * 8  # p = 2 / 2 ** 6 = 0.03, twice that after Holm's correction for two
    other_six = [False] * 6 + MANY[6:]
    assert [entry.alike for entry in column(MANY, six_less)] == [False, False]
    assert [entry.alike for entry in column(MANY, six_less, other_six)] == [False, True, True]


def test_a_tie_has_two_best() -> None:
    assert [(e.best, e.alike) for e in column(MANY, FEW, list(reversed(MANY)))] == [
        (True, False), (False, False), (True, False),
    ]  # fmt: skip


def test_a_run_alone_is_best_of_nothing_and_stands_above_published_rows() -> None:
    lines = table([on_the_grid("a")], "segment_noise").lines
    assert not any(entry.best or entry.alike for line in lines for entry in line.entries if entry)
    first = [line for line in lines if line.group == "0.96 s"]
    assert [(line.label, line.origin) for line in first[:3]] == [
        ("mine aaaaaa", "run"), ("random projection", "control"), ("Attention CNN", "published"),
    ]  # fmt: skip
    assert "bold" not in table([on_the_grid("a")], "segment_noise").caption


def test_measured_rooms_have_a_table_of_their_own_and_no_share_in_the_means() -> None:
    cells = (NOISE, Cell("reverb", t60_s=0.7), Cell("measured_reverb", t60_s=0.7))
    with_rooms = result("a", dict(zip(((cell, 0.96) for cell in cells), (MANY, MANY, FEW), strict=True)))
    simulated, measured = (table([with_rooms], f"segment_{kind}") for kind in ("reverb", "measured_reverb"))
    assert simulated.title == "segment-level top-1, reverb"
    assert measured.title == "segment-level top-1, reverb of measured rooms" and measured.columns == ("0.7 s",)
    first_entries = [next(iter(runs(each.lines))).entries[0] for each in (simulated, measured)]
    assert [entry and entry.value for entry in first_entries] == [0.9, 0.3]
    # Published rooms are measured ones: their rows stand in both tables.
    published = [[line.entries for line in each.lines if line.origin == "published"] for each in (simulated, measured)]
    assert published[0] == published[1] != []
    (mean,) = runs(table([with_rooms], "mean").lines)
    assert mean.entries[0] is not None and mean.entries[0].value == pytest.approx(0.9)


def test_tables_have_the_conditions_as_columns_and_the_lengths_as_groups() -> None:
    tables = {each.key: each for each in paper.paper_tables([on_the_grid("a")])}
    assert list(tables) == [
        "segment_noise", "segment_reverb", "segment_noise_reverb",
        "audio_noise", "audio_reverb", "audio_noise_reverb", "mean",
    ]  # fmt: skip
    assert tables["segment_noise"].columns == ("0 dB", "5 dB", "10 dB", "15 dB", "20 dB")
    assert tables["segment_reverb"].columns == ("0.2 s", "0.4 s", "0.5 s", "0.7 s", "0.8 s")
    assert "t60 0.5 s" in tables["segment_noise_reverb"].title
    # What is published of 1 s has a heading of its own, and so has what does not say in which rooms it was measured.
    lengths = ["0.96 s", "1 s", "2 s", "3 s", "5 s"]
    assert list(dict.fromkeys(line.group for line in tables["segment_noise"].lines)) == lengths
    assert list(dict.fromkeys(line.group for line in tables["segment_noise_reverb"].lines)) == [
        "0.96 s", "1 s, t60 not stated", "2 s", "2 s, t60 not stated", "3 s", "3 s, t60 not stated", "5 s",
        "5 s, t60 not stated",
    ]  # fmt: skip
    assert {line.group for line in tables["audio_noise"].lines} == {"5 s"}
    assert [entry and entry.value for entry in runs(tables["audio_noise"].lines)[0].entries] == [1.0] * 5


def test_missing_cells_are_empty_entries_and_judged_among_those_that_have_them() -> None:
    other = Cell("noise", snr_db=5)
    whole = result("a", {(NOISE, 0.96): FEW, (other, 0.96): FEW, (NOISE, 3): FEW})
    partly = result("b", {(other, 0.96): MANY})
    found = table([whole, partly], "segment_noise")
    assert found.columns == ("0 dB", "5 dB")
    (one, two), (none, best) = (line.entries for line in runs(found.lines) if line.group == "0.96 s")
    assert none is None and one and two and best
    assert (one.best, two.best, best.best) == (False, False, True)
    assert [line.entries for line in runs(found.lines) if line.group == "3 s"][1] == (None, None)
    row = next(line for line in shown(paper.render_tables([found]), 80).splitlines() if line.startswith("mine bbbbbb"))
    assert row.split() == ["mine", "bbbbbb", "-", "90.0", "70-97"]
    # The mean is over the one cell that both have.
    means = runs(table([whole, partly], "mean").lines)
    assert [line.entries[-1] and line.entries[-1].value for line in means] == [0.3, 0.9]


def test_means_are_over_degraded_cells_with_intervals_over_queries() -> None:
    clean, reverb = Cell("clean"), Cell("reverb", t60_s=0.5)
    own = result("a", {(NOISE, 0.96): FEW, (reverb, 0.96): MANY, (clean, 0.96): [True] * 20, (NOISE, 3): MANY})
    better = result("b", dict.fromkeys(own_keys(own), MANY))
    short, long, both = runs(table([own, better], "mean").lines)[0].entries
    assert short and long and both
    per_query = np.array([1.0] * 6 + [0.5] * 12 + [0.0] * 2)  # of two cells of 0.96 s
    assert short.value == pytest.approx(0.6) and (short.low, short.high) == bootstrap_mean(per_query)
    assert long.value == pytest.approx(0.9) and both.value == pytest.approx((6 + 18 + 18) / 60)
    assert [entry and (entry.best, entry.alike) for entry in runs(table([own, better], "mean").lines)[1].entries] == [
        (True, False)
    ] * 3
    assert (short.best, short.alike, long.best) == (False, False, True)


def own_keys(own: Result) -> list[tuple[Cell, float]]:
    cells = own.rows[["kind", "snr_db", "t60_s", "length_s"]].astype(object)
    rows = cells.where(cells.notna(), None).itertuples(index=False)
    return [(Cell(kind, snr_db, t60_s), length_s) for kind, snr_db, t60_s, length_s in rows]


def test_ablation_is_of_attention_cnn_runs_that_differ_in_attention() -> None:
    settings = [{"model.attention": kind, "model.dim": 128, "eval.hop_ms": 100.0} for kind in ("shared", "off")]
    one, two = (on_the_grid(run, "attention-cnn", own) for run, own in zip("ab", settings, strict=True))
    lines = table([one, two, on_the_grid("c")], "attention").lines
    assert [(line.label, line.note) for line in runs(lines)] == [
        ("attention-cnn aaaaaa", "model.attention=shared"), ("attention-cnn bbbbbb", "model.attention=off"),
    ]  # fmt: skip
    published = [line for line in lines if line.origin == "published"]
    assert [[entry and round(100 * entry.value, 1) for entry in line.entries] for line in published] == [
        [60.3, 76.6, 81.3, 82.8, 84.6], [52.4, 68.1, 75.7, 79.9, 82.3],
    ]  # fmt: skip
    for others in ([one], [one, on_the_grid("d", "attention-cnn", settings[0])]):
        assert "attention" not in {each.key for each in paper.paper_tables(others)}


def test_runs_of_one_encoder_are_told_by_what_they_differ_in() -> None:
    settings = {"model.dim": 64, "train.lr": 0.1, "seed": 0, "eval.hop_ms": 100.0}
    changed = settings | {"train.lr": 0.2, "eval.hop_ms": 50.0}
    several = [
        on_the_grid("a", settings=settings),
        on_the_grid("b", settings=changed),
        on_the_grid("c", "other", changed),
    ]
    notes = [line.note for line in runs(table(several, "mean").lines)]
    assert notes == ["train.lr=0.1", "train.lr=0.2", ""]


def test_costs_by_hand() -> None:
    measured = pd.DataFrame(
        {
            "index": ["exact", "other", "exact"],
            "sequence": "rescore",
            "length_s": [3.0, 3.0, 5.0],
            "ms_per_query": [12.3, 1.0, 20.0],
            "bytes_per_hour": [18_432_000.0, 1.0, 18_432_000.0],
            "audio_s_per_s": [250.0, 250.0, 250.0],
        }
    )
    trained = replace(result("a", {(NOISE, 3): MANY}, seconds={"training": 60.0}), costs=measured)
    bare = result("b", {(NOISE, 3): MANY}, seconds={})
    costs = paper.cost_table([trained, bare])
    assert costs.columns == ("parameters", "bytes/h", "x real time", "ms, 3 s", "ms, 5 s", "training, s")
    assert [[entry and entry.value for entry in line.entries] for line in costs.lines] == [
        [1_234_567, 18_432_000, 250, 12.3, 20.0, 60], [1_234_567, None, None, None, None, None],
    ]  # fmt: skip
    assert [paper.format_number(entry, costs.unit) for entry in costs.lines[0].entries] == [
        "1,234,567",
        "18,432,000",
        "250",
        "12",
        "20",
        "60",
    ]
    assert paper.format_number(None, "share") == "-"


def test_runs_that_aligned_recorders_alone_have_costs_and_no_tables() -> None:
    aligned = replace(result("a", {(NOISE, 3): MANY}, seconds={}), rows=pd.DataFrame())
    assert paper.paper_tables([aligned]) == []
    assert runs(paper.cost_table([aligned]).lines)[0].entries[1:] == (None, None, None)
    beside = paper.paper_tables([aligned, result("b", {(NOISE, 3): MANY})])
    assert {line.label for each in beside for line in runs(each.lines)} == {"mine bbbbbb"}


def test_numbers_of_other_queries_do_not_stand_in_one_table() -> None:
    own = {(NOISE, 3): MANY}
    with pytest.raises(ConfigError, match="their benchmark is fma-segment/v1 and custom"):
        paper.paper_tables([result("a", own), result("b", own, benchmark="custom")])


TRANSCRIBED = [  # a second time by hand, from the collected tables of the papers
    ("Attention CNN", "segment_top1", Cell("noise", 0, None), 0.96, 76.8, "table 3", "A"),
    ("Baseline", "segment_top1", Cell("reverb", None, 0.7), 2, 78.6, "table 4", "A"),
    ("Attention CNN", "segment_top1", Cell("noise_reverb", 15, 0.5), 5, 91.9, "table 5", "A"),
    ("Attention CNN, without attention", "segment_top1", Cell("noise_reverb", 20, 0.5), 0.96, 82.3, "table 6", "A"),
    ("Audfprint", "audio_top1", Cell("reverb", None, 0.8), 5, 40.2, "table 7", "A"),
    ("Audfprint", "audio_top1", Cell("noise_reverb", 10, 0.5), 5, 87.2, "table 7", "A"),
    ("GraFPrint", "segment_top1", Cell("noise_reverb", 0, None), 2, 80.0, "thesis", "B"),
    ("Transformer + LSH", "segment_top1", Cell("noise", 10, None), 1, 87.6, "thesis", "B"),
    ("NAFP, N = 120", "segment_top1", None, 3, 94.30, "reproduction", "B"),
]


@pytest.mark.parametrize("row", TRANSCRIBED)
def test_published_numbers_are_those_of_the_papers(row: tuple[Any, ...]) -> None:
    system, metric, cell, length_s, percent, source, confidence = row
    found = [
        number
        for number in load_published_segments()
        if (number.system, number.metric, number.cell, number.length_s) == (system, metric, cell, length_s)
        and source in number.source
    ]
    assert [(number.value, number.confidence) for number in found] == [(pytest.approx(percent / 100), confidence)]


def test_every_published_number_says_what_it_is_of_and_is_certain_enough() -> None:
    numbers = load_published_segments()
    # Tables 3, 4, 5: eight rows of 4, 5, 4; table 6: two of 5; table 7: four of 4, two of 5; thesis: eight of 2; NAFP;
    # FlowHash: three tables of five rows of 5.
    assert len(numbers) == 8 * (4 + 5 + 4) + 2 * 5 + (4 * 4 + 2 * 5) + 8 * 2 + (6 + 1) + 3 * 5 * 5
    assert {number.confidence for number in numbers} == {"A", "B"}
    assert all(0 < number.value < 1 and number.source and number.data for number in numbers)
    assert all((number.tolerance_ms is None) == (number.metric == "audio_top1") for number in numbers)


def test_every_published_number_of_a_length_that_is_tested_is_shown_once_and_never_marked() -> None:
    settings = [{"model.attention": kind} for kind in ("shared", "off")]
    both = [on_the_grid(run, "attention-cnn", own) for run, own in zip("ab", settings, strict=True)]
    lines = [line for each in paper.paper_tables(both) for line in each.lines if line.origin == "published"]
    entries = [entry for line in lines for entry in line.entries if entry]
    # All but the means of 1 s, for which there is no column.
    wanted = [n.value for n in load_published_segments() if n.length_s <= 5 and (n.cell or n.length_s > 1)]
    assert Counter(entry.value for entry in entries) == Counter(wanted)
    assert not any(entry.best or entry.alike or entry.n or entry.low for entry in entries)
    assert all(line.note.startswith("published, ") for line in lines)
    on_grid = "published, FMA medium, queries on the database's grid, other noises"
    assert {line.note for line in lines if line.label == "GraFPrint"} == {
        f"{on_grid}{rooms}, within 48 ms, sequence search: rescore" for rooms in ("", " and rooms")
    }
    assert {line.note.rpartition(": ")[2] for line in lines if line.label == "Attention CNN"} == {"vote"}


@pytest.mark.parametrize("benchmark", ["synth-segment/v1", "folder-segment/v1", "./any.py-segment/v1+custom-cc1f9f"])
def test_nothing_published_stands_beside_other_music_than_fma(benchmark: str) -> None:
    other = replace(on_the_grid("a"), summary=on_the_grid("a").summary | {"benchmark": benchmark})
    assert {line.origin for each in paper.paper_tables([other]) for line in each.lines} == {"run", "control"}


def test_another_sequence_search_can_be_shown_for_the_runs() -> None:
    run = result("a", {(NOISE, 0.96): MANY})
    voted = run.hits.assign(sequence="vote", hit=FEW)
    run = replace(run, hits=pd.concat([run.hits, voted], ignore_index=True))
    entry = runs(table([paper.with_sequence(run, "vote")], "segment_noise").lines)[0].entries[0]
    assert entry is not None and entry.value == 0.3
    assert "the runs by vote" in table([paper.with_sequence(run, "vote")], "segment_noise").caption
    with pytest.raises(ConfigError, match="no sequence search of the run aaaaaa called 'votes'; did you mean 'vote'"):
        paper.with_sequence(run, "votes")


def test_nothing_published_stands_beside_another_t60() -> None:
    longer = result("a", {(Cell("noise_reverb", 0, 0.8), 5): MANY})
    others = [line for line in table([longer], "segment_noise_reverb").lines if line.origin != "run"]
    assert {line.group for line in others} == {"5 s, t60 not stated"}


@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal_with_intervals(width: int) -> None:
    settings = [{"model.attention": kind, "model.dim": 128} for kind in ("shared", "off")]
    both = [on_the_grid(run, "attention-cnn", own) for run, own in zip("ab", settings, strict=True)]
    text = shown(paper.render(*both), width)
    assert max(map(len, text.splitlines())) <= width
    row = next(line for line in text.splitlines() if line.startswith("attention-cnn aaaaaa"))
    assert row.split()[2:] == ["90.0", "70-97"] * 5
    assert " ".join(text.split()).count("random projection: an untrained control") == 1  # once for seven tables


def test_a_narrow_terminal_gets_the_numbers_without_intervals() -> None:
    text = shown(paper.render_tables([table([on_the_grid("a")], "segment_noise")]), 50)
    assert max(map(len, text.splitlines())) <= 50
    row = next(line for line in text.splitlines() if line.startswith("mine aaaaaa"))
    assert row.split()[2:] == ["90.0"] * 5


def test_columns_that_do_not_fit_are_shown_in_several_parts_beside_whole_names() -> None:
    measured = pd.DataFrame(
        {
            "index": "exact",
            "length_s": [1.0, 2.0, 3.0, 5.0],
            "sequence": "rescore",
            "ms_per_query": [1.0, 2.0, 3.0, 5.0],
            "bytes_per_hour": 18_432_000.0,
            "audio_s_per_s": 250.0,
        }
    )
    costs = paper.cost_table([replace(result("a", {(NOISE, 3): MANY}, seconds={"training": 60.0}), costs=measured)])
    narrow, wide = (shown(paper.render_tables([costs]), width).splitlines() for width in (60, 200))
    assert max(map(len, narrow)) <= 60
    assert (
        sum(line.startswith("mine aaaaaa") for line in narrow)
        > 1
        == sum(line.startswith("mine aaaaaa") for line in wide)
    )
    heads = [line for line in narrow if line.startswith("  ") and not line.strip().startswith("bytes/h:")]
    assert all(" ".join(heads).count(column) == 1 for column in costs.columns)


def test_best_is_bold_and_alike_is_marked_and_published_is_dim() -> None:
    hits = [FEW, MANY, [False, *MANY[1:]]]
    own = [result(run, {(NOISE, 0.96): found}) for run, found in zip("abc", hits, strict=True)]
    text = shown(paper.render_tables([table(own, "segment_noise")]), 80, styles=True)
    best, alike = (next(line for line in text.splitlines() if line.startswith(f"mine {run * 6}")) for run in "bc")
    assert "\x1b[1m" in best and "\x1b[1m" not in alike
    assert best.split("\x1b[1m")[1].lstrip().startswith("90.0")
    assert "=" in alike and "=" not in best
    row = next(line for line in text.splitlines() if "Attention CNN" in line)
    assert row.startswith("\x1b[2mAttention CNN") and "76.8" in row and "\x1b[1m" not in row
