"""`bench catalogue`: build, show, query and tune a catalogue of tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    STORE,
    CatalogueFolder,
    DataRoot,
    Format,
    IndexFile,
    ModelFile,
    OtherDataset,
    Run,
    Set,
    StoreRoot,
    Trust,
    open_store,
)
from bench.cli.output import check_format, print_frame, print_next, print_report, print_table

group = typer.Typer(help="Build and query a catalogue of tracks.", no_args_is_help=True)


@group.command("build")
def build(
    folder: CatalogueFolder,
    run: Run = None,
    index: Annotated[
        str, typer.Option(help="Index: exact, falconn, another of `bench list index`, or a path such as ./myindex.py.")
    ] = "exact",
    dataset: OtherDataset = None,
    data_root: DataRoot = None,
    test_side: Annotated[
        bool, typer.Option("--test-side", help="Add only test tracks, none used in training.")
    ] = False,
    false_accepts: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of excerpts of unknown tracks that may be accepted.")
    ] = 0.01,
    with_bits: Annotated[
        bool,
        typer.Option(
            "--with-bits", help="Add 1 kB per second of music, by which answers are right to the millisecond."
        ),
    ] = False,
    model: ModelFile = None,
    store: StoreRoot = STORE,
    set_: Set = None,
) -> None:
    """Fingerprint music with a run's encoder, index it, and calibrate the scores above which answers are accepted."""
    from bench.catalogue.build import build_catalogue, catalogue_config
    from bench.console import show_progress
    from bench.device import usable_device
    from bench.runs import find_run

    finished = find_run(open_store(store), run)
    settings = catalogue_config(finished, index, dataset, model, set_ or [])
    embedder = finished.embedder(usable_device(settings.device), settings.eval.precision, model)
    with show_progress() as progress:
        made = build_catalogue(
            folder, settings, embedder, finished.weights().path, data_root, finished.store,
            model=model, test_side=test_side, false_accepts=false_accepts,
            trained_on=finished.summary.get("digests", {}).get("music", ""), with_bits=with_bits,
            progress=progress,
        )  # fmt: skip
    print_report("catalogue", made)
    files = (f" --model {model}" if model else "") + (f" --index-file {index}" if index.endswith(".py") else "")
    print_next({f"bench identify RECORDING.wav --catalogue {folder}{files}": "identify a recording"})


@group.command("info")
def info(folder: CatalogueFolder, model: ModelFile = None, index_file: IndexFile = None, trust: Trust = False) -> None:
    """Show a catalogue's contents, its size, and the scores above which answers are accepted."""
    from bench.catalogue.folder import read_catalogue

    print_report("catalogue", read_catalogue(folder, model, trust=trust, index=index_file))


@group.command("query")
def query(
    folder: CatalogueFolder,
    vectors: Annotated[Path, typer.Argument(help="Query fingerprints: a .npy file of shape (Q, D), float32.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Number of neighbours per query.")] = 20,
    format_: Format = "csv",
    model: ModelFile = None,
    index_file: IndexFile = None,
    trust: Trust = False,
) -> None:
    """Find the nearest fingerprints of each query fingerprint: track, time and similarity."""
    check_format(format_)
    from bench.catalogue.folder import read_catalogue
    from bench.catalogue.query import find_neighbours

    found = find_neighbours(read_catalogue(folder, model, trust=trust, index=index_file), vectors, top_k)
    print(found.to_string(index=False)) if format_ == "table" else print_frame(found, format_)


@group.command("tune")
def tune(
    folder: CatalogueFolder,
    recall: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of true nearest neighbours that must be found.")
    ] = 0.99,
    index: Annotated[str, typer.Option(help="Index to tune, on the catalogue's fingerprints.")] = "falconn",
    model: ModelFile = None,
    index_file: IndexFile = None,
    trust: Trust = False,
) -> None:
    """Find the fastest settings of an index that reach a given recall."""
    from bench.catalogue.folder import read_catalogue
    from bench.catalogue.tune import tune_index
    from bench.console import show_progress
    from bench.registry import load

    opened = read_catalogue(folder, model, trust=trust, index=index_file)
    with show_progress() as progress:
        trials = tune_index(opened, index, recall, progress)
    report = load("report", "tune")
    print_table(report.render(index, recall, trials))
    options = report.format_options(index, recall, trials)
    print_next({f"bench catalogue build FOLDER {options}": "a catalogue with these settings"})
