"""`bench list`: which encoders, data sets, indexes, aligners, reports and presets there are."""

from __future__ import annotations

from typing import Annotated

import typer


def list_plugins(
    kind: Annotated[
        str | None, typer.Argument(help="encoder, dataset, index, matcher, aligner or report; all of them if omitted.")
    ] = None,
) -> None:
    """List the available encoders, data sets, indexes, matchers, aligners, reports and presets."""
    from bench.config import presets
    from bench.errors import ConfigError
    from bench.registry import KINDS, format_unknown, names

    if kind is not None and kind not in KINDS:
        raise ConfigError(format_unknown("kind of plug-in", kind, list(KINDS)))
    for each in [kind] if kind else KINDS:
        print(f"{each + ':':10s}{', '.join(names(each))}")
    if kind is None:
        print(f"{'preset:':10s}{', '.join(presets())}")
