"""Tables laid out as in the papers: top-1 of runs on the same queries, with published numbers in separate rows.

A report of one or more runs. `paper_tables` and `cost_table` return tables as values; `render_tables` prepares them
for a terminal.

Shape legend: Q queries.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.rule import Rule
from rich.text import Text

from bench.config import format_setting
from bench.degrade.cells import describe_distortion
from bench.errors import ConfigError
from bench.fingerprint import RANDOM_PROJECTION
from bench.registry import format_unknown
from bench.reports._published import PublishedShare, group_name, matches_cell, select_length, select_published
from bench.results import DEGRADED, Result, headline_costs, select_floor, select_rows
from bench.score.statistics import bootstrap_mean, holm, mcnemar, wilson
from bench.settings import require
from bench.values import OWN, Cell, CellKind

COMPARISON_KEY = ("benchmark", "query set", "first index", "sequence search")
ALPHA = 0.05
AUDIO_LENGTH_S = 5.0
HALF_UP = 1e-9  # added before rounding: as a float, a published 97.35 may lie slightly below 97.35
SEGMENT, AUDIO = "segment_top1", "audio_top1"
HITS = {SEGMENT: "hit", AUDIO: "track_hit"}
LEVELS = {SEGMENT: "segment-level top-1", AUDIO: "audio-level top-1"}
KINDS: dict[CellKind, str] = {
    "noise": "noise",
    "reverb": "reverb",
    "measured_reverb": "reverb of measured rooms",
    "noise_reverb": "noise and reverb",
    "speed": "change of speed",
    "tempo": "change of tempo",
    "pitch": "change of pitch",
    "codec": "lossy codecs, kbit/s",
    "dynamics": "clipping and compression",
    "device": "telephone, and a loudspeaker recorded by a phone in a room",
}
MIX, MEANS = "mix", "mean"
ABLATED_ENCODER, ABLATED_SETTING = "attention-cnn", "model.attention"
SETTINGS = "settings"
VOTED = "vote-50"  # the sequence search of published votes
# Widths in characters.
WIDTHS = {"share": 11, "points": 16, "": 11}  # of a number with its mark and interval, by unit
NUMBERS = {"share": 4, "points": 5}  # of the number alone
NARROW, LEAST_NAME = 6, 12  # the narrowest column of numbers without intervals, the narrowest column of names

Bools = npt.NDArray[np.bool_]
Key = tuple[str, float]
HitsByCondition = Mapping[Key, Bools]


@dataclass(frozen=True)
class Entry:
    """One number of a table: a share between 0 and 1, a difference of shares, or a cost in its column's unit.

    `low` and `high` are its 95 % interval, `n` is the number of queries. `best`: the best of several runs in its column
    and group. `alike`: not the best, but not significantly worse.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    best: bool = False
    alike: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table: a run, a control or a published system. `group` is the query length, such as "0.96 s"."""

    label: str
    origin: Literal["run", "control", "published"]
    note: str
    entries: tuple[Entry | None, ...]
    group: str = ""


@dataclass(frozen=True)
class PaperTable:
    """One table. `unit` is "share", "points" (a difference of shares), or "" if each column has its own unit.

    An entry is None if its condition was not tested.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    unit: str
    lines: tuple[Line, ...]
    caption: str


@dataclass(frozen=True)
class _Runs:
    """Runs on the same queries, their hits by metric, and the published numbers to show with them."""

    results: Sequence[Result]
    hits: Mapping[str, Sequence[HitsByCondition]]
    published: Sequence[PublishedShare]

    @property
    def lengths_s(self) -> list[float]:
        return sorted({float(length_s) for result in self.results for length_s in result.rows["length_s"].unique()})

    def cells(self, kind: CellKind) -> list[Cell]:
        """Return the conditions of a kind that any of the runs was tested in, ordered by SNR, t60 and distortion."""
        rows = pd.concat([result.rows for result in self.results])
        rows = rows.assign(distortion=rows["distortion"].fillna("") if "distortion" in rows else "")
        grid = rows.loc[rows["kind"] == kind, ["snr_db", "t60_s", "distortion"]].drop_duplicates()
        # Distortions keep the order of the grid, as the sort is stable.
        grid = grid.astype({"snr_db": "float64", "t60_s": "float64"}).sort_values(["snr_db", "t60_s"], kind="stable")
        values = grid.astype(object).where(grid.notna(), None).itertuples(index=False)
        return [Cell(kind, snr_db, t60_s, distortion) for snr_db, t60_s, distortion in values]


def label(result: Result) -> str:
    """Return a run's name in tables: its system and the first characters of its key."""
    return f"{result.summary['system']} {result.summary['run'][:6]}"


def with_settings(result: Result, settings: Mapping[str, Any]) -> Result:
    """Return a result that includes its run's settings (`FinishedRun.settings`).

    The ablation table and the notes on how runs of one system differ need them.
    """
    return replace(result, summary=result.summary | {SETTINGS: dict(settings)})


def with_sequence(result: Result, sequence: str) -> Result:
    """Return a result whose tables show another sequence search than the headline's, such as the `vote` of a paper.

    Raises: ConfigError if the run was not searched so.
    """
    if result.hits.empty:
        return result  # a run that only aligned recorders
    known = [str(name) for name in result.hits["sequence"].unique()]
    if known == [OWN]:
        return result  # a matcher has one search
    if sequence not in known:
        raise ConfigError(format_unknown(f"sequence search of the run {result.summary['run'][:6]}", sequence, known))
    # `diagonal` uses no index, so its rows are labelled "exact".
    index = {"index": "exact"} if sequence == "diagonal" else {}
    return replace(result, summary=result.summary | {"sequence": sequence} | index)


def build_comparison_key(result: Result) -> tuple[str, ...]:
    """Return what two runs must share to be compared, in the order of COMPARISON_KEY."""
    summary = result.summary
    queries = ", ".join(sorted(result.rows["queries"].unique()))
    return summary["benchmark"], queries, summary["index"], summary["sequence"]


def check_distinct(results: Sequence[Result]) -> list[str]:
    """Return the keys of the runs. Raises: ConfigError if a run is named twice."""
    keys = [str(result.summary["run"]) for result in results]
    require(len(set(keys)) == len(keys), "a comparison must not name a run twice", ", ".join(keys))
    return keys


def check_same_queries(results: Sequence[Result]) -> None:
    """Raise ConfigError if a run is named twice, or if the runs differ in their queries or their search.

    A matcher has a search of its own, which may be compared with any other.
    """
    keys = check_distinct(results)
    for key, result in zip(keys[1:], results[1:], strict=True):
        for what, first, other in zip(
            COMPARISON_KEY, build_comparison_key(results[0]), build_comparison_key(result), strict=True
        ):
            if first != other and OWN not in (first, other):
                raise ConfigError(
                    f"runs {keys[0]} and {key} cannot be compared: their {what} is {first} and {other}; run both with "
                    f"the same data, --dataset and --set eval.*"
                )


def group_hits(result: Result, metric: str = SEGMENT) -> HitsByCondition:
    """Return whether each query was found, ordered by query, for each cell and length in the order tested.

    Only the headline search counts: the first index and the headline sequence search.
    """
    hits, summary = result.hits, result.summary
    headline = hits[(hits["index"] == summary["index"]) & (hits["sequence"] == summary["sequence"])]
    tested = headline[["cell", "length_s"]].drop_duplicates().itertuples(index=False)
    by_query = headline.sort_values("query").groupby(["cell", "length_s"])[HITS[metric]]
    return {
        (str(cell), float(length_s)): by_query.get_group((cell, length_s)).to_numpy(dtype=bool)
        for cell, length_s in tested
    }


def intersect_hits(hits: Sequence[HitsByCondition]) -> list[HitsByCondition]:
    """Return the hits of each run in the cells and lengths that all runs have."""
    return [{key: hit_Q for key, hit_Q in of_run.items() if all(key in other for other in hits)} for of_run in hits]


def average_degraded(hits: HitsByCondition, length_s: float | None = None) -> npt.NDArray[np.float64]:
    """Return for each query the share of degraded cells in which it was found, at one length or at all lengths.

    The array is empty if there are no such cells.
    """
    hits_of_cells = [
        hit_Q for (cell, each_s), hit_Q in hits.items() if cell.split("/")[0] in DEGRADED and length_s in (None, each_s)
    ]
    share_Q: npt.NDArray[np.float64] = np.mean(hits_of_cells, axis=0) if hits_of_cells else np.zeros(0)
    return share_Q


def paper_tables(results: Sequence[Result]) -> list[PaperTable]:
    """Return the tables of segment- and audio-level top-1, of the attention ablation, and of means.

    Tables without any run are left out, and so are runs that only aligned recorders.
    Raises: ConfigError as `check_same_queries`, since numbers of different queries must not share a table.
    """
    with_queries = [result for result in results if len(result.rows)]
    if not with_queries:
        return []
    check_same_queries(with_queries)
    hits = {metric: [group_hits(result, metric) for result in with_queries] for metric in HITS}
    runs = _Runs(with_queries, hits, select_published(with_queries))
    audio_s = min(runs.lengths_s, key=lambda length_s: abs(length_s - AUDIO_LENGTH_S))
    tables = [_top1(runs, SEGMENT, kind, runs.lengths_s) for kind in KINDS]
    tables += [_top1(runs, AUDIO, kind, [audio_s]) for kind in KINDS]
    tables += [_ablation(runs), _means(runs)]
    return [table for table in tables if any(any(line.entries) for line in table.lines if line.origin == "run")]


def cost_table(results: Sequence[Result]) -> PaperTable:
    """Return the costs of each run: parameters, memory, speed of fingerprinting, time per query, time of training."""
    lengths_s = sorted(
        {float(length_s) for result in results for length_s in headline_costs(result).get("length_s", ())}
    )
    lines = tuple(Line(label(result), "run", "", _costs(result, lengths_s)) for result in results)
    of_lengths = (f"ms, {length_s:g} s" for length_s in lengths_s)
    columns = ("parameters", "bytes/h", "x real time", *of_lengths, "training, s")
    caption = (
        "bytes/h: memory per hour of the database's music, without a fixed part; x real time: seconds of music "
        "fingerprinted per second; ms: from the wave of one query of that length to its answer, median; all on one "
        "thread of the run's own machine, in CPU time (on a GPU in wall time); training: - if the run did not train"
    )
    return PaperTable("cost", "cost", columns, "", lines, caption)


def _costs(result: Result, lengths_s: Sequence[float]) -> tuple[Entry | None, ...]:
    measured = headline_costs(result)
    first = measured.iloc[0].to_dict() if len(measured) else {}
    ms = dict(zip(measured["length_s"], measured["ms_per_query"], strict=True)) if len(measured) else {}
    costs = (
        result.summary.get("parameters"),
        first.get("bytes_per_hour"),
        first.get("audio_s_per_s"),
        *(ms.get(length_s) for length_s in lengths_s),
        result.summary["seconds"].get("training"),
    )
    return tuple(None if cost is None or np.isnan(cost) else Entry(float(cost)) for cost in costs)


def _top1(runs: _Runs, metric: str, kind: CellKind, lengths_s: Sequence[float]) -> PaperTable:
    cells = runs.cells(kind)
    others = [number for number in runs.published if number.metric == metric and not number.ablation]
    lines = [line for length_s in lengths_s for line in _build_lines(runs, metric, cells, length_s, others)]
    title = f"{LEVELS[metric]}, {KINDS[kind]}" + _format_t60(cells)
    return PaperTable(
        f"{metric.split('_')[0]}_{kind}", title, tuple(map(_column_name, cells)), "share", tuple(lines), _caption(runs)
    )


def _ablation(runs: _Runs) -> PaperTable:
    """Return the table of runs that differ in attention, at the shortest query length; without lines if none do."""
    chosen = [i for i, result in enumerate(runs.results) if _attention(result) is not None]
    ablated = _Runs(
        [runs.results[i] for i in chosen], {SEGMENT: [runs.hits[SEGMENT][i] for i in chosen]}, runs.published
    )
    differ = len({_attention(result) for result in ablated.results}) > 1
    cells = ablated.cells("noise_reverb") if differ else []
    others = [number for number in runs.published if number.ablation == "attention"]
    lines = _build_lines(ablated, SEGMENT, cells, runs.lengths_s[0], others) if differ else []
    title = f"attention ablation: {LEVELS[SEGMENT]}, {KINDS['noise_reverb']}" + _format_t60(cells)
    return PaperTable("attention", title, tuple(map(_column_name, cells)), "share", tuple(lines), _caption(runs))


def _attention(result: Result) -> object:
    return (
        result.summary.get(SETTINGS, {}).get(ABLATED_SETTING) if result.summary["system"] == ABLATED_ENCODER else None
    )


def _means(runs: _Runs) -> PaperTable:
    """Return the table of means over all degraded cells, for each query length and over all lengths."""
    lengths_s: list[float | None] = [*runs.lengths_s, None]
    shared_hits = intersect_hits(runs.hits[SEGMENT])
    columns = [_compare_means([average_degraded(hits, length_s) for hits in shared_hits]) for length_s in lengths_s]
    notes = _describe_differences(runs.results)
    lines = [
        Line(label(result), "run", notes[i], tuple(column[i] for column in columns))
        for i, result in enumerate(runs.results)
    ]
    mixed = [number for number in runs.published if number.cell is None]
    of_length = [[number for number in mixed if number.length_s == length_s] for length_s in runs.lengths_s]
    lines += _build_published_lines([*of_length, []], "")
    test = (
        "; bold: best run; =: the 95 % interval of the paired difference from the best contains 0 (not corrected for "
        "multiple comparisons)"
    )
    beside = "; published: different conditions, data set and database"
    caption = (
        "per cent; means over all conditions with noise, reverb or both that all runs share, with 95 % intervals "
        "(bootstrap over queries)" + (test if len(runs.results) > 1 else "") + (beside if mixed else "")
    )
    names = (*(f"{length_s:g} s" for length_s in runs.lengths_s), "all")
    return PaperTable(MEANS, f"{LEVELS[SEGMENT]}, means", names, "share", tuple(lines), caption)


def _format_t60(cells: Sequence[Cell]) -> str:
    """Return the t60 of cells with noise and reverb, for a title; empty if there is none, or if t60 is the column."""
    t60s_s = sorted({cell.t60_s for cell in cells if cell.snr_db is not None and cell.t60_s is not None})
    return f" (t60 {', '.join(f'{t60_s:g}' for t60_s in t60s_s)} s)" if t60s_s else ""


def _shorten_distortion(cell: Cell) -> str:
    """Return a distortion as a narrow column names it, below a title that says its kind."""
    words = describe_distortion(cell.distortion).removesuffix(" kbit/s")
    if cell.kind in ("speed", "tempo", "pitch"):
        return words.removeprefix(cell.kind).strip()
    words = words.replace("clipped by", "clip").replace("compressed", "comp.")
    return words if cell.snr_db is None else f"room {cell.snr_db:g} dB"


def _column_name(cell: Cell) -> str:
    if cell.distortion:
        return _shorten_distortion(cell)
    return f"{cell.t60_s:g} s" if cell.snr_db is None else f"{cell.snr_db:g} dB"


def _build_lines(
    runs: _Runs, metric: str, cells: Sequence[Cell], length_s: float, others: Sequence[PublishedShare]
) -> list[Line]:
    """Return the lines of one query length: the runs, the control, then the published results."""
    columns = [_compare_shares([hits.get((cell.name, length_s)) for hits in runs.hits[metric]]) for cell in cells]
    group, notes = f"{length_s:g} s", _describe_differences(runs.results)
    lines = [
        Line(label(result), "run", notes[i], tuple(column[i] for column in columns), group)
        for i, result in enumerate(runs.results)
    ]
    near = select_length(others, length_s)
    if any(number.search == "vote" for number in near):
        lines += _build_voted_lines(runs.results, metric, cells, length_s)
    floor = _floor(runs.results, metric, cells, length_s)
    lines += [Line("random projection", "control", "control", floor, group)] if any(floor) else []
    published = [[number for number in near if matches_cell(number.cell, cell)] for cell in cells]
    # Each under the length and the rooms that it is of: below the runs of this length, or under a heading of its own.
    groups = sorted({group_name(number) for column in published for number in column}, key=lambda name: name != group)
    for each in groups:
        columns_of_group = [[number for number in column if group_name(number) == each] for column in published]
        lines += _build_published_lines(columns_of_group, each)
    return lines


def _build_voted_lines(results: Sequence[Result], metric: str, cells: Sequence[Cell], length_s: float) -> list[Line]:
    """Return the lines of the runs searched by the published vote with its 50 % rule, of those that were."""
    lines = []
    for result in results:
        rows = select_rows(result.rows, result.summary["system"], result.summary["index"], VOTED)
        entries = _select_entries(rows, metric, cells, length_s)
        if any(entries):
            lines.append(Line(f"{label(result)}, {VOTED}", "control", VOTED, entries, f"{length_s:g} s"))
    return lines


def _select_entries(
    rows: pd.DataFrame, metric: str, cells: Sequence[Cell], length_s: float
) -> tuple[Entry | None, ...]:
    rows = rows[(rows["metric"] == metric) & (rows["length_s"] == length_s)]
    by_cell = {row["cell"]: Entry(row["value"], row["low"], row["high"], row["n"]) for row in rows.to_dict("records")}
    return tuple(by_cell.get(cell.name) for cell in cells)


def _compare_shares(hits: Sequence[Bools | None]) -> list[Entry | None]:
    """Return the entries of one column: each run's share, whether it is the best, and whether it is not worse.

    Every run with a lower share is tested against the best: McNemar's test, with Holm's correction over those runs.
    """
    tested = [hit_Q for hit_Q in hits if hit_Q is not None]
    best_Q = max(tested, key=np.mean, default=None)  # the first, in a tie
    if best_Q is None:
        return [None] * len(hits)
    worse = [i for i, hit_Q in enumerate(hits) if hit_Q is not None and hit_Q.mean() < best_Q.mean()]
    p = dict(zip(worse, holm([mcnemar(best_Q, hit_Q) for i in worse if (hit_Q := hits[i]) is not None]), strict=True))
    several = len(tested) > 1
    return [
        None if hit_Q is None else _build_entry(hit_Q, several and i not in p, p.get(i, 0) >= ALPHA)
        for i, hit_Q in enumerate(hits)
    ]


def _build_entry(hit_Q: Bools, best: bool, alike: bool) -> Entry:
    low, high = wilson(int(hit_Q.sum()), len(hit_Q))
    return Entry(float(hit_Q.mean()), low, high, len(hit_Q), best, alike)


def _compare_means(shares: Sequence[npt.NDArray[np.float64]]) -> list[Entry | None]:
    """Return the entries of one column of means over queries, compared by the interval of paired differences."""
    tested = [share_Q for share_Q in shares if len(share_Q)]
    best_Q = max(tested, key=np.mean, default=np.zeros(0))
    entries: list[Entry | None] = []
    for share_Q in shares:
        low, high = bootstrap_mean(share_Q)
        best = len(tested) > 1 and bool(share_Q.mean() == best_Q.mean()) if len(share_Q) else False
        alike = len(share_Q) > 0 and len(tested) > 1 and not best and bootstrap_mean(best_Q - share_Q)[0] <= 0
        entries.append(Entry(float(share_Q.mean()), low, high, len(share_Q), best, alike) if len(share_Q) else None)
    return entries


def _floor(results: Sequence[Result], metric: str, cells: Sequence[Cell], length_s: float) -> tuple[Entry | None, ...]:
    """Return the entries of the random projection, from the first run that has them: all runs share the queries."""
    for result in results:
        rows = select_floor(result.rows, result.summary["sequence"])
        entries = _select_entries(rows, metric, cells, length_s)
        if any(entries) and result.summary["system"] != RANDOM_PROJECTION:
            return entries
    return ()


def _build_published_lines(columns: Sequence[Sequence[PublishedShare]], group: str) -> list[Line]:
    """Return one line for each published system and source; `columns` are the numbers of each column of the table."""
    lines = []
    for key in dict.fromkeys((number.system, number.source) for column in columns for number in column):
        numbers = [next((n for n in column if (n.system, n.source) == key), None) for column in columns]
        first = next(number for number in numbers if number is not None)
        entries = tuple(None if number is None else Entry(number.value) for number in numbers)
        lines.append(Line(first.system, "published", first.describe(), entries, group))
    return sorted(lines, key=lambda line: line.note)  # stable: within the same note, in the order of the file


def _describe_differences(results: Sequence[Result]) -> list[str]:
    """Return for each run the settings of encoder, training and seed in which runs of the same encoder differ."""
    notes = []
    for result in results:
        same = [each for each in results if each.summary["system"] == result.summary["system"]]
        others = [each.summary.get(SETTINGS, {}) for each in same]
        settings = result.summary.get(SETTINGS, {})
        names = [name for name in settings if name == "seed" or name.startswith(("model.", "train."))]
        differ = [name for name in names if any(name in each and each[name] != settings[name] for each in others)]
        notes.append(", ".join(f"{name}={format_setting(settings[name])}" for name in differ))
    return notes


def _caption(runs: _Runs) -> str:
    n = runs.results[0].summary["queries_per_cell"]
    test = (
        "bold: best run; =: not significantly worse than the best (McNemar's test on the same queries, Holm's "
        "correction over the runs of a column); "
    )
    searches = [result.summary["sequence"] for result in runs.results]
    by = " or ".join("a search of their own" if name == OWN else name for name in dict.fromkeys(searches))
    beside = (
        "published: different data set, database and noise, not directly comparable, and searched as their notes say, "
        f"the runs by {by}; "
    )
    rule = f"{VOTED}: the published vote with its rule that half of a query must agree; "
    return (
        f"per cent with 95 % intervals (Wilson), n = {n} queries per condition; "
        + (test if len(runs.results) > 1 else "")
        + (beside + rule if runs.published else "")
        + "random projection: an untrained control"
    )


def format_number(entry: Entry | None, unit: str) -> str:
    """Return a number as text, without its interval: per cent, points, or a cost with thousands separators."""
    if entry is None:
        return "-"
    if unit == "points":
        return f"{100 * entry.value:+.1f}"
    if unit == "share":
        return f"{100 * entry.value + HALF_UP:.1f}" if entry.value < 1 else "100"
    return f"{entry.value:,.0f}" if entry.value >= 10 else f"{entry.value:.2g}"


def render(*results: Result) -> RenderableType:
    """Return all tables for the terminal."""
    return render_tables([*paper_tables(results), cost_table(results)])


def render_tables(tables: Sequence[PaperTable]) -> RenderableType:
    """Return tables for the terminal. A caption that successive tables share is shown once, below the last of them."""
    following = [*(table.caption for table in tables), ""][1:]
    shown = [replace(t, caption="") if t.caption == after else t for t, after in zip(tables, following, strict=True)]
    return Group(*map(TerminalTable, shown))


@dataclass(frozen=True)
class TerminalTable:
    """A table for a terminal. A narrow one gets no intervals, names in several lines, or columns in several parts."""

    table: PaperTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, head, the lines of each group below a rule, and caption. The name is of rich's protocol."""
        yield Text(f"\n{self.table.title}", style="bold")
        for part in _split_columns(self.table, options.max_width):
            yield from self._render_columns(part, console, options)
        yield from [Text(self.table.caption, style="italic dim")] if self.table.caption else []

    @staticmethod
    def _render_columns(table: PaperTable, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = _widths(table, options.max_width)
        yield Text(" " * widths.name + "".join(f"{column:>{widths.cell}}" for column in table.columns))
        for i, (group, lines) in enumerate(groupby(table.lines, key=lambda line: line.group)):
            rule = Rule(Text(group), align="left", style="dim")
            yield from console.render(rule, options.update_width(widths.name + widths.cell * len(table.columns)))
            for note, lines_of_note in groupby(lines, key=_note_above):
                yield from [Text(note, style="dim")] if note else []
                for line in lines_of_note:
                    yield _row(line, table.unit, widths)
                    yield from [Text(f"  {line.note}", style="dim")] if i == 0 and _note_below(line) else []


def _split_columns(table: PaperTable, width: int) -> list[PaperTable]:
    """Return the table, or several with as many of its columns as fit beside whole names, if it is too wide."""
    longest = max((len(line.label) for line in table.lines), default=0)
    columns, cell = len(table.columns), _narrowest(table) + 1
    if min(longest, LEAST_NAME) + columns * cell <= width:
        return [table]
    most = max(1, (width - longest) // cell)
    size = math.ceil(columns / math.ceil(columns / most))  # tables of about the same width
    return [
        replace(
            table,
            columns=table.columns[first : first + size],
            lines=tuple(replace(line, entries=line.entries[first : first + size]) for line in table.lines),
        )
        for first in range(0, columns, size)
    ]


def _narrowest(table: PaperTable) -> int:
    """Return the characters that the widest column head or number without its interval takes."""
    numbers = [format_number(entry, table.unit) for line in table.lines for entry in line.entries]
    return max(NARROW, *map(len, table.columns), *map(len, numbers))


@dataclass(frozen=True)
class _Widths:
    """Widths of names and cells in characters, and whether there is room for intervals."""

    name: int
    cell: int
    intervals: bool


def _widths(table: PaperTable, width: int) -> _Widths:
    """Return the largest widths that fit: with intervals and whole names, with intervals, or without intervals.

    Names get at least LEAST_NAME characters, if any is so long.
    """
    longest = max((len(line.label) for line in table.lines), default=0)
    shortest = min(longest, LEAST_NAME)
    number = _narrowest(table)
    for least, cell in ((longest, WIDTHS[table.unit] + 3), (shortest, WIDTHS[table.unit] + 1)):
        if least + len(table.columns) * cell <= width:
            return _Widths(min(longest, width - len(table.columns) * cell), cell, intervals=True)
    return _Widths(max(shortest, min(longest, width - len(table.columns) * (number + 1))), number + 1, intervals=False)


def _note_above(line: Line) -> str:
    return line.note if line.origin == "published" else ""


def _note_below(line: Line) -> str:
    return line.note if line.origin == "run" else ""


def _row(line: Line, unit: str, widths: _Widths) -> Text:
    """Return a line's row, followed by the rest of a name that is too long for its column."""
    first, *rest = textwrap.wrap(line.label, widths.name, subsequent_indent="  ")
    row = Text(f"{first:{widths.name}}", style="" if line.origin == "run" else "dim")
    for entry in line.entries:
        number, interval = format_number(entry, unit), _interval(entry, unit) if widths.intervals else ""
        row.append(f"{number:>{widths.cell - len(interval)}}", style="bold" if entry and entry.best else "")
        row.append(interval, style="dim")
    return row.append("".join(f"\n{each}" for each in rest))


def _interval(entry: Entry | None, unit: str) -> str:
    """Return an entry's mark and interval, or as many blanks if it has none, so that numbers are aligned."""
    room = WIDTHS[unit] - NUMBERS.get(unit, WIDTHS[unit])
    if not room or entry is None or entry.low is None or entry.high is None:
        return " " * room
    low, high = 100 * entry.low, 100 * entry.high
    interval = f"{low:+.0f}..{high:+.0f}" if unit == "points" else f"{low:.0f}-{high:.0f}"
    return f"{'=' if entry.alike else ' '}{interval:>{room - 1}}"
