"""Shows a sweep in the terminal: its trials, best first, and the importance of each setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.config import format_setting
from bench.runs import STUDY, TRIALS
from bench.store import read_frame, read_json

MAX_TRIALS = 15
BAR_CHARACTERS = 24  # length of the bar of an importance of 100 %
PARAM, VALUE = "param.", "value."


def render(folder: Path) -> RenderableType:
    """Return the best trials of the study in a folder of the store, the importances, and how many trials ended how."""
    study, trials = read_json(folder / STUDY), read_frame(folder / TRIALS)
    return Group(_trials(study, trials), *_importances(study["importances"]), _format_outcomes(trials))


def _trials(study: dict[str, Any], trials: pd.DataFrame) -> Table:
    values = [f"{VALUE}{name}" for name in study["objectives"]]
    params = [str(name) for name in trials if str(name).startswith(PARAM)]
    upward = study["directions"][0] == "maximize"
    done = trials[trials["state"] == "complete"].sort_values(values[0], ascending=not upward)
    front = "on the Pareto front" if len(values) > 1 else "the best"
    table = Table(
        title=f"{study['study']}: {len(done)} complete trials, best first",
        caption=f"bold: {front}; top-1: mean over the degraded conditions, queries of the shortest length from "
        "held-out training tracks",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name in ("trial", *(value.removeprefix(VALUE) for value in values), "s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for row in done.head(MAX_TRIALS).to_dict("records"):
        settings = ", ".join(f"{name.removeprefix(PARAM)}={format_setting(row[name])}" for name in params)
        numbers = [_number(str(value).removeprefix(VALUE), row[value]) for value in values]
        style = "bold" if row["number"] in study["best"] else None
        table.add_row(str(row["number"]), *numbers, f"{row['seconds']:.0f}", settings, style=style)
    return table


def _importances(shares: dict[str, float]) -> list[RenderableType]:
    if not shares:
        return []
    table = Table(title="importance of the settings (PED-ANOVA)", title_justify="left", box=None, show_header=False)
    for name, share in shares.items():
        table.add_row(f"  {name}", f"{100 * share:.0f} %", "#" * round(BAR_CHARACTERS * share))
    return [table]


def _format_outcomes(trials: pd.DataFrame) -> Text:
    counts = trials["state"].value_counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines = [f"\n  {len(trials)} trials: {states}; {trials['seconds'].sum() / 60:.0f} minutes of worker time"]
    repeats = int((trials["repeats"] >= 0).sum())
    lines += [f"  {repeats} of them repeat a trial whose worker was killed"] if repeats else []
    failed = trials[(trials["state"] == "failed") & (trials["reason"] != "")]
    lines += [f"  trial {row['number']} failed: {row['reason']}" for row in failed.to_dict("records")]
    return Text("\n".join(lines))


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name == "segment_top1" else f"{value:,.0f}"
