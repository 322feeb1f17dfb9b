"""`bench ui` and `bench sync`: the runs of a store in MLflow."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli.options import STORE, StoreRoot


def ui(
    store: StoreRoot = STORE,
    host: Annotated[
        str, typer.Option(help="Address to listen on; keep it on loopback unless you trust the network.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port.", show_default="the first free one from 5000")] = None,
) -> None:
    """Open the MLflow UI on this store's runs, and optuna-dashboard on its sweeps."""
    from bench.logbook import serve

    serve(store, host, port)


def sync(store: StoreRoot = STORE) -> None:
    """Upload to MLflow what could not be uploaded before, because its server was down or a run was killed."""
    from bench.console import warn
    from bench.logbook import sync as upload

    outcomes = upload(store, warn)
    for key, outcome in outcomes:
        print(f"{key}  {outcome}")
    if not outcomes:
        print(f"no run in {store}")
    if any(outcome == "failed" for _, outcome in outcomes):
        raise typer.Exit(1)
