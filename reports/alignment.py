"""Errors of aligners: one table per set of recordings, followed by results published on a set of the same name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.align.evaluate import ORACLE, summarise_sets

PUBLISHED = Path(__file__).with_name("published_alignment.toml")
ALPHA = 0.05
UNITS = {"mse_s2": "MSE, s2", "mae_ms": "MAE, ms"}


def render(files: pd.DataFrame) -> RenderableType:
    """Return a table for each set: each aligner's MSE and MAE over the files, best first, with a significance test."""
    sets = summarise_sets(files)
    tables = [_table(str(name), str(split), rows) for (name, split), rows in sets.groupby(["set", "split"], sort=False)]
    note = (
        "means over files with 95 % intervals (bootstrap over files); =: not significantly worse than the best "
        f"(Wilcoxon's test on the files' MSE, Holm's correction); {ORACLE}: the best candidate of the grid from which "
        "crosscor and deeplearning choose"
    )
    return Group(*tables, note, *(each for name in sets["set"].unique() for each in _render_published(name)))


def _table(set_name: str, split: str, rows: pd.DataFrame) -> Table:
    title = f"{set_name}, {split}, {rows['files'].max()} files"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("aligner", overflow="fold", min_width=20)
    for column in ("MSE, s2", "95 %", "MAE, ms", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows.sort_values("mse_s2").to_dict("records"):
        style = "dim" if row["aligner"] == ORACLE else "bold" if row["best"] else None
        alike = " =" if row["p"] >= ALPHA else ""
        table.add_row(
            f"{row['aligner']}{alike}", f"{row['mse_s2']:.2g}", f"{row['mse_s2_low']:.2g}-{row['mse_s2_high']:.2g}",
            _ms(row["mae_ms"]), f"{_ms(row['mae_ms_low'])}-{_ms(row['mae_ms_high'])}", style=style,
        )  # fmt: skip
    return table


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _render_published(set_name: str) -> list[Table]:
    """Return the results published on a set of this name, one table per year: each year's set is different data."""
    rows = [row for row in load_published_alignment() if row["set"] == set_name]
    return [_render_year(set_name, year, rows) for year in sorted({row["year"] for row in rows})]


def _render_year(set_name: str, year: int, rows: list[dict[str, Any]]) -> Table:
    title = f"published on {set_name} in {year} (other recordings)"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    of_year = [row for row in rows if row["year"] == year]
    columns = sorted({(row["split"], row["metric"]) for row in of_year}, reverse=True)
    table.add_column("system", overflow="fold", min_width=20)
    for split, metric in columns:
        table.add_column(f"{split}\n{UNITS[metric]}", justify="right", no_wrap=True)
    for system in dict.fromkeys(row["system"] for row in of_year):
        values = {(row["split"], row["metric"]): f"{row['value']:g}" for row in of_year if row["system"] == system}
        table.add_row(system, *(values.get(column, "") for column in columns))
    return table


def load_published_alignment() -> list[dict[str, Any]]:
    """Return the published rows: system, set, split, year, metric, value, source."""
    rows: list[dict[str, Any]] = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["row"]
    return rows
