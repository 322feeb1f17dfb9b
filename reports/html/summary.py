"""The opening of the HTML report: the best run and its lead, the ranking of all runs, and the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from bench.reports.html.blocks import (
    Block,
    Card,
    Cards,
    Figure,
    Table,
    TableCell,
    Text,
    format_interval,
    format_percent,
)
from bench.reports.html.load import ComparisonKey
from bench.reports.html.ranking import ALPHA, RankingRow
from bench.reports.html.svg import INK, MARKERS, REST, SERIES, canvas, cut, label_width, render_svg
from bench.reports.paper import Entry, PaperTable
from bench.results import format_database

WIDTH, ROW_PX, FRAME_PX = 480, 22, 60
MAX_ROWS = 40  # of the plot of all runs


def summary(
    key: ComparisonKey, ranking: Sequence[RankingRow], names: Mapping[str, str], papers: Sequence[PaperTable]
) -> list[Block]:
    """Return the verdict in a sentence, the key numbers, and the ranking as a plot and as a table."""
    best = ranking[0]
    shared = best.run.result.summary
    interval = f"{format_percent(best.low)} to {format_percent(best.high)}"
    cards = [
        Card("best run", names[best.run.key], f"of {len(ranking)} run{'' if len(ranking) == 1 else 's'} on the same "
             "queries"),
        Card("mean top-1", f"{format_percent(best.value)} %", f"95 % interval {interval}"),
        *([_lead(ranking[1])] if len(ranking) > 1 and ranking[1].is_ranked else []),
        Card("queries per condition", f"{best.n:,}", f"against {format_database(shared)}"),
    ]  # fmt: skip
    description = (
        f"Benchmark: {key.benchmark}; query set: {key.queries}; index: {key.index}; sequence search: {key.sequence}. "
        "Top-1 is segment-level: the right track at the right time. The mean is over all degraded conditions and query "
        "lengths."
    )
    blocks: list[Block] = [Text(verdict(ranking, names), "lead"), Cards(cards), Text(description)]
    missing = [row for row in ranking if not row.is_ranked]
    if missing:
        runs = ", ".join(f"{names[row.run.key]} ({row.missing} missing)" for row in missing)
        blocks.append(Text(f"Not ranked, because conditions that other runs have are missing: {runs}.", "warning"))
    notes = {line.label: line.note for table in papers for line in table.lines if line.origin == "run"}
    return [*blocks, *_ranking(ranking, names, notes)]


def verdict(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> str:
    """Return which run is best, its lead over the next, and the runs it leads significantly, in a few sentences."""
    best, name = ranking[0], names[ranking[0].run.key]
    others = [row for row in ranking[1:] if row.is_ranked]
    score = f"{name} identifies {format_percent(best.value)} % of the queries"
    if not others:
        return f"{score}. No other run was tested in the same conditions, so there is nothing to compare it with."
    second = others[0]
    ahead = f"{100 * second.behind:.1f} percentage points ahead of {names[second.run.key]}"
    if second.differs:
        return f"{score}, {ahead}. The difference is significant (paired over the same queries)."
    sentence = (
        f"{score}, {ahead}. The difference is not significant: its 95 % interval, paired over the same queries, "
        "contains 0."
    )
    alike = sum(not row.differs for row in others)
    worse = next((row for row in others if row.differs), None)
    if worse is None:
        return f"{sentence} No run is significantly worse."
    more = f" and {alike - 1} more" if alike > 1 else ""
    return (
        f"{sentence} It is significantly ahead of {names[worse.run.key]}, by {100 * worse.behind:.1f} percentage "
        f"points ({_interval(worse)}), but not of {names[second.run.key]}{more}."
    )


def _interval(row: RankingRow) -> str:
    return f"{100 * row.behind_low:.1f} to {100 * row.behind_high:.1f}"


def _lead(second: RankingRow) -> Card:
    significance = "significant" if second.differs else "not significant"
    return Card("lead over the next", f"{100 * second.behind:.1f} points", f"{_interval(second)}: {significance}")


def _ranking(ranking: Sequence[RankingRow], names: Mapping[str, str], notes: Mapping[str, str]) -> list[Block]:
    columns = (
        "run", "rank", "mean top-1, %", "points behind the best", "significantly worse", "conditions worse", "better",
        "audio-level top-1, %", "false rejects, %",
    )  # fmt: skip
    rows = []
    for i, row in enumerate(ranking):
        headline, kind, name = row.run.result.summary["headline"], "best" if i == 0 else "", names[row.run.key]
        compared = i > 0 and not np.isnan(row.behind)
        rows.append(
            [
                TableCell(name, kind, small=notes.get(name, "")),
                TableCell(f"{row.rank}" if row.rank else "-", "num"),
                TableCell(format_percent(row.value), f"num {kind}", row.value, format_interval(row.low, row.high)),
                TableCell(f"{100 * row.behind:.1f}", "num", row.behind, _interval(row))
                if compared
                else TableCell("-", "num"),
                TableCell(("yes" if row.differs else "no") if compared else "-"),
                TableCell(f"{row.worse} of {row.tested}" if compared else "-", "num"),
                TableCell(f"{row.better}" if compared else "-", "num"),
                *(_headline(headline.get(number)) for number in ("audio_top1/mean", "false_reject/mean")),
            ]
        )
    caption = (
        "Rank: 1 plus the number of runs that are significantly better (paired over the same queries, Holm's "
        "correction over all pairs of runs). Intervals: 95 %, bootstrap over queries, paired for differences. "
        "Significantly worse: the interval of the difference "
        "from the best excludes 0, without correction for the number of runs. Conditions worse, better: "
        "number of conditions and query lengths that differ significantly from the best (McNemar's exact test, p < "
        f"{ALPHA:g}, Holm's correction over the conditions of a run). A run that lacks conditions is compared on those "
        "that both have. Below a run's name: the settings in which runs of the same system differ."
    )
    shown = ranking[:MAX_ROWS]
    note = f" The best {MAX_ROWS} of {len(ranking)} runs; all are in the table." if len(ranking) > MAX_ROWS else ""
    note += "" if all(row.is_ranked for row in shown) else " *: not ranked."
    return [
        Figure("Mean top-1 of all runs", [_forest(shown, names)], f"Bars are 95 % intervals.{note}", least_px=WIDTH),
        Table("Ranking", columns, rows, caption),
    ]


def _headline(value: float | None) -> TableCell:
    return TableCell("-" if value is None else format_percent(value), "num")


def _forest(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> Markup:
    labels = [cut(names[row.run.key]) for row in ranking]
    with canvas(WIDTH, FRAME_PX + ROW_PX * len(ranking), left=label_width(labels), right=50, top=10, bottom=42) as axes:
        for y, row in enumerate(ranking):
            colour = SERIES[y] if y < len(SERIES) else REST
            axes.plot([100 * row.low, 100 * row.high], [y, y], color=colour, linewidth=2.2)
            axes.plot(100 * row.value, y, MARKERS[y % len(MARKERS)], color=colour, markersize=7)
            percent = f"{format_percent(row.value)}{'' if row.is_ranked else ' *'}"
            axes.text(1.01, y, percent, transform=axes.get_yaxis_transform(), va="center", color=INK)
        axes.set_yticks(range(len(ranking)), labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(ranking) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("mean segment-level top-1, %")
        values = "; ".join(
            f"{names[row.run.key]} {format_percent(row.value)} ({format_interval(row.low, row.high)})"
            for row in ranking
        )
        return render_svg(axes, "Mean top-1 of all runs", f"Per cent with 95 % intervals. {values}")


def tables(papers: Sequence[PaperTable]) -> list[Block]:
    """Return the paper's tables; a caption that successive tables share is shown once, below the first of them."""
    captions = [paper.caption for paper in papers]
    return [
        paper_table(replace(paper, caption="") if i and captions[i - 1] == paper.caption else paper)
        for i, paper in enumerate(papers)
    ]


def paper_table(table: PaperTable) -> Table:
    """Return one of the paper's tables as a block: one row per line, with a separate column for its group."""
    grouped = any(line.group for line in table.lines)
    rows, last = [], ""
    for line in table.lines:
        first = "first" if line.group != last and last else ""
        last = line.group
        dim = "" if line.origin == "run" else "dim"
        name = TableCell(line.label, f"{dim} {first}".strip(), title=line.note)
        note = TableCell(line.note, f"note {first}".strip())
        group = [TableCell(line.group, f"num {first}".strip())] if grouped else []
        number = " ".join(f"num {dim} {first}".split())
        rows.append([name, *group, *(_entry(entry, number) for entry in line.entries), note])
    columns = ("system", *(["query"] if grouped else []), *table.columns, "note")
    return Table(_capitalise(table.title), columns, rows, f"{_capitalise(table.caption)}." if table.caption else "")


def _capitalise(text: str) -> str:
    """Return a text with its first letter in upper case; captions in the terminal have none."""
    return text[:1].upper() + text[1:]


def _entry(entry: Entry | None, kind: str) -> TableCell:
    if entry is None:
        return TableCell("-", f"{kind} gap")
    mark = " =" if entry.alike else ""
    best = " best" if entry.best else ""
    return TableCell(
        f"{format_percent(entry.value)}{mark}", f"{kind}{best}", entry.value, format_interval(entry.low, entry.high)
    )
