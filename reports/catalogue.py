"""Shows a catalogue in the terminal: its contents, its size, and the scores above which answers are accepted."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.catalogue.folder import Catalogue, Limit
from bench.score.statistics import wilson
from bench.values import RATE_HZ

MIB = 1 << 20


def render(catalogue: Catalogue) -> RenderableType:
    """Return the facts of a catalogue, what it leaves out and why, and the table of its acceptance thresholds."""
    about, vectors = catalogue.about, catalogue.database.vectors
    hours = catalogue.tracks["seconds"].sum() / 3600
    facts = {
        "tracks": f"{len(catalogue.tracks)}, {hours:.2f} h",
        "fingerprints": f"{len(vectors)} of {vectors.shape[1]} dimensions, one every "
        f"{1000 * about['hop_samples'] / RATE_HZ:.0f} ms",
        "encoder": f"{about['encoder']}, weights {about['weights_sha256'][:12]}",
        "index": f"{about['index']['name']} {about['index']['library']}".rstrip()
        + f", {catalogue.index.num_bytes / MIB:.1f} MiB in memory",
        "sign bits": "no" if catalogue.bits is None else f"{catalogue.bits.packed.nbytes / MIB:.1f} MiB",
        "on disk": f"{sum(about['sizes'].values()) / MIB:.1f} MiB in {catalogue.folder}",
    }
    reasons = [f"  left out: {path} ({reason})" for path, reason in catalogue.left_out.itertuples(index=False)]
    lines = Text("\n".join([*(f"  {name:14s}{value}" for name, value in facts.items()), *reasons]))
    if not catalogue.limits:
        return Group(lines, Text("  no thresholds: calibration needs at least two tracks"))
    table = Table(
        title="acceptance thresholds", box=SIMPLE, title_justify="left", padding=(0, 1, 0, 0), caption_justify="left",
        caption="calibrated on excerpts of the catalogue's tracks, clean and with noise at 0 to 20 dB; false accepts: "
        "of impostors, the same excerpts searched with their own track left out; false rejects: excerpts that score "
        "below the threshold or are given another track",
    )  # fmt: skip
    for column in ("segments", "threshold", "false accepts", "false rejects", "excerpts"):
        table.add_column(column, justify="right")
    for limit in catalogue.limits:
        table.add_row(
            str(limit.segments),
            f"{limit.threshold:.3f}",
            f"{limit.false_accept:.0%} (target)",
            _format_share(limit.false_reject, limit.impostors),
            str(limit.impostors),
        )
    return Group(lines, table, Text(f"  {_expected(catalogue.limits[-1])}"))


def _expected(limit: Limit) -> str:
    missed = _format_share(limit.false_reject, limit.impostors)
    return (
        f"expected of {limit.segments} segments: false acceptance {limit.false_accept:.1%} (target) of music that is "
        f"not in the catalogue; false rejection {missed} of music that is, clean or with noise (measured on "
        f"{limit.impostors} excerpts)"
    )


def _format_share(share: float, n: int) -> str:
    low, high = wilson(round(share * n), n)
    return f"{share:.1%} [{100 * low:.0f}-{100 * high:.0f}]"
