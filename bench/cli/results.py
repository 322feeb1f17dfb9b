"""`bench results`, `bench compare` and `bench report`: the numbers of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import STORE, Format, RunArgument, StoreRoot, open_store
from bench.cli.output import check_format, check_sequence, print_frame, print_result, print_table

if TYPE_CHECKING:
    from bench.runs import FinishedRun


def results(
    run: RunArgument = None,
    sequence: Annotated[
        str | None,
        typer.Option(help="Sequence search to show in the table: one of eval.sequences.", show_default="rescore"),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Split top-1 by this: noise, the category of each query's noise.")
    ] = None,
    format_: Format = "table",
    store: StoreRoot = STORE,
) -> None:
    """Show the results of a finished run as a table, CSV or JSON.

    CSV and JSON hold the rows of all sequence searches, in the published schema; with --by, a table of their own.
    """
    check_format(format_)
    from bench.runs import find_run
    from bench.settings import require

    require(by in (None, "noise"), "--by must be noise", repr(by))
    finished = find_run(open_store(store), run)
    if by is None:
        print_result(finished.load_result(), format_, sequence)
    else:
        _print_by_noise(finished, format_, sequence)


def _print_by_noise(finished: FinishedRun, format_: str, sequence: str | None) -> None:
    from bench.degrade.noise_categories import read_noise_categories
    from bench.errors import ConfigError
    from bench.registry import load
    from bench.settings import require

    result, report = finished.load_result(), load("report", "noise")
    if result.hits.empty:
        raise ConfigError("--by noise splits queries, but this run only aligned recordings; name another run")
    if sequence is not None:
        require(format_ == "table", "--sequence is for --format table: csv and json hold all searches", repr(format_))
        check_sequence(sequence, result.rows)
    categories = read_noise_categories(
        finished.store, str(result.rows["queries"].iloc[0]), str(result.summary["digests"]["noise"])
    )
    if format_ == "table":
        print_table(report.render(result, categories, sequence))
    else:
        print_frame(report.tabulate(result, categories), format_)


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="First characters of runs' keys; the first run is the baseline of the others.")
    ],
    sequence: Annotated[
        str | None,
        typer.Option(
            help="Sequence search of the runs' numbers: one of eval.sequences, such as the vote of Singh et al.",
            show_default="rescore",
        ),
    ] = None,
    format_: Format = "table",
    store: StoreRoot = STORE,
) -> None:
    """Show the papers' tables for runs, beside published numbers, with paired differences from the first run."""
    check_format(format_)
    from bench.registry import load
    from bench.runs import find_run

    report, paper, where = load("report", "compare"), load("report", "paper"), open_store(store)
    finished = [find_run(where, run) for run in runs]
    found = [paper.with_settings(each.load_result(), each.settings) for each in finished]
    found = [paper.with_sequence(each, sequence) for each in found] if sequence else found
    if format_ == "table":
        print_table(report.render(*found))
    else:
        print_frame(report.compare(found), format_)


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="First characters of runs' keys; all finished runs and sweeps if omitted."),
    ] = None,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    without_audio: Annotated[
        bool, typer.Option("--without-audio", help="Leave out sound and spectrograms, for a report to be published.")
    ] = False,
    store: StoreRoot = STORE,
) -> None:
    """Write runs and sweeps to one HTML file that works offline: tables, curves, costs, failures, provenance."""
    from bench.errors import ConfigError
    from bench.registry import load
    from bench.store import write_text

    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ConfigError(f"--out must name a file in a folder that exists, got {out}")
    write_text(out, load("report", "html").render(open_store(store), runs or (), audio=not without_audio))
    print(f"written to {out}, {out.stat().st_size / 1e6:.1f} MB")
