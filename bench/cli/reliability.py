"""`bench reliability`: how far an aligner's confidence can be believed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import STORE, Run, StoreRoot, open_store
from bench.cli.output import print_table


def reliability(
    recordings: Annotated[Path, typer.Argument(help="Folder of field recordings; random pairs are made of them.")],
    aligner: Annotated[
        str, typer.Option(help="Aligner: a name from `bench list aligner`, NAME:PRESET, or a path such as ./mine.py.")
    ] = "wave-path",
    pairs: Annotated[int, typer.Option(min=1, help="Number of random pairs.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first pair; the others follow.")] = 0,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write one row per keypoint to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the shares that are right, to this file (.png).")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of --csv and --plot that exist.")
    ] = False,
    run: Run = None,
    store: StoreRoot = STORE,
) -> None:
    """Align random pairs whose truth is known, and show how often answers of each confidence are right."""
    from bench import align_pair
    from bench.console import show_progress
    from bench.registry import load
    from bench.reliability import load_recordings, try_aligner
    from bench.store import write_text

    for path in (csv, plot):
        align_pair.check_writable(path, overwrite=overwrite)
    plugin, settings = align_pair.load_aligner(aligner)
    report = load("report", "reliability")
    with show_progress() as progress:
        embedder = None
        if plugin.NEEDS_ENCODER:
            embedder, _name = align_pair.load_pair_embedder(open_store(store), run, None, progress)
        waves = load_recordings(recordings, progress)
        trial = try_aligner(waves, plugin.build(settings), embedder, range(seed, seed + pairs), progress)
    print_table(report.render(trial))
    if csv is not None:
        write_text(csv, trial.keypoints.to_csv(index=False))
    if plot is not None:
        report.draw(trial, f"{aligner}: {pairs} random pairs, seeds from {seed}", plot)
