"""The beginning of the report: what won, by how much, whether that is more than chance; then the paper's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from bench.reports.html.blocks import Block, Card, Cards, Cell, Figure, Table, Text, points, with_interval
from bench.reports.html.material import Asked
from bench.reports.html.standing import ALPHA, Standing
from bench.reports.html.svg import INK, MARKERS, REST, SERIES, canvas, drawn
from bench.reports.paper import Entry, PaperTable, paper_tables

WIDTH, ROW_PX, NAMES_PX, FRAME_PX = 720, 24, 190, 70
MOST_ROWS = 40  # of the picture of all runs


def summary(asked: Asked, ranking: Sequence[Standing], names: Mapping[str, str]) -> list[Block]:
    """Return the verdict in a sentence, the numbers to see first, and the ranking as a picture and a table."""
    best = ranking[0]
    shared = best.run.result.summary
    cards = [
        Card("best run", names[best.run.key], f"of {len(ranking)} on the same queries"),
        Card("top-1, mean", f"{points(best.value)} %", f"95 % interval {points(best.low)} to {points(best.high)}"),
        *([_margin(ranking[1], names)] if len(ranking) > 1 and ranking[1].ranked else []),
        Card("queries a condition", f"{best.n:,}", f"against {shared['database_tracks']:,} tracks, "
             f"{shared['database_vectors']:,} fingerprints"),
    ]  # fmt: skip
    words = (
        f"Benchmark {asked.benchmark}; query set {asked.queries}; index {asked.index}, sequence search {asked.sequence}. "
        "Top-1 is segment-level: the right track at the right time. The mean is over all degraded conditions and lengths."
    )
    blocks: list[Block] = [Text(verdict(ranking, names), "lead"), Cards(cards), Text(words)]
    missing = [own for own in ranking if not own.ranked]
    if missing:
        told = ", ".join(f"{names[own.run.key]} ({own.missing} missing)" for own in missing)
        blocks.append(
            Text(f"Not ranked, as conditions of the others are missing: {told}. Gaps are shown as gaps.", "warning")
        )
    return [*blocks, *_ranking(ranking, names)]


def verdict(ranking: Sequence[Standing], names: Mapping[str, str]) -> str:
    """Return who won, by how much over the next, and over whom by more than chance, in a sentence or two."""
    best, name = ranking[0], names[ranking[0].run.key]
    rivals = [own for own in ranking[1:] if own.ranked]
    found = f"{name} finds {points(best.value)} % of queries"
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
        f"{told} Beyond {names[second.run.key]}{others}, it is ahead by more than chance, of {names[beaten.run.key]} by "
        f"{100 * beaten.behind:.1f} points ({_interval(beaten)})."
    )


def _interval(own: Standing) -> str:
    return f"{100 * own.behind_low:.1f} to {100 * own.behind_high:.1f}"


def _margin(second: Standing, names: Mapping[str, str]) -> Card:
    told = "more than chance" if second.differs else "may be chance"
    return Card("ahead of the next", f"{100 * second.behind:.1f} points", f"{_interval(second)}: {told}")


def _ranking(ranking: Sequence[Standing], names: Mapping[str, str]) -> list[Block]:
    columns = (
        "run", "top-1 mean, %", "behind the best, points", "95 %", "more than chance", "conditions worse", "better",
        "audio-level, %", "false reject, %",
    )  # fmt: skip
    rows = []
    for i, own in enumerate(ranking):
        headline, kind = own.run.result.summary["headline"], "best" if i == 0 else ""
        compared = i > 0 and not np.isnan(own.behind)
        rows.append(
            [
                Cell(names[own.run.key], kind),
                Cell(with_interval(own.value, own.low, own.high), f"num {kind}", own.value),
                Cell(f"{100 * own.behind:.1f}" if compared else "-", "num"),
                Cell(_interval(own) if compared else "-", "num dim"),
                Cell(("yes" if own.differs else "no") if compared else "-"),
                Cell(f"{own.worse} of {own.tested}" if compared else "-", "num"),
                Cell(f"{own.better}" if compared else "-", "num"),
                *(_headline(headline.get(name)) for name in ("audio_top1/mean", "false_reject/mean")),
            ]
        )
    caption = (
        "Intervals: bootstrap over queries, paired for differences. More than chance: the interval of the difference "
        f"leaves out nought. Conditions: cells and lengths in which McNemar's exact test finds a difference (p < {ALPHA:g}, "
        "Holm over the run's conditions); a run that lacks conditions is compared on those that both have."
    )
    shown = ranking[:MOST_ROWS]
    words = f"The best {MOST_ROWS} of {len(ranking)} runs; all are in the table." if len(ranking) > MOST_ROWS else ""
    return [
        Figure("Mean top-1 of all runs", [_forest(shown, names)], f"Bars are 95 % intervals. {words}", least_px=WIDTH),
        Table("Ranking", columns, rows, caption),
    ]


def _headline(value: float | None) -> Cell:
    return Cell("-" if value is None else points(value), "num")


def _forest(ranking: Sequence[Standing], names: Mapping[str, str]) -> Markup:
    with canvas(WIDTH, FRAME_PX + ROW_PX * len(ranking), left=NAMES_PX, right=60, top=10, bottom=42) as axes:
        for row, own in enumerate(ranking):
            colour = SERIES[row] if row < len(SERIES) else REST
            axes.plot([100 * own.low, 100 * own.high], [row, row], color=colour, linewidth=2.2)
            axes.plot(100 * own.value, row, MARKERS[row % len(MARKERS)], color=colour, markersize=7)
            axes.text(
                1.01, row, f"{points(own.value)}{'' if own.ranked else ' *'}", transform=axes.get_yaxis_transform(),
                va="center", color=INK,
            )  # fmt: skip
        axes.set_yticks(range(len(ranking)), [names[own.run.key] for own in ranking])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(ranking) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("segment-level top-1, mean over degraded conditions and lengths, %")
        told = "; ".join(f"{names[o.run.key]} {with_interval(o.value, o.low, o.high)}" for o in ranking)
        return drawn(axes, "Mean top-1 of all runs", f"Per cent with 95 % intervals. {told}")


def tables(ranking: Sequence[Standing]) -> list[Block]:
    """Return the paper's tables of these runs."""
    return [paper_table(table) for table in paper_tables([own.run.result for own in ranking])]


def paper_table(table: PaperTable) -> Table:
    """Return one of the paper's tables as a block: a row a line, its group as a column of its own."""
    grouped = any(line.group for line in table.lines)
    rows, last = [], ""
    for line in table.lines:
        first = "first" if line.group != last and last else ""
        last = line.group
        dim = "" if line.origin == "run" else "dim"
        name = Cell(line.label, f"{dim} {first}".strip(), title=line.note)
        note = Cell(line.note, f"note {first}".strip())
        group = [Cell(line.group, f"num {first}".strip())] if grouped else []
        rows.append([name, *group, *(_entry(entry, f"num {dim} {first}") for entry in line.entries), note])
    columns = ("system", *(["query"] if grouped else []), *table.columns, "what")
    return Table(table.title[:1].upper() + table.title[1:], columns, rows, table.caption)


def _entry(entry: Entry | None, kind: str) -> Cell:
    if entry is None:
        return Cell("-", f"{kind} gap")
    mark = " =" if entry.alike else ""
    if entry.low is None or entry.high is None:
        return Cell(points(entry.value), kind, entry.value)
    interval = f"{points(entry.low)}-{points(entry.high)}"
    return Cell(f"{points(entry.value)}{mark}", f"{kind}{' best' if entry.best else ''}", entry.value, interval)
