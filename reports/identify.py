"""Shows in the terminal which tracks a recording contains: one line per part, with the other candidates below."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bench.catalogue.query import Answer, Match


def render(name: str, answers: Sequence[Answer]) -> RenderableType:
    """Return the table of answers for one recording."""
    known = [answer for answer in answers if answer.matches and answer.matches[0].accepted]
    known_s = sum(answer.to_s - answer.from_s for answer in known)
    whole_s = max((answer.to_s for answer in answers), default=0.0)
    table = Table(
        title=Text(f"{name}: {len(known)} of {len(answers)} parts identified, {known_s:.1f} of {whole_s:.1f} s"),
        caption=_caption(answers),
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


def _caption(answers: Sequence[Answer]) -> str:
    told = "score: mean similarity along the part; known: the score reaches the threshold"
    if any(match.verified for answer in answers for match in answer.matches):
        told += "; times with four digits are confirmed by the wave itself"
    if any(match.wave_score is not None for answer in answers for match in answer.matches):
        told += ", which alone decides where it says wave"
    if not any(answer.matches for answer in answers):
        return told
    accept = [answer.false_accept for answer in answers if answer.false_accept is not None]
    reject = [answer.false_reject for answer in answers if answer.false_reject is not None]
    if not accept or not reject:
        return f"{told}; this catalogue has no thresholds, and accepts nothing"
    excerpts = max(answer.excerpts or 0 for answer in answers)
    missed = f"{min(reject):.0%}" if min(reject) == max(reject) else f"{min(reject):.0%} to {max(reject):.0%}"
    return (
        f"{told}; false acceptance: of 10 s of music that is not in the catalogue, {max(accept):.1%} (target); false "
        f"rejection: of excerpts of these lengths with noise of 0 to 20 dB or none, {missed} (measured on "
        f"{excerpts} excerpts)"
    )


def _format_match(answer: Answer, match: Match) -> tuple[RenderableType, ...]:
    limit = "-" if answer.threshold is None else f"{answer.threshold:.3f}"
    verdict = Text("known", style="bold green") if match.accepted else Text("unknown", style="yellow")
    name = Text(match.path or match.id)  # as Text, so that brackets are not read as markup
    at = f"{match.start_s:.4f} s" if match.verified else f"{match.start_s:.2f} s"
    return verdict, name, at, f"{match.score:.3f}", limit if match.wave_score is None else "wave"
