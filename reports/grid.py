"""The grid of one run as a table for the terminal: cells down, query lengths across, 95 % intervals."""

from __future__ import annotations

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.results import DEGRADED, Result, chosen

TITLES = {
    "identity": "clean, on the grid",
    "clean": "clean",
    "noise": "noise",
    "reverb": "reverb",
    "noise_reverb": "noise + reverb",
}
METRICS = {
    "segment_top1": "segment-level top-1 (right track, right time)",
    "audio_top1": "audio-level top-1 (right track)",
}


def render(result: Result) -> RenderableType:
    """Return the tables of both top-1 scores, and the headline with the controls below them."""
    summary = result.summary
    own = chosen(result.rows, summary["encoder"], summary["index"], summary["sequence"])
    floor = chosen(result.rows, "random-projection", "exact")
    tables = [_table(own, floor, metric, title, summary) for metric, title in METRICS.items()]
    return Group(*tables, _headline(summary))


def _table(own: pd.DataFrame, floor: pd.DataFrame, metric: str, title: str, summary: dict[str, object]) -> Table:
    lengths = sorted(own["length_s"].unique())
    table = Table(
        title=f"{summary['encoder']} on {summary['benchmark']}: {title}",
        caption=f"per cent with 95 % Wilson interval; n = {summary['queries_per_cell']} queries a cell",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("condition")
    for length_s in lengths:
        table.add_column(f"{length_s:g} s", justify="right")
    table.add_column(f"floor {lengths[0]:g} s", justify="right", style="dim")
    last_kind = None
    for cell, rows in own[own["metric"] == metric].groupby("cell", sort=False):
        kind = rows["kind"].iloc[0]
        if last_kind is not None and kind != last_kind:
            table.add_section()
        last_kind = kind
        values = [_share(rows[rows["length_s"] == length_s]) for length_s in lengths]
        table.add_row(
            _condition(rows.iloc[0]), *values, _share(floor[(floor["cell"] == cell) & (floor["metric"] == metric)])
        )
    return table


def _condition(row: pd.Series) -> str:
    parts = [TITLES[row["kind"]]]
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"t60 {row['t60_s']:g} s"] if pd.notna(row["t60_s"]) else []
    return ", ".join(parts)


def _share(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    return f"{100 * row['value']:5.1f} [{100 * row['low']:.0f}-{100 * row['high']:.0f}]"


def _headline(summary: dict[str, object]) -> Text:
    headline = summary["headline"]
    assert isinstance(headline, dict)
    lines = [f"  {name:36s} {value:9.4f}" for name, value in headline.items()]
    note = f"means are over the {', '.join(DEGRADED)} cells and all lengths, as shares"
    return Text("\n".join(["", *lines, f"  ({note})"]))
