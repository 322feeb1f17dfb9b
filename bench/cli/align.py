"""`bench align`: the offset and the clock drift between two recordings."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import STORE, ModelFile, Run, StoreRoot, open_store
from bench.cli.output import print_table

if TYPE_CHECKING:
    from bench.align_pair import Alignment
    from bench.store import Store


def align(
    recordings: Annotated[
        list[Path], typer.Argument(help="Two recordings of the same scene, or one file with two channels.")
    ],
    run: Run = None,
    aligner: Annotated[
        str, typer.Option(help="Aligner: a name from `bench list aligner`, NAME:PRESET, or a path such as ./mine.py.")
    ] = "wave-path",
    max_lag: Annotated[
        float,
        typer.Option(
            min=0.1, help="Largest lag, in seconds, that fingerprints are searched for; wave-path searches all lags."
        ),
    ] = 5.0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write one row per second to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the lag over the similarity matrix, to this file (.png).")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Write the second recording on the clock of the first, to this file (.wav or .flac)."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of --csv, --plot and --write that exist.")
    ] = False,
    model: ModelFile = None,
    store: StoreRoot = STORE,
) -> None:
    """Estimate the offset and the drift between two recorders, and put one recording on the other's clock."""
    from bench.align_pair import check_writable
    from bench.errors import ConfigError
    from bench.registry import load

    if len(recordings) > 2:
        raise ConfigError(f"give two recordings, or one with two channels; got {len(recordings)}")
    for path in (csv, plot, write):
        check_writable(path, recordings, overwrite=overwrite)
    found, embedder_name = _align(open_store(store), recordings, run, aligner, max_lag, model, csv, plot, write)
    print_table(load("report", "lag-path").render(found))
    print(f"by {aligner}, fingerprints of {embedder_name}")
    _warn_if_doubtful(found, max_lag)


def _align(
    store: Store,
    recordings: list[Path],
    run: str | None,
    aligner: str,
    max_lag_s: float,
    model: str | None,
    csv: Path | None,
    plot: Path | None,
    write: Path | None,
) -> tuple[Alignment, str]:
    """Align the recordings, write the files that are wanted; return the alignment and the name of the encoder."""
    from bench import align_pair
    from bench.align.pairs import open_pair
    from bench.console import show_progress, warn
    from bench.registry import load
    from bench.store import write_text

    plugin, settings = align_pair.load_aligner(aligner)
    report = load("report", "lag-path")
    in_two_files = len(recordings) > 1
    with show_progress() as progress, TemporaryDirectory() as scratch:
        embedder, embedder_name = align_pair.load_pair_embedder(store, run, model, progress)
        source = (recordings[0], recordings[1]) if in_two_files else recordings[0]
        pair = open_pair(source, Path(scratch), max_lag_s)
        for note in pair.notes:
            warn(note)
        found = align_pair.align_one(pair, plugin.build(settings), embedder, progress)
        if csv is not None:
            write_text(csv, found.keypoints().to_csv(index=False))
        if plot is not None:
            report.draw(found, align_pair.similarity_matrix(pair, embedder), plot)
        if write is not None:
            align_pair.write_aligned(found, recordings[-1], None if in_two_files else [1], write, progress)
    return found, embedder_name


def _warn_if_doubtful(found: Alignment, max_lag_s: float) -> None:
    from bench.console import warn

    if found.is_doubtful:
        warn(
            f"the confidence is only {found.confidence:.2f}: the recordings may share no sound, or their clocks may "
            "drift faster than clocks do; do not rely on these numbers"
        )
