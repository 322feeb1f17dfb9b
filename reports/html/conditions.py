"""Top-1 by condition in the HTML report: curves over SNR and t60, and a heat map of the grid of each run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from bench.degrade.cells import describe_distortion
from bench.reports.html.blocks import (
    Block,
    Collapsible,
    Figure,
    Heat,
    Heats,
    TableCell,
    format_interval,
    format_percent,
)
from bench.reports.html.load import Run
from bench.reports.html.svg import (
    INK,
    MARKERS,
    MUTED,
    REST,
    SERIES,
    EndLabel,
    canvas,
    label_ends,
    label_width,
    render_svg,
)
from bench.results import select_floor, select_rows

METRIC = "segment_top1"
AXES = {
    "noise": ("snr_db", "Noise", "SNR, dB"),
    "reverb": ("t60_s", "Reverberation", "t60, s"),
    "measured_reverb": ("t60_s", "Reverberation of measured rooms", "t60, s"),
    "noise_reverb": ("snr_db", "Noise and reverberation", "SNR, dB"),
}
WIDTH, HEIGHT = 430, 250
FLOOR = "random projection"
OPEN_MAPS = 6  # number of runs whose maps are shown at once; a click opens the others
HEAT_STEPS = 10  # number of colours
_Condition = tuple[float | None, float | None, float]  # SNR, t60 and query length


def select_system_rows(run: Run, metric: str = METRIC) -> pd.DataFrame:
    """Return the rows of a run's system with its first index and headline sequence search."""
    summary = run.result.summary
    rows = select_rows(run.result.rows, run.system, summary["index"], summary["sequence"])
    return rows[rows["metric"] == metric]


def curves(runs: Sequence[Run], names: Mapping[str, str]) -> list[Block]:
    """Return a figure for each kind of degradation, with one panel per query length; each panel shows all runs."""
    rows = {run.key: select_system_rows(run) for run in runs}
    floor = select_floor(runs[0].result.rows)
    floor = floor[floor["metric"] == METRIC]
    blocks: list[Block] = []
    for kind, (column, title, unit) in AXES.items():
        of_kind = {key: of_run[of_run["kind"] == kind] for key, of_run in rows.items()}
        lengths = sorted({float(length) for of_run in of_kind.values() for length in of_run["length_s"]})
        panels = [
            _panel(
                {key: of_run[of_run["length_s"] == length].sort_values(column) for key, of_run in of_kind.items()},
                floor[(floor["kind"] == kind) & (floor["length_s"] == length)].sort_values(column),
                names, column, unit, f"{title}, queries of {length:g} s",
            )
            for length in lengths
        ]  # fmt: skip
        if panels:
            blocks.append(Figure(title, panels, _caption(kind, list(of_kind.values()), len(runs))))
    return blocks


def _caption(kind: str, rows: Sequence[pd.DataFrame], num_runs: int) -> str:
    t60_s = sorted({f"{t60:g}" for of_run in rows for t60 in of_run["t60_s"].dropna()})
    condition = f"All at t60 = {', '.join(t60_s)} s. " if kind == "noise_reverb" and t60_s else ""
    grey = f" The best {len(SERIES)} runs are in colour, the others in grey." if num_runs > len(SERIES) else ""
    return (
        f"{condition}Segment-level top-1 (right track, right time) in per cent; bands are 95 % intervals (Wilson). "
        f"Dashed: random projection, an untrained control, where it was tested.{grey}"
    )


def _panel(
    rows: Mapping[str, pd.DataFrame],
    floor: pd.DataFrame,
    names: Mapping[str, str],
    column: str,
    unit: str,
    title: str,
) -> Markup:
    ends = []
    with canvas(WIDTH, HEIGHT, right=label_width([FLOOR, *(names[key] for key in list(rows)[: len(SERIES)])])) as axes:
        for i, (key, of_run) in reversed(list(enumerate(rows.items()))):  # the best run last, on top of the others
            if of_run.empty:
                continue
            x, y = of_run[column], 100 * of_run["value"]
            if i >= len(SERIES):
                axes.plot(x, y, color=REST, linewidth=0.9, alpha=0.7)
                continue
            axes.fill_between(x, 100 * of_run["low"], 100 * of_run["high"], color=SERIES[i], alpha=0.13, linewidth=0)
            axes.plot(x, y, color=SERIES[i], marker=MARKERS[i])
            ends.append(EndLabel(float(x.iloc[-1]), float(y.iloc[-1]), names[key], SERIES[i]))
        if len(floor):
            axes.plot(floor[column], 100 * floor["value"], color=MUTED, linestyle="--", linewidth=1.2)
            ends.append(EndLabel(float(floor[column].iloc[-1]), 100 * float(floor["value"].iloc[-1]), FLOOR, MUTED))
        axes.set_ylim(0, 103)
        axes.set_xticks(sorted({value for of_run in rows.values() for value in of_run[column]}))
        axes.set_xlabel(unit)
        axes.set_title(title, color=INK)
        label_ends(axes, ends)
        coloured = list(rows.items())[: len(SERIES)]
        values = "; ".join(_describe_curve(names[key], of_run, column) for key, of_run in coloured)
        return render_svg(axes, f"Top-1 by {unit}: {title}", f"Top-1 in per cent. {values}")


def _describe_curve(name: str, rows: pd.DataFrame, column: str) -> str:
    values = ", ".join(f"{format_percent(v)} at {x:g}" for x, v in zip(rows[column], rows["value"], strict=True))
    return f"{name}: {values or 'not measured'}"


def heat_maps(runs: Sequence[Run], names: Mapping[str, str]) -> list[Block]:
    """Return the heat maps of each run, one per query length: SNR in rows, t60 in columns, gaps if not measured.

    Measured rooms, which are tested in without noise, are the last row. Distortions have a map of their own, with query
    lengths in columns.
    """
    rows = [select_system_rows(run) for run in runs]
    distorted = [_select_distorted(of_run) for of_run in rows]
    rows = [of_run.drop(index=part.index) for of_run, part in zip(rows, distorted, strict=True)]
    grid, conditions = _collect_axes(rows), _list_distortions(distorted)
    maps = [
        Heats(names[run.key], [*_maps(of_run, grid), *_distortion_map(part, conditions, grid[2])])
        for run, of_run, part in zip(runs, rows, distorted, strict=True)
    ]
    hidden = [Collapsible(f"The other {len(maps) - OPEN_MAPS} runs", maps[OPEN_MAPS:])] if len(maps) > OPEN_MAPS else []
    return [*maps[:OPEN_MAPS], *hidden]


def _collect_axes(tables: Sequence[pd.DataFrame]) -> tuple[list[float], list[float], list[float]]:
    """Return every SNR, t60 and query length at which any of the runs was tested."""
    rows = pd.concat([table[["snr_db", "t60_s", "length_s"]] for table in tables])
    snr, t60, length = (sorted(float(v) for v in rows[name].dropna().unique()) for name in rows)
    return snr, t60, length


def _maps(rows: pd.DataFrame, grid: tuple[list[float], list[float], list[float]]) -> list[Heat]:
    snrs, t60s, lengths = grid
    is_measured = rows["kind"] == "measured_reverb"
    by_condition, by_room = (
        {_condition_key(row): row for row in of_kind.to_dict("records")}
        for of_kind in (rows[(rows["kind"] != "identity") & ~is_measured], rows[is_measured])
    )
    columns = ["dry", *(f"{t60:g}" for t60 in t60s)]
    noises = [("none" if snr is None else f"{snr:g}", snr) for snr in [None, *reversed(snrs)]]

    def measure(
        found: Mapping[_Condition, Mapping[Hashable, Any]], snr: float | None, length: float
    ) -> list[TableCell]:
        return [_heat(found.get((snr, t60, length))) for t60 in [None, *t60s]]

    return [
        Heat(
            f"queries of {length:g} s",
            "dB \\ s", columns,
            [(name, measure(by_condition, snr, length)) for name, snr in noises]
            + ([("measured rooms", measure(by_room, None, length))] if by_room else []),
        )
        for length in lengths
    ]  # fmt: skip


def _select_distorted(rows: pd.DataFrame) -> pd.DataFrame:
    is_distorted = rows["distortion"].notna() if "distortion" in rows else pd.Series(False, index=rows.index)
    return rows[is_distorted]


def _list_distortions(tables: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return the text of each distorted cell that any of the runs was tested in, by the cell's name."""
    return {
        str(row["cell"]): describe_distortion(row["distortion"])
        + ("" if pd.isna(row["snr_db"]) else f", {row['snr_db']:g} dB")
        for table in tables
        for row in table.drop_duplicates("cell").to_dict("records")
    }


def _distortion_map(rows: pd.DataFrame, conditions: Mapping[str, str], lengths: Sequence[float]) -> list[Heat]:
    """Return the map of the distorted cells, if any run has some: one in each row, query lengths in columns."""
    if not conditions:
        return []
    found = {(row["cell"], float(row["length_s"])): row for row in rows.to_dict("records")}
    cells = [(text, [_heat(found.get((cell, length))) for length in lengths]) for cell, text in conditions.items()]
    return [Heat("distortions", "", [f"{length:g} s" for length in lengths], cells)]


def _condition_key(row: Mapping[Hashable, Any]) -> _Condition:
    snr_db, t60_s = (None if pd.isna(row[name]) else float(row[name]) for name in ("snr_db", "t60_s"))
    return snr_db, t60_s, float(row["length_s"])


def _heat(row: Mapping[Hashable, Any] | None) -> TableCell:
    if row is None:
        return TableCell("", "gap", title="not measured")
    value, low, high = row["value"], row["low"], row["high"]
    step = min(HEAT_STEPS - 1, int(value * HEAT_STEPS))
    return TableCell(
        f"{100 * value:.0f}",
        f"h{step}",
        title=f"{format_percent(value)} ({format_interval(low, high)}), n = {row['n']}",
    )
