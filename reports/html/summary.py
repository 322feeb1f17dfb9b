"""The beginning of the report: what won, by how much, whether that is more than chance; then the paper's tables."""

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

WIDTH, ROW_PX, FRAME_PX = 480, 22, 60
MOST_ROWS = 40  # of the picture of all runs


def summary(
    asked: ComparisonKey, ranking: Sequence[RankingRow], names: Mapping[str, str], papers: Sequence[PaperTable]
) -> list[Block]:
    """Return the verdict in a sentence, the numbers to see first, and the ranking as a picture and a table."""
    best = ranking[0]
    shared = best.run.result.summary
    interval = f"{format_percent(best.low)} to {format_percent(best.high)}"
    cards = [
        Card("best run", names[best.run.key], f"of {len(ranking)} on the same queries"),
        Card("top-1, mean", f"{format_percent(best.value)} %", f"95 % interval {interval}"),
        *([_margin(ranking[1], names)] if len(ranking) > 1 and ranking[1].is_ranked else []),
        Card("queries a condition", f"{best.n:,}", f"against {shared['database_tracks']:,} tracks, "
             f"{shared['database_vectors']:,} fingerprints"),
    ]  # fmt: skip
    words = (
        f"Benchmark {asked.benchmark}; query set {asked.queries}; index {asked.index}, sequence search "
        f"{asked.sequence}. Top-1 is segment-level: the right track at the right time. The mean is over all degraded "
        "conditions and lengths."
    )
    blocks: list[Block] = [Text(verdict(ranking, names), "lead"), Cards(cards), Text(words)]
    missing = [own for own in ranking if not own.is_ranked]
    if missing:
        told = ", ".join(f"{names[own.run.key]} ({own.missing} missing)" for own in missing)
        blocks.append(
            Text(f"Not ranked, as conditions of the others are missing: {told}. Gaps are shown as gaps.", "warning")
        )
    notes = {line.label: line.note for table in papers for line in table.lines if line.origin == "run"}
    return [*blocks, *_ranking(ranking, names, notes)]


def verdict(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> str:
    """Return who won, by how much over the next, and over whom by more than chance, in a sentence or two."""
    best, name = ranking[0], names[ranking[0].run.key]
    rivals = [own for own in ranking[1:] if own.is_ranked]
    found = f"{name} finds {format_percent(best.value)} % of queries"
    if not rivals:
        return f"{found}; there is no other run with the same conditions to compare it with."
    second = rivals[0]
    ahead = f"{100 * second.behind:.1f} points ahead of {names[second.run.key]}"
    if second.differs:
        return f"{found}, {ahead}: more than chance (paired over the same queries)."
    alike = [names[own.run.key] for own in rivals if not own.differs]
    beaten = next((own for own in rivals if own.differs), None)
    told = (
        f"{found}, {ahead}, which may be chance: paired over the same queries, the difference's interval holds nought."
    )
    if beaten is None:
        return f"{told} No run is worse by more than chance."
    others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
    return (
        f"{told} Beyond {names[second.run.key]}{others}, it is ahead by more than chance, of "
        f"{names[beaten.run.key]} by {100 * beaten.behind:.1f} points ({_interval(beaten)})."
    )


def _interval(own: RankingRow) -> str:
    return f"{100 * own.behind_low:.1f} to {100 * own.behind_high:.1f}"


def _margin(second: RankingRow, names: Mapping[str, str]) -> Card:
    told = "more than chance" if second.differs else "may be chance"
    return Card("ahead of the next", f"{100 * second.behind:.1f} points", f"{_interval(second)}: {told}")


def _ranking(ranking: Sequence[RankingRow], names: Mapping[str, str], notes: Mapping[str, str]) -> list[Block]:
    columns = (
        "run", "top-1 mean, %", "behind the best, points", "more than chance", "conditions worse", "better",
        "audio-level, %", "false reject, %",
    )  # fmt: skip
    rows = []
    for i, own in enumerate(ranking):
        headline, kind, name = own.run.result.summary["headline"], "best" if i == 0 else "", names[own.run.key]
        compared = i > 0 and not np.isnan(own.behind)
        rows.append(
            [
                TableCell(name, kind, small=notes.get(name, "")),
                TableCell(format_percent(own.value), f"num {kind}", own.value, format_interval(own.low, own.high)),
                TableCell(f"{100 * own.behind:.1f}", "num", own.behind, _interval(own))
                if compared
                else TableCell("-", "num"),
                TableCell(("yes" if own.differs else "no") if compared else "-"),
                TableCell(f"{own.worse} of {own.tested}" if compared else "-", "num"),
                TableCell(f"{own.better}" if compared else "-", "num"),
                *(_headline(headline.get(number)) for number in ("audio_top1/mean", "false_reject/mean")),
            ]
        )
    caption = (
        "Intervals: bootstrap over queries, paired for differences. More than chance: the interval of the difference "
        "leaves out nought, not corrected for how many runs there are. Conditions: cells and lengths that differ by "
        f"McNemar's exact test (p < {ALPHA:g}, Holm over a run's conditions); a run that lacks conditions "
        "is compared on those that both have. Below a run's name: the settings in which runs of its encoder differ."
    )
    shown = ranking[:MOST_ROWS]
    words = f"The best {MOST_ROWS} of {len(ranking)} runs; all are in the table." if len(ranking) > MOST_ROWS else ""
    return [
        Figure("Mean top-1 of all runs", [_forest(shown, names)], f"Bars are 95 % intervals. {words}", least_px=WIDTH),
        Table("Ranking", columns, rows, caption),
    ]


def _headline(value: float | None) -> TableCell:
    return TableCell("-" if value is None else format_percent(value), "num")


def _forest(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> Markup:
    labels = [cut(names[own.run.key]) for own in ranking]
    with canvas(WIDTH, FRAME_PX + ROW_PX * len(ranking), left=label_width(labels), right=50, top=10, bottom=42) as axes:
        for row, own in enumerate(ranking):
            colour = SERIES[row] if row < len(SERIES) else REST
            axes.plot([100 * own.low, 100 * own.high], [row, row], color=colour, linewidth=2.2)
            axes.plot(100 * own.value, row, MARKERS[row % len(MARKERS)], color=colour, markersize=7)
            percent = f"{format_percent(own.value)}{'' if own.is_ranked else ' *'}"
            axes.text(
                1.01, row, percent, transform=axes.get_yaxis_transform(),
                va="center", color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(ranking)), labels)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(ranking) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("segment-level top-1, mean, %")
        told = "; ".join(
            f"{names[o.run.key]} {format_percent(o.value)} ({format_interval(o.low, o.high)})" for o in ranking
        )
        return render_svg(axes, "Mean top-1 of all runs", f"Per cent with 95 % intervals. {told}")


def tables(papers: Sequence[PaperTable]) -> list[Block]:
    """Return the paper's tables; a caption that is that of the table before is left out."""
    captions = [paper.caption for paper in papers]
    return [
        replace(paper_table(paper), caption="" if i and captions[i - 1] == paper.caption else paper.caption)
        for i, paper in enumerate(papers)
    ]


def paper_table(table: PaperTable) -> Table:
    """Return one of the paper's tables as a block: a row a line, its group as a column of its own."""
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
    return Table(table.title[:1].upper() + table.title[1:], columns, rows, table.caption)


def _entry(entry: Entry | None, kind: str) -> TableCell:
    if entry is None:
        return TableCell("-", f"{kind} gap")
    mark = " =" if entry.alike else ""
    best = " best" if entry.best else ""
    return TableCell(
        f"{format_percent(entry.value)}{mark}", f"{kind}{best}", entry.value, format_interval(entry.low, entry.high)
    )
