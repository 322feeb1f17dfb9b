"""Draws figures as inline SVG for the HTML report, with matplotlib.

Figures are drawn in placeholder colours, which are then replaced by variables of the page's style sheet. One drawing
thus works in light and dark mode, its text stays text, and the same data always give the same bytes.
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

NUM_SERIES = 7  # number of colours that colour-blind readers can distinguish; further runs are grey
SERIES = tuple(f"#fe00{i:02x}" for i in range(NUM_SERIES))
INK, MUTED, RULE, PAPER, REST = "#fd0001", "#fd0002", "#fd0003", "#fd0004", "#fd0005"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
VARIABLES = {colour: f"var(--s{i})" for i, colour in enumerate(SERIES)} | {
    INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--card)", REST: "var(--rest)",
}  # fmt: skip
FONT_PX, SMALL_PX = 11.0, 10.0
LEAST = 0.7  # share of its width that a drawing keeps on a narrow page, where its box scrolls
DPI = 72  # as matplotlib's points, so that a pixel of the drawing is a pixel of the page
LABEL_GAP_PX, LABEL_MARGIN_PX, LETTER_PX = 12.0, 20, 6
MAX_LETTERS = 28  # of a name beside a point; longer names are shortened there, but not in the tables
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may contain a dollar sign
    "font.size": FONT_PX,
    "font.family": "DejaVu Sans",  # only for measuring text; the browser shows the page's font
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
    """A label at the right edge of a plot, and the point it belongs to, in data coordinates."""

    x: float
    y: float
    text: str
    colour: str


@contextmanager
def canvas(width: int, height: int, left: int = 46, right: int = 16, top: int = 26, bottom: int = 40) -> Iterator[Axes]:
    """Yield the axes of a drawing in the report's style. Units: size and margins in pixels."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
        axes = figure.add_axes(box)
        axes.grid(True)
        axes.tick_params(length=0)
        yield axes


def render_svg(axes: Axes, title: str, text: str) -> Markup:
    """Return the drawing as an SVG element, with `title` and `text` for screen readers."""
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
    """Return the width in pixels of the margin that the longest of these names needs."""
    return LABEL_MARGIN_PX + LETTER_PX * max((len(cut(name)) for name in names), default=0)


def cut(name: str) -> str:
    """Return a name shortened to fit beside a point."""
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 3]}..."


def label_ends(axes: Axes, ends: Sequence[EndLabel], leaders: bool = False) -> None:
    """Write labels at the right edge without overlap, with a thin line from the point to each label that was moved.

    With `leaders` every label has such a line. Call it when the limits of the axes are final.
    """
    if not ends:
        return
    height = axes.bbox.height
    points = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y))) for end in ends]
    # Among points at the same height, the leftmost gets the topmost label, so that the lines do not cross.
    ordered = sorted(zip(points, ends, strict=True), key=lambda each: (each[0][1], -each[0][0]))
    levels = spread([float(point[1]) * height for point, _ in ordered], LABEL_GAP_PX, height + LABEL_GAP_PX)
    for (point, end), level in zip(ordered, levels, strict=True):
        y = level / height
        if leaders or abs(y - point[1]) * height > LABEL_GAP_PX / 3:
            axes.plot(
                [point[0], 1.02], [point[1], y], transform=axes.transAxes, color=end.colour, linewidth=0.7, alpha=0.6,
                clip_on=False, zorder=1.5,
            )  # fmt: skip
        axes.text(1.03, y, cut(end.text), transform=axes.transAxes, color=end.colour, fontsize=SMALL_PX, va="center")


def spread(positions: Sequence[float], gap: float, highest: float) -> list[float]:
    """Return ascending positions close to the given ascending ones, at least a gap apart and none above the highest."""
    spaced = list(positions)
    for i in range(1, len(spaced)):  # upwards: push apart
        spaced[i] = max(spaced[i], spaced[i - 1] + gap)
    ceiling = highest
    for i in reversed(range(len(spaced))):  # downwards: below the ceiling
        spaced[i] = min(spaced[i], ceiling)
        ceiling = spaced[i] - gap
    return spaced
