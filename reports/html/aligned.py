"""Alignment: the error of each file, a strip an aligner, and the table of each set of recordings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from bench.align.evaluate import ORACLE, summarise_sets
from bench.reports.alignment import load_published_alignment
from bench.reports.html.blocks import Block, Figure, Table, TableCell, Text
from bench.reports.html.load import Run
from bench.reports.html.ranking import ALPHA
from bench.reports.html.svg import INK, MUTED, SERIES, canvas, render_svg
from bench.store import digest

PLOT_PX, ROW_PX, LETTER_PX, FRAME_PX = 470, 22, 6, 76
LEAST_MS = 1e-3  # an error of nought has no place on a log axis
JITTER = 0.22


def alignment(runs: Sequence[Run], names: Mapping[str, str]) -> list[Block]:
    """Return a figure and a table for each set of the same recordings, of all runs that aligned them."""
    found = {title: (files, summarise_sets(files)) for title, files in group_by_recordings(runs, names).items()}
    blocks: list[Block] = [Text(" ".join(verdict(title, table) for title, (_, table) in found.items()), "lead")]
    for title, (files, table) in found.items():
        order = list(table.sort_values("mae_ms")["aligner"])
        caption = (
            "Mean absolute error of each file, ms, on a log axis; the bar is the median over files. Best mean on top. "
            f"{ORACLE}: the best line of the grid that crosscor and deeplearning choose from."
        )
        blocks += [Figure(title, [_strips(files, order, title)], caption, least_px=PLOT_PX), _table(table, title)]
    return blocks + _render_published({str(name) for run in runs for name in run.result.alignment["set"].unique()})


def group_by_recordings(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Return the errors of all runs by set, where they aligned the very same recordings, known by the true times.

    An aligner that gave the same errors in several runs (most hear no fingerprints) is there once; else each carries
    the name of its run.
    """
    found: dict[tuple[str, str, str], dict[str, pd.DataFrame]] = {}
    for run in runs:
        for (set_name, split), files in run.result.alignment.groupby(["set", "split"], sort=False):
            key = (str(set_name), str(split), _truth_digest(run, str(set_name), str(split)))
            found.setdefault(key, {})[names[run.key]] = files
    titles = [f"{name}, {split}" for name, split, _ in found]
    made = {}
    for (name, split, truth), by_run in found.items():
        title = f"{name}, {split}"
        title += f" (recordings {truth[:6]})" if titles.count(title) > 1 else ""
        made[title] = _merge_runs(by_run)
    return made


def _truth_digest(run: Run, set_name: str, split: str) -> str:
    points = run.result.keypoints
    own = points[(points["set"] == set_name) & (points["split"] == split)]
    first = own[own["aligner"] == own["aligner"].iloc[0]].sort_values(["file", "time0_s"]) if len(own) else own
    return digest(first["file"].tolist(), first["time0_s"].tolist(), first["time1_s"].tolist()) if len(own) else run.key


def _merge_runs(by_run: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    versions: dict[str, list[tuple[str, pd.DataFrame]]] = {}
    for run, files in by_run.items():
        for aligner, own in files.groupby("aligner", sort=False):
            own = own.sort_values("name")
            seen = versions.setdefault(str(aligner), [])
            if not any(_has_same_errors(own, other) for _, other in seen):
                seen.append((run, own))
    return pd.concat(
        [
            own.assign(aligner=f"{aligner} ({run})" if len(seen) > 1 else aligner)
            for aligner, seen in versions.items()
            for run, own in seen
        ],
        ignore_index=True,
    )


def _has_same_errors(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return one["name"].tolist() == other["name"].tolist() and np.allclose(one["mse_s2"], other["mse_s2"], rtol=1e-9)


def _strips(files: pd.DataFrame, order: Sequence[str], title: str) -> Markup:
    height = FRAME_PX + ROW_PX * len(order)
    names_px = 20 + LETTER_PX * max(map(len, order))
    draw = np.random.default_rng(0)  # of the jitter
    with canvas(names_px + PLOT_PX, height, left=names_px, right=24, top=30) as axes:
        told = []
        for row, aligner in enumerate(order):
            errors = np.maximum(files.loc[files["aligner"] == aligner, "mae_ms"].to_numpy(dtype=float), LEAST_MS)
            colour = MUTED if aligner in (ORACLE, "nosync") else SERIES[0]
            shift = draw.uniform(-JITTER, JITTER, len(errors))
            axes.plot(errors, row + shift, "o", color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0)
            axes.plot([np.median(errors)] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
            told.append(f"{aligner} {np.median(errors):.3g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_yticks(range(len(order)), order)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("mean absolute error of a file, ms")
        axes.set_title(f"{files['name'].nunique()} files", color=INK)
        return render_svg(axes, f"Alignment error per file: {title}", f"Median over files, ms: {'; '.join(told)}")


def verdict(title: str, table: pd.DataFrame) -> str:
    """Return which aligner is best on a set, and whether others are as good, in a sentence."""
    best = table[table["best"]].iloc[0]
    alike = int(((table["p"] >= ALPHA) & (table["aligner"] != ORACLE)).sum())
    others = f"; {alike} other{'s are' if alike > 1 else ' is'} not significantly worse" if alike else ", significantly"
    return f"On {title}, {best['aligner']} errs least, by {_ms(best['mae_ms'])} ms on the mean{others}."


def _table(table: pd.DataFrame, title: str) -> Table:
    rows = []
    for row in table.sort_values("mse_s2").to_dict("records"):
        kind = "dim" if row["aligner"] == ORACLE else "best" if row["best"] else ""
        alike = " =" if row["p"] >= ALPHA else ""
        mse = f"{row['mse_s2']:.2g}{alike}"
        rows.append(
            [
                TableCell(str(row["aligner"]), kind),
                TableCell(mse, f"num {kind}", row["mse_s2"], _format_range(row, "mse_s2", "{:.2g}".format)),
                TableCell(_ms(row["mae_ms"]), f"num {kind}", row["mae_ms"], _format_range(row, "mae_ms", _ms)),
                TableCell(_ms(row["median_ms"]), "num", row["median_ms"], _format_range(row, "median_ms", _ms)),
                TableCell("" if np.isnan(row["p"]) else f"{row['p']:.2g}", "num", row["p"]),
            ]
        )
    columns = ("aligner", "MSE, s2", "MAE, ms", "median, ms", "p (Holm)")
    caption = (
        f"{table['files'].max()} files; means over files with 95 % intervals (bootstrap over files). Bold: least MSE; "
        "=: not significantly worse by Wilcoxon's test on the files' MSE, Holm-corrected."
    )
    return Table(title, columns, rows, caption)


def _format_range(row: Mapping[Hashable, Any], name: str, shown: Callable[[float], str]) -> str:
    return f"{shown(row[f'{name}_low'])} to {shown(row[f'{name}_high'])}"


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _render_published(sets: set[str]) -> list[Block]:
    rows = [row for row in load_published_alignment() if row["set"] in sets]
    if not rows:
        return []
    body = [
        [
            TableCell(str(row[name]), "num" if name in ("value", "year") else "")
            for name in ("system", "set", "split", "year")
        ]
        + [TableCell(str(row["metric"])), TableCell(f"{row['value']:g}", "num"), TableCell(str(row["source"]))]
        for row in rows
    ]
    columns = ("system", "set", "split", "year", "metric", "value", "source")
    return [Table("Published alignment results", columns, body, "Of other recordings: not comparable one to one.")]
