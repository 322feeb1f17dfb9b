"""Shows warnings and progress on standard error: bars on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.values import Progress

LINE_EVERY_S = 15.0  # at most one line per stage in this time, so that a log file stays short


def warn(message: str) -> None:
    """Print a warning on standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a Progress that draws bars on a terminal and prints lines elsewhere, all on standard error."""
    if not sys.stderr.isatty():
        yield _build_line_printer()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

        yield show


def _build_line_printer() -> Progress:
    shown: dict[str, float] = {}

    def show(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - shown.get(stage, -LINE_EVERY_S) >= LINE_EVERY_S:
            shown[stage] = now
            print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)

    return show
