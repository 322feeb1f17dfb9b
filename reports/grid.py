"""The grid of one run as a table for the terminal: cells down, query lengths across, 95 % intervals."""

from __future__ import annotations

import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.results import DEGRADED, Result, select_rows

TITLES = {"identity": "on the grid", "clean": "clean", "noise": "noise", "reverb": "reverb", "noise_reverb": "both"}
METRICS = {
    "segment_top1": "segment-level top-1 (right track, right time)",
    "audio_top1": "audio-level top-1 (right track)",
}


def render(result: Result, sequence: str | None = None) -> RenderableType:
    """Return the tables of both top-1 scores, and the headline with the controls below them.

    `sequence` is the sequence search of the tables, that of the headline if left out.
    """
    summary = result.summary
    sequence = sequence or summary["sequence"]
    # The search of all places asks no index: its rows stand under the exact one, whichever came first.
    index = "exact" if sequence == "diagonal" else summary["index"]
    own = select_rows(result.rows, summary["encoder"], index, sequence)
    floor = select_rows(result.rows, "random-projection", "exact", sequence)
    searched = f"{index}, {sequence}"
    tables = [_table(own, floor, metric, title, summary, searched) for metric, title in METRICS.items()]
    return Group(*tables, _headline(summary))


def _table(
    own: pd.DataFrame, floor: pd.DataFrame, metric: str, title: str, summary: dict[str, object], searched: str
) -> Table:
    lengths = sorted(own["length_s"].unique())
    table = Table(
        title=f"{summary['encoder']} on {summary['benchmark']}: {title}",
        caption=f"per cent, then its 95 % interval; n = {summary['queries_per_cell']} queries a cell; searched by "
        f"{searched}; floor: random projection, {lengths[0]:g} s; on the grid: clean "
        f"pieces of the database; both: noise and reverb{_format_t60(own)}",
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
    for cell, rows in own[own["metric"] == metric].groupby("cell", sort=False):
        kind = rows["kind"].iloc[0]
        if last_kind is not None and kind != last_kind:
            table.add_section()
        last_kind = kind
        values = [_format_share(rows[rows["length_s"] == length_s]) for length_s in lengths]
        table.add_row(
            _format_condition(rows.iloc[0]),
            *values,
            _format_share(floor[(floor["cell"] == cell) & (floor["metric"] == metric)]),
        )
    return table


def _format_condition(row: pd.Series) -> str:
    parts = [TITLES[row["kind"]]]
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"{row['t60_s']:g} s"] if row["kind"] == "reverb" else []
    return " ".join(parts)


def _format_t60(rows: pd.DataFrame) -> str:
    t60_s = rows.loc[rows["kind"] == "noise_reverb", "t60_s"].unique()
    return f" of {t60_s[0]:g} s" if len(t60_s) else ""


def _format_share(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    value = f"{100 * row['value']:.1f}" if row["value"] < 1 else "100"
    interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
    return f"{value} {interval:>6s}"


def _headline(summary: dict[str, object]) -> Text:
    headline = summary["headline"]
    assert isinstance(headline, dict)
    lines = [f"  {name:36s} {value:9.4f}" for name, value in headline.items()]
    cells = f"the {', '.join(DEGRADED)} cells and all lengths"
    note = f"means are over {cells}, as shares; searched by {summary['index']}, {summary['sequence']}"
    notes = [f"  ({note})"]
    if "sequence/interpolate_gains_points" in headline:
        notes.append("  (told between places: bench results --sequence interpolate)")
    return Text("\n".join(["", *lines, *notes]))
