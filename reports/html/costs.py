"""Quality against cost, with the Pareto front; and recall against time of the indexes."""

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
from bench.reports.paper import PaperTable, cost_table

WIDTH, HEIGHT = 430, 270
CHEAPER_IS_LESS = {"parameters": True, "segments/s": False, "bytes/h": True, "training, s": True}
MAX_LABELS = 12  # points that still have room for their names
RING: dict[str, Any] = {"markersize": 14, "markerfacecolor": "none"}
BRUTE_FORCE = 0  # the first row of a measurement of indexes


@dataclass(frozen=True)
class Point:
    """One system in a plane of a cost and a quality, both in the units of the axes."""

    cost: float
    quality: float
    name: str
    colour: str
    marker: str = "o"
    low: float = np.nan
    high: float = np.nan


def pareto_front(points_: Sequence[Point], less: bool) -> list[Point]:
    """Return those that no other point beats in one without losing in the other, the cheapest first.

    `less`: a smaller cost is better. Of two alike in both, both are kept.
    """
    best = []
    for own in points_:
        beaten = any(
            (other.cost <= own.cost if less else other.cost >= own.cost)
            and other.quality >= own.quality
            and (other.cost, other.quality) != (own.cost, own.quality)
            for other in points_
        )
        if not beaten:
            best.append(own)
    return sorted(best, key=lambda point: point.cost if less else -point.cost)


def quality_against_cost(ranking: Sequence[RankingRow], names: Mapping[str, str]) -> list[Block]:
    """Return a panel for each cost that any of the runs has: mean top-1 over it, and the front."""
    costs = cost_table([own.run.result for own in ranking])
    panels, same = [], []
    for i, column in enumerate(costs.columns):
        found = [
            Point(
                entry.value, 100 * own.value, names[own.run.key], SERIES[rank] if rank < len(SERIES) else REST,
                MARKERS[rank % len(MARKERS)], 100 * own.low, 100 * own.high,
            )
            for rank, (own, line) in enumerate(zip(ranking, costs.lines, strict=True))
            if (entry := line.entries[i]) is not None and own.is_ranked and entry.value > 0
        ]  # fmt: skip
        if len({point.cost for point in found}) > 1:
            panels.append(_plane(found, column, CHEAPER_IS_LESS.get(column, True)))
        elif found:
            same.append(f"All have {found[0].cost:,.0f} {column}.")
    caption = (
        "Mean segment-level top-1 over degraded conditions and lengths, with its 95 % interval. Rings and the line "
        "are the Pareto front: nothing else is both better and cheaper. Times are those of each run's own machine."
    )
    drawings = [Figure("The Pareto front", panels, " ".join([caption, *same]))] if panels else []
    return [*drawings, _cost_table(costs, names, ranking)]


def _cost_table(costs: PaperTable, names: Mapping[str, str], ranking: Sequence[RankingRow]) -> Table:
    rows = [
        [
            TableCell(names[own.run.key]),
            TableCell(format_percent(own.value) if own.is_ranked else "-", "num"),
            *(
                TableCell(
                    "-" if entry is None else f"{entry.value:,.0f}", "num", None if entry is None else entry.value
                )
                for entry in line.entries
            ),
        ]
        for own, line in zip(ranking, costs.lines, strict=True)
    ]
    return Table("Costs", ("run", "top-1 mean, %", *costs.columns), rows, costs.caption)


def _plane(found: Sequence[Point], unit: str, less: bool) -> Markup:
    best = pareto_front(found, less)
    written = found if len(found) <= MAX_LABELS else best[:MAX_LABELS]
    with canvas(WIDTH, HEIGHT, right=label_width(point.name for point in written)) as axes:
        axes.set_xscale("log")
        # The front is a staircase: between two of its points the cheaper one is what can be had.
        axes.step(
            [p.cost for p in best], [p.quality for p in best], where="post", color=MUTED, linewidth=1.2,
            linestyle="-", alpha=0.8, zorder=1,
        )  # fmt: skip
        axes.plot([p.cost for p in best], [p.quality for p in best], "o", color=MUTED, **RING)
        for point in found:
            axes.plot([point.cost] * 2, [point.low, point.high], color=point.colour, linewidth=1.4, alpha=0.6)
            axes.plot(point.cost, point.quality, point.marker, color=point.colour, markersize=7)
        _log_axis(axes, [point.cost for point in found])
        axes.margins(y=0.12)
        axes.set_xlabel(f"{unit} ({'less' if less else 'more'} is better)")
        axes.set_title(f"Top-1 mean, %, by {unit}", color=INK)
        label_ends(axes, [EndLabel(p.cost, p.quality, p.name, p.colour) for p in written], leaders=True)
        told = "; ".join(f"{p.name}: {p.quality:.1f} % at {p.cost:,.0f}" for p in written)
        return render_svg(axes, f"Top-1 against {unit}", f"{told}. On the front: {', '.join(p.name for p in best)}.")


def _log_axis(axes: Any, values: Sequence[float]) -> None:
    """Give a log axis room on both sides, and few round ticks."""
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
        told = (
            f"{search['queries']:,} queries ({search['cell']}, {search['length_s']:g} s; {search['query_vectors']:,} "
            f"vectors) against {search['vectors']:,} fingerprints, {search['real_vectors']:,} of them real. Recall is "
            f"against brute force; squares are exact. On {search['machine']}, load {search['load']:.1f}."
        )
        blocks += [Figure(title, panels, told), _search_table(search, rows, title)]
        failed = [f"{_name(row)}: {row['outcome']}; {row['told']}" for row in search["rows"] if not row["costs"]]
        blocks += [Text("Not measured: " + ". ".join(failed) + ".")] if failed else []
    return blocks


COSTS_OF_SEARCH = {
    "batched_ms": "ms a query vector, all at once",
    "single_ms": "ms a query vector, one at a time",
    "num_bytes": "bytes of the index",
}


def _recall(rows: Sequence[Mapping[str, Any]], title: str, cost: str, unit: str) -> Markup:
    found = [
        Point(
            float(row["costs"][cost]), float(row["quality"]["recall_at_1"]), _name(row), SERIES[i % len(SERIES)],
            "s" if row["costs"]["exact"] else "o",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    best = pareto_front(found, less=True)
    with canvas(WIDTH, HEIGHT, right=label_width(point.name for point in found)) as axes:
        axes.set_xscale("log")
        axes.step([p.cost for p in best], [p.quality for p in best], where="post", color=MUTED, linewidth=1.0, zorder=1)
        for point in found:
            axes.plot(point.cost, point.quality, point.marker, color=point.colour, markersize=7)
        _log_axis(axes, [point.cost for point in found])
        axes.margins(y=0.12)
        axes.set_xlabel(unit)
        axes.set_title("recall@1 against brute force", color=INK)
        label_ends(axes, [EndLabel(p.cost, p.quality, p.name, p.colour) for p in found], leaders=True)
        told = "; ".join(f"{p.name}: {p.quality:.4f} at {p.cost:.3g}" for p in found)
        return render_svg(axes, f"Recall against {unit}: {title}", told)


def _search_table(search: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    columns = (
        "index", "recall@1", f"recall@{search['top_k']}", "top-1, %", "ms, all at once", "ms, one at a time",
        "build, s", "bytes a vector", "peak, MiB",
    )  # fmt: skip
    brute = rows[BRUTE_FORCE]["costs"]
    body = []
    for row in rows:
        costs, quality = row["costs"], row["quality"]
        times = [
            TableCell(f"{costs[name]:.3g}", "num", costs[name], f"{brute[name] / costs[name]:.3g} times")
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
    caption = "Top-1 after the sequence search, with its 95 % interval; times: how many times less than brute force."
    return Table(f"Indexes over {title}", columns, body, caption)


def _name(row: Mapping[str, Any]) -> str:
    index = Path(str(row["index"])).stem if str(row["index"]).endswith(".py") else str(row["index"])
    return f"{index}/{row['preset']}" if row["preset"] else index
