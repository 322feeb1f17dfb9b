"""The alignment part of the HTML report: for each set, the errors of all files by aligner, and a table of means."""

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
LEAST_MS = 1e-3  # smaller errors are drawn here, since a log axis has no 0
JITTER = 0.22  # largest shift of a dot from the middle of its row, in rows


def alignment(runs: Sequence[Run], names: Mapping[str, str]) -> list[Block]:
    """Return a figure and a table for each set of the same recordings, with all runs that aligned them."""
    groups = {title: (files, summarise_sets(files)) for title, files in group_by_recordings(runs, names).items()}
    blocks: list[Block] = [Text(" ".join(verdict(title, table) for title, (_, table) in groups.items()), "lead")]
    for title, (files, table) in groups.items():
        order = list(table.sort_values("mae_ms")["aligner"])
        caption = (
            "Mean absolute error in ms on a log axis, one dot per file; bars are medians over files. Aligners are "
            f"sorted by mean, the best on top. {ORACLE}: the best candidate of the grid from which crosscor and "
            "deeplearning choose."
        )
        blocks += [Figure(title, [_strips(files, order, title)], caption, least_px=PLOT_PX), _table(table, title)]
    return blocks + _render_published({str(name) for run in runs for name in run.result.alignment["set"].unique()})


def group_by_recordings(runs: Sequence[Run], names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    """Return the errors of all runs by set. Sets are the same if their true times are.

    An aligner that gave the same errors in several runs (most need no encoder) is listed once; otherwise its name
    includes the run.
    """
    groups: dict[tuple[str, str, str], dict[str, pd.DataFrame]] = {}
    for run in runs:
        for (set_name, split), files in run.result.alignment.groupby(["set", "split"], sort=False):
            key = (str(set_name), str(split), _truth_digest(run, str(set_name), str(split)))
            groups.setdefault(key, {})[names[run.key]] = files
    titles = [f"{name}, {split}" for name, split, _ in groups]
    merged = {}
    for (name, split, truth), by_run in groups.items():
        title = f"{name}, {split}"
        title += f" (recordings {truth[:6]})" if titles.count(title) > 1 else ""
        merged[title] = _merge_runs(by_run)
    return merged


def _truth_digest(run: Run, set_name: str, split: str) -> str:
    """Return a digest of the files and true times of a set; the run's key if it has no keypoints."""
    points = run.result.keypoints
    points = points[(points["set"] == set_name) & (points["split"] == split)]
    if not len(points):
        return run.key
    truth = points[points["aligner"] == points["aligner"].iloc[0]].sort_values(["file", "time0_s"])
    return digest(truth["file"].tolist(), truth["time0_s"].tolist(), truth["time1_s"].tolist())


def _merge_runs(by_run: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    versions: dict[str, list[tuple[str, pd.DataFrame]]] = {}  # by aligner, without repeated errors
    for run, files in by_run.items():
        for aligner, errors in files.groupby("aligner", sort=False):
            errors = errors.sort_values("name")
            seen = versions.setdefault(str(aligner), [])
            if not any(_has_same_errors(errors, other) for _, other in seen):
                seen.append((run, errors))
    return pd.concat(
        [
            errors.assign(aligner=f"{aligner} ({run})" if len(seen) > 1 else aligner)
            for aligner, seen in versions.items()
            for run, errors in seen
        ],
        ignore_index=True,
    )


def _has_same_errors(first: pd.DataFrame, other: pd.DataFrame) -> bool:
    return first["name"].tolist() == other["name"].tolist() and np.allclose(first["mse_s2"], other["mse_s2"], rtol=1e-9)


def _strips(files: pd.DataFrame, order: Sequence[str], title: str) -> Markup:
    height = FRAME_PX + ROW_PX * len(order)
    names_px = 20 + LETTER_PX * max(map(len, order))
    generator = np.random.default_rng(0)  # of the jitter; seeded, so that the same data give the same page
    with canvas(names_px + PLOT_PX, height, left=names_px, right=24, top=30) as axes:
        medians = []
        for row, aligner in enumerate(order):
            errors = np.maximum(files.loc[files["aligner"] == aligner, "mae_ms"].to_numpy(dtype=float), LEAST_MS)
            colour = MUTED if aligner in (ORACLE, "nosync") else SERIES[0]
            shift = generator.uniform(-JITTER, JITTER, len(errors))
            axes.plot(errors, row + shift, "o", color=colour, alpha=0.45, markersize=4.5, markeredgewidth=0)
            axes.plot([np.median(errors)] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
            medians.append(f"{aligner} {np.median(errors):.3g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_yticks(range(len(order)), order)
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("mean absolute error per file, ms")
        axes.set_title(f"{files['name'].nunique()} files", color=INK)
        return render_svg(axes, f"Alignment error per file: {title}", f"Median over files, ms: {'; '.join(medians)}")


def verdict(title: str, table: pd.DataFrame) -> str:
    """Return a sentence on the best aligner of a set, and on how many others are not significantly worse."""
    best = table[table["best"]].iloc[0]
    alike = int(((table["p"] >= ALPHA) & (table["aligner"] != ORACLE)).sum())
    others = f"{alike} other{'s are' if alike > 1 else ' is'} not significantly worse"
    if not alike:
        others = "all others are significantly worse"
    errors = f"the lowest mean squared error (mean absolute error {_ms(best['mae_ms'])} ms)"
    return f"On {title}, {best['aligner']} has {errors}; {others}."


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
        f"{table['files'].max()} files; means over files with 95 % intervals (bootstrap over files). Bold: lowest MSE; "
        "=: not significantly worse (Wilcoxon's test on the files' MSE, Holm's correction)."
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
    return [
        Table("Published alignment results", columns, body, "Measured on other recordings: not directly comparable.")
    ]
