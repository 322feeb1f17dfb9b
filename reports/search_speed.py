"""One measurement of `bench speed search`: a table of all indexes, and a picture of recall against time."""

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
    """Return two tables, as one would be too wide for a terminal: what each index found, and what it takes."""
    title = (
        f"{result.encoder}, run {result.run[:6]}, {result.cell}, {result.length_s:g} s: {result.queries:,} queries "
        f"of {result.query_vectors // result.queries} vectors\nagainst {result.vectors:,} "
        f"({result.real_vectors:,} of them real) of {result.dim} dimensions"
    )
    found = _table("recall@1", f"recall@{result.top_k}", "top-1 %", "95 %")
    taken = _table(
        "ms\nsingle", "\ntimes", "ms\nbatched", "\ntimes", "build\ns", "bytes a\nvector", "peak\nMiB", "own\nMiB"
    )
    for row in result.rows:
        if row.costs is not None and row.quality is not None:
            found.add_row(row.name, *_format_quality(row.quality))
            taken.add_row(row.name, *_format_costs(row, row.costs, result))
        else:
            found.add_row(row.name, row.outcome)
    return Group(title, found, taken, *_notes(result))


def draw(result: SearchSpeed, path: Path) -> None:
    """Write a picture: recall at 1 against the time of a query vector among all at once, one point a row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for number, row in enumerate(row for row in result.rows if row.costs and row.quality):
        assert row.costs is not None and row.quality is not None
        marker = "s" if row.costs.exact else MARKERS[number % len(MARKERS)]
        axes.plot(row.costs.batched_ms, row.quality.recall_at_1, marker, label=row.name, markersize=8, alpha=0.8)
    figure.legend(loc="outside right upper", fontsize=8)  # beside points that lie close names would cover each other
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.set_xlabel("ms a query vector, all at once")
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
        "recall against brute force, by number; top-1 with a 95 % interval, after rescore; times: how many times less "
        "than brute force; ms are of one query vector; peak with the pages of the memory-mapped vectors, own without",
        f"on {result.machine}; load {result.load:.1f} when it began",
        *([f"ms single of few calls, as each takes long: {', '.join(few)}"] if few else []),
    ]
    return notes + [f"{row.name}: {row.outcome}; {row.told}" for row in result.rows if row.costs is None]


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
