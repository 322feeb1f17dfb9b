"""Shows one measurement of `bench speed search`: tables of all indexes, and a plot of recall against time."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.speed.isolated import CALLS, Costs
from bench.speed.search import IndexRow, Quality, SearchSpeed

DPI = 150
MARKERS = "ov^<>DPX*"


def render(result: SearchSpeed) -> RenderableType:
    """Return two tables, since one would be too wide for a terminal: the quality of each index, and its costs."""
    title = (
        f"{result.encoder}, run {result.run[:6]}, {result.cell}, {result.length_s:g} s: {result.queries:,} queries "
        f"of {result.query_vectors // result.queries} vectors\nagainst {result.vectors:,} "
        f"({result.real_vectors:,} of them real) of {result.dim} dimensions"
    )
    quality = _table("recall@1", f"recall@{result.top_k}", "top-1 %", "95 %")
    costs = _table(
        "ms\nsingle", "\ntimes", "ms\nbatched", "\ntimes", "build\ns", "bytes/\nvector", "peak\nMiB", "private\nMiB"
    )
    for row in result.rows:
        if row.costs is not None and row.quality is not None:
            quality.add_row(row.name, *_format_quality(row.quality))
            costs.add_row(row.name, *_format_costs(row, row.costs, result))
        else:
            quality.add_row(row.name, row.outcome)
    return Group(title, quality, costs, *_notes(result))


def draw(result: SearchSpeed, path: Path) -> None:
    """Write a plot of recall at 1 against the time per query vector in batched search, one point per index."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for number, row in enumerate(row for row in result.rows if row.costs and row.quality):
        assert row.costs is not None and row.quality is not None
        marker = "s" if row.costs.exact else MARKERS[number % len(MARKERS)]
        axes.plot(row.costs.batched_ms, row.quality.recall_at_1, marker, label=row.name, markersize=8, alpha=0.8)
    figure.legend(loc="outside right upper", fontsize=8)  # names beside the points would overlap
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.set_xlabel("ms per query vector, batched")
    axes.set_ylabel("recall@1 against brute force")
    axes.set_title(f"{result.vectors:,} fingerprints of {result.encoder}; squares are exact", fontsize=10)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("index", overflow="fold", min_width=14)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _format_quality(quality: Quality) -> list[str]:
    interval = f"{100 * quality.top1_low:.1f}-{100 * quality.top1_high:.1f}"
    return [f"{quality.recall_at_1:.4f}", f"{quality.recall_at_k:.4f}", f"{100 * quality.top1:.1f}", interval]


def _format_costs(row: IndexRow, costs: Costs, result: SearchSpeed) -> list[str]:
    single, batched = result.times_faster(row)
    return [
        _short(costs.single_ms), _short(single), _short(costs.batched_ms), _short(batched), f"{costs.build_s:.1f}",
        f"{costs.num_bytes / result.vectors:,.0f}", f"{costs.peak_mib:,.0f}", f"{costs.own_mib:,.0f}",
    ]  # fmt: skip


def _notes(result: SearchSpeed) -> list[str]:
    few = [
        f"{row.name} {row.costs.single_calls}" for row in result.rows if row.costs and row.costs.single_calls < CALLS
    ]
    notes = [
        "recall: share found of brute force's nearest neighbours; top-1: after rescore, with a 95 % interval; ms: per "
        "query vector; times: how many times faster than brute force; peak: memory including the pages of the "
        "memory-mapped vectors, private: without them",
        f"on {result.machine}; load {result.load:.1f} at the start",
        *([f"slow, so ms single is the median of few calls: {', '.join(few)}"] if few else []),
    ]
    return notes + [f"{row.name}: {row.outcome}; {row.told}" for row in result.rows if row.costs is None]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
