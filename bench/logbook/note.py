"""Writes the description of a run that MLflow shows, in Markdown."""

from __future__ import annotations

from typing import Any

import pandas as pd

from bench.align.evaluate import summarise_sets
from bench.degrade.cells import describe_distortion
from bench.results import ALIGNMENT_NUMBERS, Result, format_database, select_rows


def format_note(result: Result) -> str:
    """Return the description of a run in Markdown: what was tested, the headline, the grid, the aligners."""
    summary = result.summary
    tests, tables = [], []
    headline = summary["headline"].items()
    numbers = [[name, f"{value:.4f}"] for name, value in headline if not name.startswith(ALIGNMENT_NUMBERS)]
    if len(result.rows):
        tests.append(f"{summary['queries_per_cell']} queries per cell, {format_database(summary)}")
        tables += [_markdown(["number", "value"], numbers), _grid_note(result)]
    if len(result.alignment):
        tests.append(f"{result.alignment['name'].nunique()} pairs of recordings aligned")
        tables.append(_alignment_note(result))
    title = f"**{summary['system']}** ({summary['preset']}) on **{summary['benchmark']}**: {'; '.join(tests)}."
    if (mean := summary["headline"].get("segment_top1/mean")) is not None:  # MLflow shows only the first lines at once
        title += f" Segment-level top-1, mean of the degraded cells: **{mean:.1%}**."
    return "\n\n".join([title, *tables]) + "\n"


def _grid_note(result: Result) -> str:
    summary = result.summary
    table = select_rows(result.rows, summary["system"], summary["index"], summary["sequence"])
    table = table[table["metric"] == "segment_top1"]
    lengths = sorted(table["length_s"].unique())
    lines = []
    for _, rows in table.groupby("cell", sort=False):
        by_length = {row["length_s"]: row for row in rows.to_dict("records")}
        lines.append([_format_condition(rows.iloc[0]), *(_percent(by_length.get(length_s)) for length_s in lengths)])
    heading = f"#### Segment-level top-1 in per cent, with 95 % intervals ({result.summary['index']})"
    return heading + "\n\n" + _markdown(["condition", *(f"{length_s:g} s" for length_s in lengths)], lines)


def _format_condition(row: pd.Series) -> str:
    parts = [
        describe_distortion(row["distortion"]) if pd.notna(row.get("distortion")) else row["kind"].replace("_", " + ")
    ]
    parts += [f"{row['snr_db']:g} dB"] if pd.notna(row["snr_db"]) else []
    parts += [f"{row['t60_s']:g} s"] if pd.notna(row["t60_s"]) else []
    return ", ".join(parts)


def _percent(row: dict[Any, Any] | None) -> str:
    return "-" if row is None else f"{100 * row['value']:.1f} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _alignment_note(result: Result) -> str:
    table = summarise_sets(result.alignment)
    sets = list(dict.fromkeys(table["set"]))
    lines = []
    for aligner, rows in table.groupby("aligner", sort=False):
        by_set = {row["set"]: f"{_short(row['mae_ms'])} ms, {row['mse_s2']:.2g} s2" for row in rows.to_dict("records")}
        lines.append([str(aligner), *(by_set.get(set_name, "-") for set_name in sets)])
    return "#### Alignment: mean absolute and mean squared error\n\n" + _markdown(["aligner", *map(str, sets)], lines)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _markdown(header: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown. MLflow draws no gap between columns, so each cell ends with spaces."""
    padded = [[f"{cell}&nbsp;&nbsp;" for cell in line] for line in [header, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], ["---"] * len(header), *padded[1:]])
