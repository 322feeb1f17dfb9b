"""The paper's tables: runs on the same queries, and published numbers as rows of their own.

A report of one or more runs. `paper_tables` and `cost_table` give the tables as values, for the terminal (`render`) and
for the page (the report `html`).

Shape legend: Q queries.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.config import require
from bench.errors import ConfigError
from bench.results import RANDOM_PROJECTION, Result, chosen
from bench.score.statistics import holm, mcnemar, wilson
from bench.values import Cell, CellKind

PUBLISHED = Path(__file__).with_name("published_segments.toml")
TESTED = ("benchmark", "query set", "first index", "sequence search")
MADE_UP = "synth-"  # benchmarks of made-up music begin so: published numbers say nothing beside them
ALPHA = 0.05
AUDIO_LENGTH_S = 5.0
SAME_LENGTH = 0.05  # published queries of 1 s stand beside ours of 0.96 s
HITS = {"segment_top1": "hit", "audio_top1": "track_hit"}
KINDS: dict[CellKind, str] = {"noise": "noise", "reverb": "reverb", "noise_reverb": "noise and reverb"}
ABLATED, SETTING = "attention-cnn", "model.attention"
SETTINGS = "settings"

Bools = npt.NDArray[np.bool_]
Found = dict[tuple[str, float], Bools]


@dataclass(frozen=True)
class Entry:
    """One number of a table: a share between 0 and 1, or a cost in its column's unit.

    `low` and `high` are its 95 % interval (Wilson), `n` how many queries it is of. `best`: the best of the runs in its
    column and group, where there is another to be better than. `alike`: not significantly worse than that (McNemar,
    Holm over the comparisons of the column and group); never both.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    best: bool = False
    alike: bool = False


@dataclass(frozen=True)
class Line:
    """One row of a table: a run, a control or what was published. `group` is the length of the queries, "0.96 s"."""

    label: str
    origin: Literal["run", "control", "published"]
    note: str
    entries: tuple[Entry | None, ...]
    group: str = ""


@dataclass(frozen=True)
class PaperTable:
    """One table. `unit` is that of its numbers, "share" or "" where each column has its own; None is not there."""

    key: str
    title: str
    columns: tuple[str, ...]
    unit: str
    lines: tuple[Line, ...]
    caption: str


@dataclass(frozen=True)
class Published:
    """One published share, with what it is of. `tolerance_ms` is NaN where the time does not matter.

    The `t60_s` of a cell with noise and reverb is None where it was not told.
    """

    system: str
    metric: str
    cell: Cell
    length_s: float
    value: float
    data: str
    tolerance_ms: float
    source: str
    confidence: str
    ablation: str


def label(result: Result) -> str:
    """Return a run's name in tables: its encoder and the beginning of its key."""
    return f"{result.summary['encoder']} {result.summary['run'][:6]}"


def with_settings(result: Result, settings: Mapping[str, Any]) -> Result:
    """Return a result that knows its run's settings (`bench.results.load_settings`).

    Without them there is no ablation, no bytes an hour, and no word of what two runs of one encoder differ in.
    """
    return replace(result, summary=result.summary | {SETTINGS: dict(settings)})


def published() -> list[Published]:
    """Return every published number, in the order of the file."""
    tables = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["table"]
    return [number for table in tables for row in table["rows"] for number in _numbers(table, row)]


def _numbers(table: dict[str, Any], row: dict[str, Any]) -> list[Published]:
    cells = [
        Cell(table["kind"], snr_db=snr_db, t60_s=t60_s)
        for snr_db in table.get("snr_db", [None])
        for t60_s in table.get("t60_s", [None])
    ]
    return [
        Published(
            row["system"], table["metric"], cell, row["length_s"], percent / 100, table["data"],
            table.get("tolerance_ms", np.nan), table["source"], table["confidence"], table.get("ablation", ""),
        )
        for cell, percent in zip(cells, row["value"], strict=True)
    ]  # fmt: skip


def tested(result: Result) -> tuple[str, ...]:
    """Return what must be the same of two runs that are compared, in the order of TESTED."""
    summary = result.summary
    queries = ", ".join(sorted(result.rows["queries"].unique()))
    return summary["benchmark"], queries, summary["index"], summary["sequence"]


def check_same_queries(results: Sequence[Result]) -> None:
    """Raise ConfigError if a run is named twice, or two were asked other queries or searched otherwise."""
    keys = [str(result.summary["run"]) for result in results]
    require(len(set(keys)) == len(keys), "a comparison must not name a run twice", ", ".join(keys))
    for key, result in zip(keys[1:], results[1:], strict=True):
        for what, one, other in zip(TESTED, tested(results[0]), tested(result), strict=True):
            if one != other:
                raise ConfigError(
                    f"runs {keys[0]} and {key} cannot be compared: their {what} is {one} and {other}; run both with "
                    f"the same data, --dataset and --set eval.*"
                )


def found(result: Result, metric: str = "segment_top1") -> Found:
    """Return whether each query was found, in the order of queries, for each cell and length in the order tested."""
    hits, summary = result.hits, result.summary
    own = hits[(hits["index"] == summary["index"]) & (hits["sequence"] == summary["sequence"])]
    return {
        (str(cell), float(length_s)): rows.sort_values("query")[HITS[metric]].to_numpy(dtype=bool)
        for (cell, length_s), rows in own.groupby(["cell", "length_s"], sort=False)
    }


def paper_tables(results: Sequence[Result]) -> list[PaperTable]:
    """Return the tables of segment-level top-1, of audio-level top-1 and of the attention ablation.

    Only those there is something to show in; runs that aligned recorders alone are left out.
    Raises: ConfigError as `check_same_queries`: numbers of other queries do not stand in one table.
    """
    own = [result for result in results if len(result.rows)]
    if not own:
        return []
    check_same_queries(own)
    lengths_s = sorted({length_s for result in own for length_s in result.rows["length_s"].unique()})
    audio_s = min(lengths_s, key=lambda length_s: abs(length_s - AUDIO_LENGTH_S))
    tables = [_top1(own, "segment_top1", kind, lengths_s) for kind in KINDS]
    tables += [_top1(own, "audio_top1", kind, [audio_s]) for kind in KINDS]
    tables += [_ablation(own, lengths_s[0])]
    return [table for table in tables if table.columns and table.lines]


def cost_table(results: Sequence[Result]) -> PaperTable:
    """Return what each run costs: weights, segments a second, bytes of fingerprints an hour, seconds of training."""
    lines = tuple(Line(label(result), "run", "", _costs(result)) for result in results)
    caption = (
        "segments/s: of the whole database, on the machine of the run; bytes/h: of fingerprints, as 32-bit numbers, an "
        "hour of music; training: where the run trained its weights itself"
    )
    return PaperTable("cost", "cost", ("parameters", "segments/s", "bytes/h", "training, s"), "", lines, caption)


def _costs(result: Result) -> tuple[Entry | None, ...]:
    summary, settings = result.summary, result.summary.get(SETTINGS, {})
    seconds = summary["seconds"]
    dim, hop_ms = settings.get("model.dim"), settings.get("eval.hop_ms")
    costs = (
        summary["parameters"],
        summary["database_vectors"] / seconds["database"] if seconds.get("database") else None,
        dim * 4 * 3600 / (hop_ms / 1000) if dim and hop_ms else None,
        seconds.get("training"),
    )
    return tuple(None if cost is None else Entry(float(cost)) for cost in costs)


def _top1(results: Sequence[Result], metric: str, kind: CellKind, lengths_s: Sequence[float]) -> PaperTable:
    level = {"segment_top1": "segment-level", "audio_top1": "audio-level"}[metric]
    cells = _cells(results, kind)
    t60_s = sorted({cell.t60_s for cell in cells if cell.t60_s is not None}) if kind == "noise_reverb" else []
    reverb = f" (t60 {t60_s[0]:g} s)" if t60_s else ""
    others = [number for number in published() if number.metric == metric and not number.ablation]
    lines = [line for length_s in lengths_s for line in _group(results, metric, cells, length_s, others)]
    return PaperTable(
        f"{metric.split('_')[0]}_{kind}", f"{level} top-1, {KINDS[kind]}{reverb}", tuple(map(_column_name, cells)),
        "share", tuple(lines), _caption(results),
    )  # fmt: skip


def _ablation(results: Sequence[Result], length_s: float) -> PaperTable:
    """Return the runs that differ in attention; without lines where there is nothing to compare."""
    own = [result for result in results if SETTING in result.summary.get(SETTINGS, {})]
    own = [result for result in own if result.summary["encoder"] == ABLATED]
    cells = _cells(own, "noise_reverb") if own else []
    differ = len({result.summary[SETTINGS][SETTING] for result in own}) > 1
    others = [number for number in published() if number.ablation == "attention"]
    lines = _group(own, "segment_top1", cells, length_s, others) if differ else []
    return PaperTable(
        "attention", "attention ablation: segment-level top-1, noise and reverb", tuple(map(_column_name, cells)),
        "share", tuple(lines), _caption(results),
    )  # fmt: skip


def _cells(results: Sequence[Result], kind: CellKind) -> list[Cell]:
    """Return the conditions of a kind that any of the runs met, by SNR and t60."""
    rows = pd.concat([result.rows for result in results])
    own = rows.loc[rows["kind"] == kind, ["snr_db", "t60_s"]].drop_duplicates().sort_values(["snr_db", "t60_s"])
    none = own.astype(object).where(own.notna(), None)
    return [Cell(kind, snr_db, t60_s) for snr_db, t60_s in none.itertuples(index=False)]


def _column_name(cell: Cell) -> str:
    return f"{cell.t60_s:g} s" if cell.snr_db is None else f"{cell.snr_db:g} dB"


def _group(
    results: Sequence[Result], metric: str, cells: Sequence[Cell], length_s: float, others: Sequence[Published]
) -> list[Line]:
    """Return the lines of one query length: the runs, the control, then what was published of such queries."""
    hits = [found(result, metric) for result in results]
    columns = [judged([own.get((cell.name, length_s)) for own in hits]) for cell in cells]
    group, notes = f"{length_s:g} s", _differing(results)
    lines = [
        Line(label(result), "run", notes[i], tuple(column[i] for column in columns), group)
        for i, result in enumerate(results)
    ]
    floor = _floor(results, metric, cells, length_s)
    lines += [Line("random projection", "control", "control", floor, group)] if any(floor) else []
    made_up = results[0].summary["benchmark"].startswith(MADE_UP)
    return lines + ([] if made_up else _published_lines(others, cells, length_s, group))


def judged(hits: Sequence[Bools | None]) -> list[Entry | None]:
    """Return the entries of one column: a share for each run, the best of them, and those not worse by McNemar."""
    shares = [None if hit_Q is None else float(hit_Q.mean()) for hit_Q in hits]
    there = [share for share in shares if share is not None]
    best = max(there, default=None)
    rival_Q = next((hit_Q for hit_Q, share in zip(hits, shares, strict=True) if share == best), None)
    worse = [i for i, share in enumerate(shares) if share is not None and share != best]
    tests = [mcnemar(hit_Q, rival_Q) for i in worse if (hit_Q := hits[i]) is not None and rival_Q is not None]
    p = dict(zip(worse, holm(tests), strict=True))
    several = len(there) > 1
    return [
        None if hit_Q is None else _share(hit_Q, several and share == best, p.get(i, 0) >= ALPHA)
        for i, (hit_Q, share) in enumerate(zip(hits, shares, strict=True))
    ]


def _share(hit_Q: Bools, best: bool, alike: bool) -> Entry:
    low, high = wilson(int(hit_Q.sum()), len(hit_Q))
    return Entry(float(hit_Q.mean()), low, high, len(hit_Q), best, alike)


def _floor(results: Sequence[Result], metric: str, cells: Sequence[Cell], length_s: float) -> tuple[Entry | None, ...]:
    """Return the entries of the random projection: of the first run that has them, as the queries are the same."""
    for result in results:
        rows = chosen(result.rows, RANDOM_PROJECTION, "exact")
        rows = rows[(rows["metric"] == metric) & (rows["length_s"] == length_s)]
        if len(rows) and result.summary["encoder"] != RANDOM_PROJECTION:
            own = {str(row["cell"]): row for row in rows.to_dict("records")}
            got = [own.get(cell.name) for cell in cells]
            return tuple(row and Entry(row["value"], row["low"], row["high"], int(row["n"])) for row in got)
    return ()


def _published_lines(others: Sequence[Published], cells: Sequence[Cell], length_s: float, group: str) -> list[Line]:
    """Return a line a system and source, of what was published of queries of about this length."""
    near = [number for number in others if abs(number.length_s / length_s - 1) < SAME_LENGTH]
    lines = []
    for system, source in dict.fromkeys((number.system, number.source) for number in near):
        own = [number for number in near if (number.system, number.source) == (system, source)]
        entries = tuple(next((Entry(n.value) for n in own if _same(n.cell, cell)), None) for cell in cells)
        exact = "" if own[0].length_s == length_s else f", {own[0].length_s:g} s"
        note = f"published, {own[0].data}{exact}"
        lines += [Line(system, "published", note, entries, group)] if any(entries) else []
    return lines


def _same(one: Cell, own: Cell) -> bool:
    return (one.kind, one.snr_db) == (own.kind, own.snr_db) and one.t60_s in (None, own.t60_s)


def _differing(results: Sequence[Result]) -> list[str]:
    """Return for each run those settings of encoder, training and seed in which runs of the same encoder differ."""
    notes = []
    for result in results:
        same = [each for each in results if each.summary["encoder"] == result.summary["encoder"]]
        settings = [each.summary.get(SETTINGS, {}) for each in same]
        own = result.summary.get(SETTINGS, {})
        names = [name for name in own if name == "seed" or name.startswith(("model.", "train."))]
        differ = [name for name in names if any(name in each and each[name] != own[name] for each in settings)]
        notes.append(", ".join(f"{name}={own[name]}" for name in differ))
    return notes


def _caption(results: Sequence[Result]) -> str:
    n = results[0].summary.get("queries_per_cell", "?")
    return (
        f"per cent with 95 % intervals (Wilson), n = {n} queries a cell; bold: best of the runs; =: not significantly "
        "worse (McNemar on the same queries, Holm over the column); published: another data set and database, not "
        "comparable one to one"
    )


def formatted(entry: Entry | None, unit: str) -> str:
    """Return a number as it is shown: a share in per cent, a cost with its thousands."""
    if entry is None:
        return "-"
    return f"{100 * entry.value:.1f}" if unit == "share" else f"{entry.value:,.0f}"


def render(*results: Result) -> RenderableType:
    """Return all tables for the terminal."""
    return Group(*(drawn(table) for table in [*paper_tables(results), cost_table(results)]))


def drawn(table: PaperTable) -> RenderableType:
    """Return one table for the terminal."""
    shown = Table(title=table.title, caption=table.caption, title_justify="left", caption_justify="left")
    shown.add_column("")
    for column in table.columns:
        shown.add_column(column, justify="right")
    group = None
    for line in table.lines:
        if line.group and line.group != group:
            group = line.group
            shown.add_row(group)
        style = None if line.origin == "run" else "dim"
        shown.add_row(f"{line.label} {line.note}", *(_cell(entry, table.unit) for entry in line.entries), style=style)
    return shown


def _cell(entry: Entry | None, unit: str) -> Text:
    text = formatted(entry, unit)
    if entry is None or entry.low is None or entry.high is None:
        return Text(text)
    mark = "=" if entry.alike else " "
    return Text(f"{text}{mark} {100 * entry.low:.0f}-{100 * entry.high:.0f}", style="bold" if entry.best else "")
