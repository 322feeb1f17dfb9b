"""What several commands print: tables, rows as CSV or JSON, and suggestions of what to do next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from bench.results import Result

FORMATS = ("table", "csv", "json")


def check_format(format_: str) -> None:
    """Raise ConfigError unless this is a format that can be printed."""
    from bench.settings import require

    require(format_ in FORMATS, f"--format must be one of {', '.join(FORMATS)}", repr(format_))


def print_report(report: str, *values: Any) -> None:
    """Print what a report makes of some values."""
    from bench.registry import load

    print_table(load("report", report).render(*values))


def print_table(table: Any) -> None:
    """Print anything that rich can draw, to the width of the terminal."""
    from rich.console import Console

    Console().print(table)


def print_frame(frame: pd.DataFrame, format_: str) -> None:
    """Print rows as CSV or JSON."""
    print(frame.to_csv(index=False).rstrip() if format_ == "csv" else frame.to_json(orient="records", indent=1))


def print_result(result: Result, format_: str = "table", sequence: str | None = None) -> None:
    """Print the result of a run; `sequence` names the sequence search of its table."""
    from bench.settings import require

    if sequence is not None:
        require(format_ == "table", "--sequence is for --format table: csv and json hold all searches", repr(format_))
        check_sequence(sequence, result.rows)
    if format_ == "table":
        if len(result.rows):
            print_report("grid", result, sequence)
        if len(result.alignment):
            print_report("alignment", result.alignment)
    else:
        _print_rows(result, format_)


def check_sequence(sequence: str, rows: pd.DataFrame) -> None:
    """Raise ConfigError unless rows of this sequence search are among a run's."""
    from bench.errors import ConfigError
    from bench.registry import format_unknown

    if rows.empty:
        raise ConfigError("--sequence selects a search of queries, but this run only aligned recordings; omit it")
    known = sorted(rows["sequence"].unique())
    if sequence not in known:
        raise ConfigError(format_unknown("sequence search of this run", sequence, known))


def print_next(commands: dict[str, str]) -> None:
    """Print the commands that a user may want next, each with what it is for."""
    width = max(map(len, commands))
    print("\nNext:", *(f"  {command:{width}s}   {why}" for command, why in commands.items()), sep="\n")


def _print_rows(result: Result, format_: str) -> None:
    from bench.align.evaluate import summarise_sets
    from bench.score.rows import to_records

    if not len(result.rows):
        print_frame(summarise_sets(result.alignment), format_)
    elif format_ == "json":
        print(json.dumps(to_records(result.rows), indent=1))
    else:
        print_frame(result.rows, format_)
