"""The parts of the HTML report as values: sections of blocks such as tables and figures. The templates render them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class TableCell:
    """One cell of a table. `kind` holds its CSS classes; `sort` is its sort key, if its text does not start with it.

    `small` is shown below the text, such as an interval; `title` is the tooltip.
    """

    text: str
    kind: str = ""
    sort: float | None = None
    small: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and copied; the first cell of a row is its header."""

    shape: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """Drawings side by side under one caption; panels that would be narrower than `least_px` are stacked instead."""

    shape: ClassVar[str] = "figure"
    title: str
    panels: Sequence[Markup]
    caption: str
    least_px: int = 380


@dataclass(frozen=True)
class Heat:
    """A heat map: a table of coloured cells. Each row is a name and its cells."""

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[TableCell]]]


@dataclass(frozen=True)
class Heats:
    """Heat maps of one run, side by side."""

    shape: ClassVar[str] = "heats"
    title: str
    maps: Sequence[Heat]
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """One key number: its name above it, an explanation below it."""

    above: str
    number: str
    below: str


@dataclass(frozen=True)
class Cards:
    """The key numbers, at the top of a section."""

    shape: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Text:
    """A paragraph; `kind` is empty, `lead` or `warning`."""

    shape: ClassVar[str] = "text"
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Facts:
    """Names and values, one pair per line; `prose`: the values are sentences."""

    shape: ClassVar[str] = "facts"
    title: str
    facts: Sequence[tuple[str, str]]
    prose: bool = False


@dataclass(frozen=True)
class Miss:
    """A missed query: its true track and time, its spectrogram and sound as data URIs (or empty), and the answers."""

    shape: ClassVar[str] = "miss"
    title: str
    truth: str
    spectrogram: str
    sound: str
    answers: Table


@dataclass(frozen=True)
class Collapsible:
    """Blocks that are hidden until a click opens them."""

    shape: ClassVar[str] = "hidden"
    title: str
    blocks: Sequence[Block]


Block = Table | Figure | Heats | Cards | Text | Facts | Miss | Collapsible


@dataclass(frozen=True)
class Section:
    """A part of the report with an entry in its table of contents; `under` is the part it belongs to, if any."""

    key: str
    title: str
    blocks: Sequence[Block]
    under: str = ""


def format_percent(share: float) -> str:
    """Return a share in per cent with one decimal; 100 has none."""
    return "100" if share >= 1 else f"{100 * share:.1f}"


def format_interval(low: float | None, high: float | None) -> str:
    """Return an interval of shares in per cent, such as `61.8-71.5`; empty if it is unknown."""
    return "" if low is None or high is None or low != low else f"{format_percent(low)}-{format_percent(high)}"
