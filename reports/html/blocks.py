"""What a report is made of: sections of blocks, as values. The templates say how each looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class TableCell:
    """One cell of a table. `kind` are its classes; `sort` orders it where its text does not start with its number.

    `small` stands below the text, as an interval; `title` is shown on pointing at it.
    """

    text: str
    kind: str = ""
    sort: float | None = None
    small: str = ""
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table that can be sorted and copied; the first cell of each row names it."""

    shape: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """Drawings side by side under one caption; `least_px` is the width below which they stand one below another."""

    shape: ClassVar[str] = "figure"
    title: str
    panels: Sequence[Markup]
    caption: str
    least_px: int = 380


@dataclass(frozen=True)
class Heat:
    """A table of coloured cells: rows of a name and cells."""

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
    """One number to see first, with what it is above and what it means below."""

    above: str
    number: str
    below: str


@dataclass(frozen=True)
class Cards:
    """The numbers to see first."""

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
    """Names and values, one below another; `prose`: the values are sentences."""

    shape: ClassVar[str] = "facts"
    title: str
    facts: Sequence[tuple[str, str]]
    prose: bool = False


@dataclass(frozen=True)
class Miss:
    """A query that was missed: what it was, its picture and sound as data URIs (empty: left out), and the answers."""

    shape: ClassVar[str] = "miss"
    title: str
    truth: str
    picture: str
    sound: str
    answers: Table


@dataclass(frozen=True)
class Collapsible:
    """Blocks that a click opens."""

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
    """Return a share as per cent with one digit; 100 needs none."""
    return "100" if share >= 1 else f"{100 * share:.1f}"


def format_interval(low: float | None, high: float | None) -> str:
    """Return an interval of shares in per cent: `61.8-71.5`; nothing where there is none."""
    return "" if low is None or high is None or low != low else f"{format_percent(low)}-{format_percent(high)}"
