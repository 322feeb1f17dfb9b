"""Figures as inline SVG: drawn by matplotlib in stand-in colours, which become variables of the page's style sheet.

So one drawing follows light and dark, its text stays text, and the same data always give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.store import digest

NUM_SERIES = 7  # colours that stay apart for colour-blind readers; further runs are drawn in grey
SERIES = tuple(f"#fe00{i:02x}" for i in range(NUM_SERIES))
INK, MUTED, RULE, PAPER, REST = "#fd0001", "#fd0002", "#fd0003", "#fd0004", "#fd0005"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VARIABLES = {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)} | {
    INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)", REST: "var(--rest)",
}  # fmt: skip
FONT_PX, SMALL_PX = 11.0, 10.0
LEAST = 0.7  # of its width that a drawing keeps on a narrow page; then its box scrolls
DPI = 72  # matplotlib's points, so that a pixel of the drawing is a pixel of the page
LABEL_GAP_PX, LABEL_MARGIN_PX, LETTER_PX = 12.0, 20, 6
MOST_LETTERS = 28  # of a name beside a point; a longer one is cut, and whole in the tables
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold a dollar
    "font.size": FONT_PX,
    "font.family": "DejaVu Sans",  # for measuring only; the page's own font is used
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": SMALL_PX,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": FONT_PX,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL_PX,
    "ytick.labelsize": SMALL_PX,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}
CLEANUPS = (
    (re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", re.S), ""),
    (re.compile(r'<g id="[^"]*"'), "<g"),
    (re.compile(r"xlink:href"), "href"),
    (re.compile(r"font: ?(?:\w+ )?([0-9.]+)px[^;\"]*"), r"font-size:\1px"),
    (re.compile(r"\n\s*"), "\n"),
)


@dataclass(frozen=True)
class EndLabel:
    """What is written at the right edge beside a point, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


@contextmanager
def canvas(width: int, height: int, left: int = 46, right: int = 16, top: int = 26, bottom: int = 40) -> Iterator[Axes]:
    """Give axes in a drawing of so many pixels, with margins of so many, in the report's style."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        axes = figure.add_axes(box)
        axes.grid(True)
        axes.tick_params(length=0)
        yield axes


def render_svg(axes: Axes, title: str, text: str) -> Markup:
    """Return the drawing as an SVG element with a title and a description for those who do not see it."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    name = f"f{digest(title, text)}"
    out = StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    drawing = out.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for pattern, new in CLEANUPS:
        drawing = pattern.sub(new, drawing)
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(colour, variable)
    width, height = (round(inches * DPI) for inches in figure.get_size_inches())
    head = (
        f'<svg class="fig" viewBox="0 0 {width} {height}" width="{width}" style="min-width:{round(LEAST * width)}px" '
        'role="img" '
        f'aria-labelledby="{name}t {name}d"><title id="{name}t">{escape(title)}</title>'
        f'<desc id="{name}d">{escape(text)}</desc>'
    )
    return Markup(head + drawing[drawing.index(">") + 1 :])  # names are escaped by matplotlib and here


def label_width(names: Iterable[str]) -> int:
    """Return the pixels to leave at the right edge for the longest of these names."""
    return LABEL_MARGIN_PX + LETTER_PX * max((len(cut(name)) for name in names), default=0)


def cut(name: str) -> str:
    """Return a name that is short enough to stand beside a point."""
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 3]}..."


def label_ends(axes: Axes, ends: Sequence[EndLabel], leaders: bool = False) -> None:
    """Write labels at the right edge, apart from each other, with a thin line from each point if wanted.

    Call it when the limits of the axes are final.
    """
    if not ends:
        return
    height = axes.bbox.height
    places = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y))) for end in ends]
    # Of points at one height the leftmost gets the topmost label, so that no line to a label crosses another.
    ordered = sorted(zip(places, ends, strict=True), key=lambda each: (each[0][1], -each[0][0]))
    levels = spread([float(place[1]) * height for place, _ in ordered], LABEL_GAP_PX, height + LABEL_GAP_PX)
    for (place, end), level in zip(ordered, levels, strict=True):
        y = level / height
        if leaders or abs(y - place[1]) * height > LABEL_GAP_PX / 3:
            axes.plot(
                [place[0], 1.02], [place[1], y], transform=axes.transAxes, color=end.colour, linewidth=0.7, alpha=0.6,
                clip_on=False, zorder=1.5,
            )  # fmt: skip
        axes.text(1.03, y, cut(end.text), transform=axes.transAxes, color=end.colour, fontsize=SMALL_PX, va="center")


def spread(wanted: Sequence[float], gap: float, highest: float) -> list[float]:
    """Return places near the wanted ones, which ascend: at least a gap apart, none above the highest."""
    placed = list(wanted)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    ceiling = highest
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed
