"""Shows the results of one run by the category of noise: categories and query lengths in rows, levels in columns."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.results import Result
from bench.score.by_noise import score_by_noise

TITLES = {"noise": "noise", "noise_reverb": "noise and reverb"}


def tabulate(result: Result, category_Q: npt.NDArray[np.object_]) -> pd.DataFrame:
    """Return the encoder's top-1 by category of noise, for every sequence search; `category_Q` is of each query."""
    return score_by_noise(result.hits, result.rows[["cell", "kind", "snr_db"]], category_Q)


def render(result: Result, category_Q: npt.NDArray[np.object_], sequence: str | None = None) -> RenderableType:
    """Return a table for each kind of noisy cell; `sequence` is the search to show, by default the headline's."""
    summary = result.summary
    sequence = sequence or summary["sequence"]
    index = "exact" if sequence == "diagonal" else summary["index"]  # `diagonal` uses no index
    rows = tabulate(result, category_Q)
    rows = rows[(rows["index"] == index) & (rows["sequence"] == sequence) & (rows["metric"] == "segment_top1")]
    search = f"index: {index}, sequence search: {sequence}"
    parts: list[RenderableType] = []
    for kind, of_kind in rows.groupby("kind"):
        title = f"{summary['system']} on {summary['benchmark']}: segment-level top-1 by category, {TITLES[str(kind)]}"
        parts += [Text(title, style="italic"), _table(of_kind)]
    caption = f"per cent, with 95 % intervals; n: queries of a category, the same at all levels; {search}"
    return Group(*parts, Text(caption, style="dim"))


def _table(rows: pd.DataFrame) -> Table:
    levels_db = sorted(rows["snr_db"].unique())
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("category")
    table.add_column("n", justify="right")
    table.add_column("query", justify="right")
    for level_db in levels_db:
        table.add_column(f"{level_db:g} dB", justify="right")
    for category, of_category in rows.groupby("category", sort=True):
        names = [str(category), str(of_category["n"].iloc[0])]
        for length_s, of_length in of_category.groupby("length_s", sort=True):
            by_level = of_length.set_index("snr_db")
            shares = [_format_share(by_level.loc[level_db]) for level_db in levels_db]
            table.add_row(*names, f"{length_s:g} s", *shares)
            names = ["", ""]
        table.add_section()
    return table


def _format_share(row: pd.Series) -> str:
    value = f"{100 * row['value']:.1f}" if row["value"] < 1 else "100"
    interval = f"{100 * row['low']:.0f}-{100 * row['high']:.0f}"
    return f"{value} {interval:>6s}"
