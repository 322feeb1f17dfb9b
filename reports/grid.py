"""Shows the results of one run in the terminal: conditions in rows, query lengths in columns, 95 % intervals."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.degrade.cells import describe_distortion
from bench.results import DEGRADED, Result, select_among_distractors, select_floor, select_rows

TITLES = {
    "identity": "on the grid",
    "clean": "clean",
    "noise": "noise",
    "reverb": "reverb",
    "measured_reverb": "measured room",
    "noise_reverb": "both",
}
METRICS = {
    "segment_top1": "segment-level top-1 (right track, right time)",
    "audio_top1": "audio-level top-1 (right track)",
}


def render(result: Result, sequence: str | None = None) -> RenderableType:
    """Return the tables of both top-1 scores, followed by the headline numbers and the controls.

    `sequence` is the sequence search to show, by default the headline's.
    """
    summary = result.summary
    sequence = sequence or summary["sequence"]
    # `diagonal` compares all database segments without an index, so its rows are labelled "exact".
    index = "exact" if sequence == "diagonal" else summary["index"]
    rows = select_rows(result.rows, summary["system"], index, sequence)
    floor = select_floor(result.rows, sequence)
    search = f"index: {index}, sequence search: {sequence}"
    tables = [_table(rows, floor, metric, title, summary, search) for metric, title in METRICS.items()]
    costs = [_cost_table(result)] if len(result.costs) else []
    tested = [kind for kind in DEGRADED if (result.rows["kind"] == kind).any()]
    return Group(*tables, *size_tables(result), *costs, _headline(summary, tested))


def size_tables(result: Result) -> list[Table]:
    """Return a table of top-1 by the size of the database, synthetic beside real distractors; empty without any."""
    summary = result.summary
    rows = select_among_distractors(result.rows, summary["system"])
    rows = rows[rows["metric"] == "segment_top1"] if len(rows) else rows
    if rows.empty:
        return []
    table = Table(
        title=f"{summary['system']} {summary['run'][:6]}: segment-level top-1 by the size of the database, "
        f"{rows['length_s'].iloc[0]:g} s",
        caption=f"per cent, with 95 % intervals; n = {rows['n'].iloc[0]}; columns: fingerprints in the database, "
        f"{summary['database_vectors']:,} of them of the test tracks; exact, diagonal. real: tracks of the training "
        "side, held-out ones first",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("condition")
    table.add_column("distractors")
    sizes = sorted(rows["distractors"].unique())
    for size in sizes:
        table.add_column(f"{summary['database_vectors'] + size:,}", justify="right")
    alone = rows["origin"].isna()
    for _cell, of_cell in rows.groupby("cell", sort=False):
        for origin in sorted(of_cell["origin"].dropna().unique(), reverse=True):
            of_origin = of_cell[alone[of_cell.index] | (of_cell["origin"] == origin)]
            shares = [_format_share(of_origin[of_origin["distractors"] == size]) for size in sizes]
            table.add_row(_format_condition(of_cell.iloc[0]), origin, *shares)
    return [table]


def _cost_table(result: Result) -> Table:
    first = result.costs.iloc[0]
    where = "one thread, CPU time" if first["device"] == "cpu" else f"{first['device']}, wall time"
    table = Table(
        title="costs of an answer",
        caption=f"ms from the wave of one query to its answer, median of {int(result.costs['n'].max())} ({where}); "
        "MB per hour of the database's music; x real time: seconds of music fingerprinted per second",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("search")
    lengths = sorted(result.costs["length_s"].unique())
    for column in (*(f"ms, {length_s:g} s" for length_s in lengths), "MB/h", "x real time"):
        table.add_column(column, justify="right")
    for (index, sequence), rows in result.costs.groupby(["index", "sequence"], sort=False):
        ms = dict(zip(rows["length_s"], rows["ms_per_query"], strict=True))
        table.add_row(
            str(index) if index == sequence else f"{index}, {sequence}",
            *("-" if pd.isna(ms[length_s]) else f"{ms[length_s]:.3g}" for length_s in lengths),
            f"{rows['bytes_per_hour'].iloc[0] / 1e6:.3g}",
            f"{rows['audio_s_per_s'].iloc[0]:,.0f}",
        )
    return table


def _table(
    rows: pd.DataFrame, floor: pd.DataFrame, metric: str, title: str, summary: dict[str, object], search: str
) -> Table:
    lengths = sorted(rows["length_s"].unique())
    table = Table(
        title=f"{summary['system']} on {summary['benchmark']}: {title}",
        caption=f"per cent, with 95 % intervals; n = {summary['queries_per_cell']} queries per condition; {search}; "
        f"floor: random projection (untrained), {lengths[0]:g} s; on the grid: clean excerpts aligned with database "
        f"segments; both: noise and reverb{_format_t60(rows)}{_describe_measured(rows)}",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("condition")
    for length_s in lengths:
        table.add_column(f"{length_s:g} s", justify="right")
    table.add_column("floor", justify="right", style="dim")
    last_kind = None
    for cell, of_cell in rows[rows["metric"] == metric].groupby("cell", sort=False):
        kind = of_cell["kind"].iloc[0]
        if last_kind is not None and kind != last_kind:
            table.add_section()
        last_kind = kind
        values = [_format_share(of_cell[of_cell["length_s"] == length_s]) for length_s in lengths]
        table.add_row(
            _format_condition(of_cell.iloc[0]),
            *values,
            _format_share(floor[(floor["cell"] == cell) & (floor["metric"] == metric)]),
        )
    return table


def _format_condition(row: pd.Series) -> str:
    parts = [describe_distortion(row["distortion"]) if pd.notna(row.get("distortion")) else TITLES[row["kind"]]]
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"{row['t60_s']:g} s"] if row["kind"] in ("reverb", "measured_reverb") else []
    return " ".join(parts)


def _format_t60(rows: pd.DataFrame) -> str:
    t60_s = rows.loc[rows["kind"] == "noise_reverb", "t60_s"].unique()
    return f" of {t60_s[0]:g} s" if len(t60_s) else ""


def _describe_measured(rows: pd.DataFrame) -> str:
    is_tested = (rows["kind"] == "measured_reverb").any()
    return "; reverb: simulated rooms; measured room: measured responses of about this t60" if is_tested else ""


def _format_share(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    value = f"{100 * row['value']:.1f}" if row["value"] < 1 else "100"
    interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
    return f"{value} {interval:>6s}"


def _headline(summary: dict[str, object], tested: list[str]) -> Text:
    headline = summary["headline"]
    assert isinstance(headline, dict)
    lines = [f"  {name:36s} {value:9.4f}" for name, value in headline.items()]
    search = f"index: {summary['index']}, sequence search: {summary['sequence']}"
    notes = [f"  (means of shares over the cells {', '.join(tested)} and all query lengths; {search})"]
    if "sequence/interpolate_gains_points" in headline:
        notes.append("  (with interpolated times: bench results --sequence interpolate)")
    return Text("\n".join(["", *lines, *notes]))
