"""Shows a reproduction in the terminal: which conditions of the original run still hold, and both results."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.reproduce import Check, Outcome

STYLES = {"alike": "dim", "differs": "bold yellow", "not known": "dim italic"}
LEAST_P = 0.001  # smaller values are shown as "<0.001"
SHORT = 12  # characters shown of a digest or commit, enough to be unique


def render(outcome: Outcome) -> RenderableType:
    """Return the results of both runs side by side, by cell or set, then the headline numbers and the verdict."""
    parts: list[RenderableType] = []
    if len(outcome.cells):
        parts.append(_cells(outcome.cells))
    if len(outcome.alignment):
        parts.append(_alignment(outcome.alignment))
    parts.append(_headline(outcome.headline))
    verdict = Text(f"{outcome.verdict}", style="bold green" if outcome.as_expected else "bold red")
    return Group(*parts, Text(f"weights: {outcome.weights}"), verdict)


def render_checks(run: str, checks: Sequence[Check]) -> RenderableType:
    """Return the differences between a run's record and now, one per line; what is alike shares one line per group."""
    table = _table(f"run {run[:6]}, then and now", "")
    for title in ("", "what", "then", "now", ""):
        table.add_column(title, overflow="fold")
    for group in dict.fromkeys(check.group for check in checks):
        of_group = [check for check in checks if check.group == group]
        alike = [check for check in of_group if check.says == "alike"]
        name = str(group)
        if alike:
            table.add_row(name, ", ".join(map(_format_check, alike)), "", "", Text("alike", style=STYLES["alike"]))
            name = ""
        for check in of_group:
            if check.says != "alike":
                says = Text(check.says, style=STYLES[check.says])
                table.add_row(name, check.name, _short(check.then), _short(check.now), says)
                name = ""
    return table


def _format_check(check: Check) -> str:
    return f"{check.name} {_short(check.now)}" if check.group in ("libraries", "machine") else check.name


def _short(value: str) -> str:
    is_digest = len(value) >= SHORT and set(value) <= set("0123456789abcdef")
    return value[:SHORT] if is_digest else value


def _cells(cells: pd.DataFrame) -> Table:
    caption = (
        f"top-1 in per cent; n = {cells['n'].max()} queries per condition; changed: number of answers that differ in "
        "position or in being a hit; p: McNemar's exact test, Holm's correction over all rows"
    )
    table = _table("segment-level top-1, original and reproduced", caption)
    table.add_column("condition", overflow="fold")
    for title in ("length", "original", "reproduced", "difference", "changed", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    last_cell = ""
    for row in cells.to_dict("records"):
        cell = str(row["cell"])
        shares = (f"{100 * row['old']:.1f}", f"{100 * row['new']:.1f}", f"{100 * row['difference']:+.1f}")
        title = "" if cell == last_cell else cell
        table.add_row(title, f"{row['length_s']:g} s", *shares, str(row["changed"]), _p(row["p_holm"]))
        last_cell = cell
    return table


def _alignment(sets: pd.DataFrame) -> Table:
    caption = "MSE in s2, mean over files; changed: files with another error; p: Wilcoxon's test, Holm's correction"
    table = _table("alignment, original and reproduced", caption)
    for title in ("set", "aligner"):
        table.add_column(title, overflow="fold")
    for title in ("files", "original", "reproduced", "difference", "changed", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in sets.to_dict("records"):
        errors = (f"{row['old']:.2g}", f"{row['new']:.2g}", f"{row['difference']:+.1g}")
        names = (str(row["set"]), str(row["aligner"]), str(row["n"]))
        table.add_row(*names, *errors, str(row["changed"]), _p(row["p_holm"]))
    return table


def _headline(numbers: pd.DataFrame) -> Table:
    table = _table("headline, original and reproduced", "")
    table.add_column("number", overflow="fold")
    for title in ("original", "reproduced", "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in numbers.to_dict("records"):
        table.add_row(row["name"], *(f"{row[side]:.4g}" for side in ("old", "new")), f"{row['new'] - row['old']:+.1g}")
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE, padding=(0, 1, 0, 0)
    )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= LEAST_P else f"<{LEAST_P:g}"
