"""Spellings of earlier versions: each is answered with today's."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import ConfigError

ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}


def index(context: typer.Context) -> None:
    """Answer `bench index` with the command that replaces it."""
    command = shlex.join(["bench", "catalogue", *context.args])
    raise ConfigError(f"`bench index` is now `bench catalogue`; run: {command}")


def _refuse_index(value: Path | None) -> None:
    if value is not None:
        option = shlex.join(["--catalogue", str(value)])
        raise ConfigError(f"`--index` of `bench identify` is now `--catalogue`; run: bench identify ... {option}")


RenamedIndex = Annotated[  # eager, so that it is answered before the missing --catalogue is
    Path | None, typer.Option("--index", "-i", hidden=True, is_eager=True, callback=_refuse_index)
]
