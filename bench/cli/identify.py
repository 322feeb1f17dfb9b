"""`bench identify`: which track is in a recording."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import Format, IndexFile, ModelFile, Trust
from bench.cli.output import check_format, print_frame, print_report
from bench.cli.renamed import RenamedIndex
from bench.errors import DataError

if TYPE_CHECKING:
    from bench.catalogue.folder import Catalogue
    from bench.catalogue.query import Answer


def identify(
    recordings: Annotated[
        list[Path], typer.Argument(help="Audio files (mp3, ogg, opus, flac, wav, aiff, ...), of any sample rate.")
    ],
    catalogue: Annotated[
        Path, typer.Option("--catalogue", "-c", help="Folder of a catalogue that `bench catalogue build` has made.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Number of tracks to show per answer.")] = 5,
    window: Annotated[float, typer.Option(min=1.0, help="Seconds per answer where no track is identified.")] = 10.0,
    model: ModelFile = None,
    index_file: IndexFile = None,
    trust: Trust = False,
    format_: Format = "table",
    index: RenamedIndex = None,
) -> None:
    """Identify the tracks in recordings: which one, from when to when, and whether the answer can be trusted.

    A recording that cannot be used is reported, and the others are still answered.
    """
    check_format(format_)
    from bench.catalogue.folder import read_catalogue

    opened = read_catalogue(catalogue, model, trust=trust, index=index_file)
    answers, errors = _identify_all(opened, recordings, top, window)
    _print_answers(answers, format_)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        raise typer.Exit(DataError.exit_code)


def _identify_all(
    catalogue: Catalogue, recordings: Sequence[Path], top: int, window_s: float
) -> tuple[dict[Path, list[Answer]], list[DataError]]:
    """Return the answers for each recording, and the errors of those that cannot be used."""
    from bench.audio.decode import decode_stream
    from bench.catalogue.query import answer_parts, listen
    from bench.console import show_progress, warn

    found, errors = {}, []
    with show_progress() as progress:
        for path in recordings:
            hear = partial(listen, catalogue, name=str(path))
            try:
                recording, note = decode_stream(path, hear, progress=progress)
            except DataError as error:
                errors.append(error)
                continue
            if note:
                warn(f"{path} {note}")
            found[path] = list(answer_parts(catalogue, recording, top=top, window_s=window_s))
    return found, errors


def _print_answers(found: Mapping[Path, Sequence[Answer]], format_: str) -> None:
    if format_ == "table":
        for path, answers in found.items():
            print_report("identify", path.name, answers)
    elif found:
        import pandas as pd

        from bench.catalogue.query import to_frame

        frames = [to_frame(answers).assign(recording=str(path)) for path, answers in found.items()]
        print_frame(pd.concat(frames, ignore_index=True), format_)
