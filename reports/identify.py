"""Shows in the terminal which tracks a recording contains: one line per window, with the other candidates below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bench.catalogue.query import Answer, Match


def render(name: str, answers: Sequence[Answer]) -> RenderableType:
    """Return the table of answers for one recording."""
    accepted = sum(bool(answer.matches) and answer.matches[0].accepted for answer in answers)
    table = Table(
        title=Text(f"{name}: {accepted} of {len(answers)} windows identified"),
        caption="score: mean similarity along the window; known: the score reaches the threshold, which few tracks "
        "outside the catalogue do (`bench catalogue info`)",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for column, justify in (("from", "right"), ("to", "right"), ("", "left"), ("track", "left"), ("at", "right"),
                            ("score", "right"), ("threshold", "right")):  # fmt: skip
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for answer in answers:
        span = (f"{answer.from_s:.1f} s", f"{answer.to_s:.1f} s")
        if not answer.matches:
            table.add_row(*span, "-", answer.why, "", "", "")
        for rank, match in enumerate(answer.matches):
            table.add_row(
                *(span if rank == 0 else ("", "")), *_format_match(answer, match), style="" if rank == 0 else "dim"
            )
    return table


def _format_match(answer: Answer, match: Match) -> tuple[RenderableType, ...]:
    limit = "-" if answer.threshold is None else f"{answer.threshold:.3f}"
    verdict = Text("known", style="bold green") if match.accepted else Text("unknown", style="yellow")
    name = Text(match.path or match.id)  # as Text, so that brackets are not read as markup
    return verdict, name, f"{match.start_s:.2f} s", f"{match.score:.3f}", limit
