"""`bench reproduce`: repeat a finished run and report what differs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import STORE, DataRoot, ModelFile, StoreRoot, open_store
from bench.cli.output import print_table

if TYPE_CHECKING:
    from bench.reproduce import Outcome
    from bench.store import Store


def reproduce(
    run: Annotated[str, typer.Argument(help="First characters of a run's key.")],
    data_root: DataRoot = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Evaluate the run's weights again instead of training.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights file of a run that was itself started with --checkpoint.")
    ] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Continue even if data or settings differ.")] = False,
    model: ModelFile = None,
    store: StoreRoot = STORE,
) -> None:
    """Repeat a finished run and report the differences in code, libraries, machine, data and numbers.

    Exits with 0 if the numbers agree as well as can be expected, else with 1. Repeat the command to resume it.
    """
    outcome = _reproduce(open_store(store), run, data_root, keep_weights, checkpoint, anyway, model)
    if outcome is not None and not outcome.as_expected:
        raise typer.Exit(1)


def _reproduce(
    store: Store,
    run: str,
    data_root: Path | None,
    keep_weights: bool,
    checkpoint: Path | None,
    anyway: bool,
    model: str | None,
) -> Outcome | None:
    """Print the differences and return the outcome; None in all processes of torchrun but the first."""
    from bench import reproduce as steps
    from bench.console import show_progress, warn
    from bench.registry import load

    report = load("report", "reproduce")
    with show_progress() as progress:
        attempt = steps.prepare_attempt(
            store, run, data_root, progress, warn, model=model, weights=checkpoint, keep_weights=keep_weights
        )
    print_table(report.render_checks(attempt.record.run, attempt.checks))
    if not anyway:
        steps.check_reproducible(attempt)
    minutes = attempt.record.seconds / 60
    print(f"the run took {minutes:.1f} min; computing anew in {attempt.context.store.root}", flush=True)
    with show_progress() as progress:
        outcome = steps.reproduce(attempt, store, progress)
    if outcome is not None:
        print_table(report.render(outcome))
    return outcome
