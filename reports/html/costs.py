"""The cost parts of the HTML report: top-1 of the runs against their costs, and recall of the indexes against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

from bench.reports.html.blocks import Block, Figure, Table, TableCell, Text, format_interval, format_percent
from bench.reports.html.ranking import RankingRow
from bench.reports.html.svg import (
    INK,
    MARKERS,
    MUTED,
    REST,
    SERIES,
    EndLabel,
    canvas,
    label_ends,
    label_width,
    render_svg,
)
from bench.reports.paper import PaperTable, cost_table, format_number

WIDTH, HEIGHT = 430, 270
MORE_IS_BETTER = ("x real time",)
MAX_LABELS = 12  # with more points, only those on the Pareto front are named
RING: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none"}
BRUTE_FORCE = 0  # row of brute force in a measurement of indexes


@dataclass(frozen=True)
class Point:
    """One system in a plot of quality against cost, both in the units of the axes."""

    cost: float
    quality: float
    name: str
    colour: str
    marker: str = "o"
    low: float = np.nan
    high: float = np.nan


def pareto_front(points: Sequence[Point], less: bool) -> list[Point]:
    """Return the points that no other point dominates, the cheapest first.

    A point dominates another if it is at least as good in cost and in quality, and better in one of them; equal points
    are both returned. `less`: a smaller cost is better.
    """
    front = []
    for point in points:
        dominated = any(
            (other.cost <= point.cost if less else other.cost >= point.cost)
            and other.quality >= point.quality
            and (other.cost, other.quality) != (point.cost, point.quality)
            for other in points
        )
        if not dominated:
            front.append(point)
    return sorted(front, key=lambda point: point.cost if less else -point.cost)


def quality_against_cost(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> list[Block]:
    """Return the figure of mean top-1 against cost, with one panel per cost that differs, and the table of costs."""
    costs = cost_table([row.run.result for row in ranking])
    panels, same = [], []
    for i, column in enumerate(costs.columns):
        points = [
            Point(
                entry.value, 100 * row.value, names[row.run.key], SERIES[rank] if rank < len(SERIES) else REST,
                MARKERS[rank % len(MARKERS)], 100 * row.low, 100 * row.high,
            )
            for rank, (row, line) in enumerate(zip(ranking, costs.lines, strict=True))
            if (entry := line.entries[i]) is not None and row.is_ranked and entry.value > 0
        ]  # fmt: skip
        if len({point.cost for point in points}) > 1:
            panels.append(_quality_panel(points, column, column not in MORE_IS_BETTER))
        elif points:
            same.append(f"{column} ({points[0].cost:,.0f})")
    caption = (
        "Mean segment-level top-1 over degraded conditions and query lengths, with 95 % intervals. Rings and the line "
        "mark the Pareto front: no other run is both better and cheaper. Each run was timed on one thread "
        "of its own machine."
    )
    caption += f" Not drawn, since all runs are equal: {'; '.join(same)}." if same else ""
    drawings = [Figure("The Pareto front", panels, caption)] if panels else []
    return [*drawings, _cost_table(costs, names, ranking)]


def _cost_table(costs: PaperTable, names: Mapping[str, str], ranking: Sequence[RankingRow]) -> Table:
    rows = [
        [
            TableCell(names[row.run.key]),
            TableCell(format_percent(row.value) if row.is_ranked else "-", "num"),
            *(
                TableCell(format_number(entry, ""), "num", None if entry is None else entry.value)
                for entry in line.entries
            ),
        ]
        for row, line in zip(ranking, costs.lines, strict=True)
    ]
    return Table("Costs", ("run", "mean top-1, %", *costs.columns), rows, costs.caption)


def _quality_panel(points: Sequence[Point], unit: str, less: bool) -> Markup:
    front = pareto_front(points, less)
    labelled = points if len(points) <= MAX_LABELS else front[:MAX_LABELS]
    with canvas(WIDTH, HEIGHT, right=label_width(point.name for point in labelled)) as axes:
        axes.set_xscale("log")
        # A staircase, not straight lines: a cost between two points of the front buys the quality of the cheaper one.
        axes.step(
            [p.cost for p in front], [p.quality for p in front], where="post", color=MUTED, linewidth=1.2,
            linestyle="-", alpha=0.8, zorder=1,
        )  # fmt: skip
        axes.plot([p.cost for p in front], [p.quality for p in front], "o", color=MUTED, **RING)
        for point in points:
            axes.plot([point.cost] * 2, [point.low, point.high], color=point.colour, linewidth=1.4, alpha=0.6)
            axes.plot(point.cost, point.quality, point.marker, color=point.colour, markersize=7)
        _log_axis(axes, [point.cost for point in points])
        axes.margins(y=0.12)
        axes.set_xlabel(f"{unit} ({'lower' if less else 'higher'} is better)")
        axes.set_title(f"Mean top-1, %, by {unit}", color=INK)
        label_ends(axes, [EndLabel(p.cost, p.quality, p.name, p.colour) for p in labelled], leaders=True)
        values = "; ".join(f"{p.name}: {p.quality:.1f} % at {p.cost:,.0f}" for p in labelled)
        on_front = ", ".join(p.name for p in front)
        return render_svg(axes, f"Top-1 against {unit}", f"{values}. On the Pareto front: {on_front}.")


def _log_axis(axes: Any, values: Sequence[float]) -> None:
    """Set margins on both sides of a log axis, and few round ticks."""
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.6, high * 1.6)
    decades = np.log10(high / low) + 0.4
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep="") if low >= 1 else StrMethodFormatter("{x:g}"))


def recall_against_time(searches: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return a figure and a table for each measurement of `bench speed search`."""
    blocks: list[Block] = []
    for search in searches:
        rows = [row for row in search["rows"] if row["costs"] and row["quality"]]
        if not rows:
            continue
        title = f"{search['vectors']:,} fingerprints of {search['encoder']} {search['run'][:6]}"
        panels = [_recall(rows, title, cost, unit) for cost, unit in COSTS_OF_SEARCH.items()]
        caption = (
            f"{search['queries']:,} queries ({search['cell']}, {search['length_s']:g} s; {search['query_vectors']:,} "
            f"vectors) against {search['vectors']:,} fingerprints, {search['real_vectors']:,} of them real, the others "
            "synthetic. Recall: share found of brute force's nearest neighbours. Squares: exact indexes. Measured on "
            f"{search['machine']}, load {search['load']:.1f}."
        )
        blocks += [Figure(title, panels, caption), _search_table(search, rows, title)]
        failed = [f"{_name(row)}: {row['outcome']}; {row['told']}" for row in search["rows"] if not row["costs"]]
        blocks += [Text("Not measured: " + ". ".join(failed) + ".")] if failed else []
    return blocks


COSTS_OF_SEARCH = {
    "batched_ms": "ms per query vector, batched",
    "single_ms": "ms per query vector, single",
    "num_bytes": "index size, bytes",
}


def _recall(rows: Sequence[Mapping[str, Any]], title: str, cost: str, unit: str) -> Markup:
    points = [
        Point(
            float(row["costs"][cost]), float(row["quality"]["recall_at_1"]), _name(row), SERIES[i % len(SERIES)],
            "s" if row["costs"]["exact"] else "o",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    front = pareto_front(points, less=True)
    with canvas(WIDTH, HEIGHT, right=label_width(point.name for point in points)) as axes:
        axes.set_xscale("log")
        costs, qualities = [p.cost for p in front], [p.quality for p in front]
        axes.step(costs, qualities, where="post", color=MUTED, linewidth=1.0, zorder=1)
        for point in points:
            axes.plot(point.cost, point.quality, point.marker, color=point.colour, markersize=7)
        _log_axis(axes, [point.cost for point in points])
        axes.margins(y=0.12)
        axes.set_xlabel(unit)
        axes.set_title("recall@1 against brute force", color=INK)
        label_ends(axes, [EndLabel(p.cost, p.quality, p.name, p.colour) for p in points], leaders=True)
        values = "; ".join(f"{p.name}: {p.quality:.4f} at {p.cost:.3g}" for p in points)
        return render_svg(axes, f"Recall against {unit}: {title}", values)


def _search_table(search: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    columns = (
        "index", "recall@1", f"recall@{search['top_k']}", "top-1, %", "ms, batched", "ms, single",
        "build, s", "bytes/vector", "peak, MiB",
    )  # fmt: skip
    brute = rows[BRUTE_FORCE]["costs"]
    body = []
    for row in rows:
        costs, quality = row["costs"], row["quality"]
        times = [
            TableCell(f"{costs[name]:.3g}", "num", costs[name], f"{brute[name] / costs[name]:.3g} x")
            for name in ("batched_ms", "single_ms")
        ]
        numbers = (
            f"{costs['build_s']:.1f}",
            f"{costs['num_bytes'] / search['vectors']:.0f}",
            f"{costs['peak_mib']:.0f}",
        )
        body.append(
            [
                TableCell(_name(row)),
                *(TableCell(f"{quality[name]:.4f}", "num") for name in ("recall_at_1", "recall_at_k")),
                TableCell(
                    format_percent(quality["top1"]),
                    "num",
                    small=format_interval(quality["top1_low"], quality["top1_high"]),
                ),
                *times,
                *(TableCell(number, "num") for number in numbers),
            ]
        )
    caption = (
        "Top-1: after the sequence search, with 95 % intervals. ms: per query vector; x: speed-up over brute force. "
        "Peak: memory while the index is built and searched."
    )
    return Table(f"Indexes over {title}", columns, body, caption)


def _name(row: Mapping[str, Any]) -> str:
    index = Path(str(row["index"])).stem if str(row["index"]).endswith(".py") else str(row["index"])
    return f"{index}/{row['preset']}" if row["preset"] else index
