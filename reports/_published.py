"""Published top-1 results, loaded from published_segments.toml and matched with the conditions tested here.

Not a report: `bench.registry` does not list modules whose names begin with an underscore.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.results import Result
from bench.values import Cell

PUBLISHED = Path(__file__).with_name("published_segments.toml")
FMA_PREFIX = "fma-"  # of benchmarks with the music that the published numbers are of
NEAR_LENGTH = 0.05  # relative difference: published queries of 1 s are shown below ours of 0.96 s


@dataclass(frozen=True)
class PublishedShare:
    """One published share of queries found, and the conditions it was measured under."""

    system: str
    metric: str

    cell: Cell | None
    """None for a mixture of conditions; its `t60_s` is None if the source does not state it."""

    length_s: float
    value: float
    data: str

    tolerance_ms: float | None
    """Largest time error of a hit; None if the time does not matter."""

    search: str
    """The sequence search: the name of one of `bench.settings.SEQUENCES` if it is one of these."""

    conditions: str
    """What else differs from the conditions tested here, such as the rooms."""

    source: str
    confidence: str

    ablation: str
    """The component that an ablation study removes; empty for other results."""

    def describe(self) -> str:
        """Return the conditions that it was measured in, for the row of a table."""
        within = () if self.tolerance_ms is None else (f"within {self.tolerance_ms:g} ms",)
        return ", ".join(("published", self.data, self.conditions, *within, f"sequence search: {self.search}"))

    @property
    def states_t60(self) -> bool:
        """Return whether it says which reverberation time it is of, if it is of one."""
        return self.cell is None or self.cell.kind == "noise" or self.cell.t60_s is not None


def load_published_segments() -> list[PublishedShare]:
    """Return every published number, in the order of the file."""
    tables = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["table"]
    return [number for table in tables for row in table["rows"] for number in _parse_numbers(table, row)]


def _parse_numbers(table: dict[str, Any], row: dict[str, Any]) -> list[PublishedShare]:
    conditions: list[tuple[Cell | None, float]] = [(None, length_s) for length_s in table.get("lengths_s", [])]
    if not conditions:
        snrs_db, t60s_s = table.get("snr_db", [None]), table.get("t60_s", [None])
        conditions = [(Cell(table["kind"], snr_db, t60_s), row["length_s"]) for snr_db in snrs_db for t60_s in t60s_s]
    return [
        PublishedShare(
            system=row["system"],
            metric=table["metric"],
            cell=cell,
            length_s=length_s,
            value=round(percent / 100, 6),
            data=table["data"],
            tolerance_ms=table.get("tolerance_ms"),
            search=row.get("search", table["search"]),
            conditions=table["conditions"],
            source=table["source"],
            confidence=table["confidence"],
            ablation=table.get("ablation", ""),
        )
        for (cell, length_s), percent in zip(conditions, row["value"], strict=True)
    ]


def select_published(results: Sequence[Result]) -> list[PublishedShare]:
    """Return the published numbers to show with these runs: none unless their music is FMA, as that of papers is."""
    return load_published_segments() if results[0].summary["benchmark"].startswith(FMA_PREFIX) else []


def select_length(numbers: Iterable[PublishedShare], length_s: float) -> list[PublishedShare]:
    """Return the numbers whose queries have about this length; `group_name` tells apart those of another one."""
    return [number for number in numbers if abs(number.length_s / length_s - 1) < NEAR_LENGTH]


def group_name(number: PublishedShare) -> str:
    """Return the heading that a published number may stand under: its own length, and that its t60 is not stated."""
    return f"{number.length_s:g} s" + ("" if number.states_t60 else ", t60 not stated")


def matches_cell(published: Cell | None, tested: Cell) -> bool:
    """Return whether a published condition is the tested one; an unstated t60 matches any.

    Published reverberation is of measured rooms; it stands beside ours of simulated and of measured ones.
    """
    if published is None:
        return False
    kind = "reverb" if tested.kind == "measured_reverb" else tested.kind
    same_noise = (published.kind, published.snr_db) == (kind, tested.snr_db)
    return same_noise and published.t60_s in (None, tested.t60_s)
