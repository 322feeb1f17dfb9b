"""A catalogue for the terminal: what it holds, what it takes, from which score on it is believed."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.catalogue.folder import Catalogue
from bench.values import RATE_HZ

MIB = 1 << 20


def render(catalogue: Catalogue) -> RenderableType:
    """Return the facts of a catalogue and the table of its thresholds."""
    about, vectors = catalogue.about, catalogue.database.vectors
    hours = catalogue.tracks["seconds"].sum() / 3600
    facts = {
        "tracks": f"{len(catalogue.tracks)}, {hours:.2f} h",
        "fingerprints": f"{len(vectors)} of {vectors.shape[1]} numbers, one every "
        f"{1000 * about['hop_samples'] / RATE_HZ:.0f} ms",
        "encoder": f"{about['encoder']}, weights {about['weights_sha256'][:12]}",
        "index": f"{about['index']['name']} {about['index']['library']}".rstrip()
        + f", {catalogue.index.num_bytes / MIB:.1f} MiB in memory",
        "on disk": f"{sum(about['sizes'].values()) / MIB:.1f} MiB in {catalogue.folder}",
    }
    lines = Text("\n".join(f"  {name:14s}{value}" for name, value in facts.items()))
    if not catalogue.limits:
        return Group(lines, Text("  no thresholds: two tracks at least are needed to know what a stranger scores"))
    table = Table(
        title="accepted from", box=SIMPLE, title_justify="left", padding=(0, 1, 0, 0), caption_justify="left",
        caption="measured on excerpts of its own tracks, clean and with noise of 0 to 20 dB; strangers: the same "
        "excerpts without their track",
    )  # fmt: skip
    for column in ("segments", "score", "strangers accepted", "known ones rejected", "excerpts"):
        table.add_column(column, justify="right")
    for limit in catalogue.limits:
        table.add_row(
            str(limit.segments),
            f"{limit.threshold:.3f}",
            f"{limit.false_accept:.0%} (set)",
            f"{limit.false_reject:.1%}",
            str(limit.impostors),
        )
    return Group(lines, table)
