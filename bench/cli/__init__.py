"""The command line: one module per group of commands, and `main`, which turns errors into exit codes.

Heavy libraries are imported inside the commands, so that help is instant.
"""

from __future__ import annotations

import io
import os
import signal
import sys

import typer

from bench.cli import (
    align,
    catalogue,
    data,
    doctor,
    identify,
    plugins,
    reliability,
    renamed,
    reproduce,
    results,
    run,
    speed,
    sweep,
    tracking,
)
from bench.errors import BenchError
from bench.machine import spin_briefly

INTERRUPTED = 130

app = typer.Typer(
    help="Train, evaluate and track audio-fingerprint models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("list")(plugins.list_plugins)
app.command("results")(results.results)
app.command("compare")(results.compare)
app.command("report")(results.report)
app.command("reproduce")(reproduce.reproduce)
app.command("identify")(identify.identify)
app.command("align")(align.align)
app.command("reliability")(reliability.reliability)
app.command("ui")(tracking.ui)
app.command("sync")(tracking.sync)
app.command("doctor")(doctor.doctor)
app.add_typer(data.group, name="data")
app.add_typer(speed.group, name="speed")
app.add_typer(catalogue.group, name="catalogue")
app.add_typer(sweep.group, name="sweep")
app.command("index", hidden=True, add_help_option=False, context_settings=renamed.ANY_ARGUMENTS)(renamed.index)


def main() -> None:
    """Run the command line; errors meant for the user are one sentence and an exit code, never a traceback."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a file may be of any bytes
            stream.reconfigure(errors="backslashreplace")
    spin_briefly()
    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"error: {error}; what was computed is kept, repeat the command to resume", file=sys.stderr)
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:  # typer's answer to Ctrl-C
            print("\ninterrupted; repeat the command to resume", file=sys.stderr)
        raise
