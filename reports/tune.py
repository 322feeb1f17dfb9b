"""Shows the tuning trials of an index in the terminal: recall, time and memory of each setting, the best in bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.table import Table

from bench.catalogue.tune import Trial, best_trial

MIB = 1 << 20


def render(index: str, recall: float, trials: Sequence[Trial]) -> RenderableType:
    """Return the table of trials, with a column for each setting that varies."""
    chosen = best_trial(trials, recall)
    names = _find_varied(trials)
    table = Table(
        title=f"{index}: {len(trials)} trials for a recall of {recall:g}",
        caption="recall: share of degraded fingerprints whose true nearest neighbour is ranked first; ms: per query, "
        "in batches on all cores; bold: the fastest that reaches the recall"
        + ("" if chosen else f"; none reached {recall:g}"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for column in (*names, "recall", "ms", "MiB"):
        table.add_column(column, justify="right")
    for trial in trials:
        settings = [f"{asdict(trial.config)[name]}" for name in names]
        numbers = (f"{trial.recall:.4f}", f"{trial.batch_ms:.3f}", f"{trial.num_bytes / MIB:.0f}")
        table.add_row(*settings, *numbers, style="bold" if trial is chosen else "")
    return table


def format_options(index: str, recall: float, trials: Sequence[Trial]) -> str:
    """Return command-line options for a catalogue with the best settings, or the highest recall if none reached it."""
    chosen = best_trial(trials, recall) or max(trials, key=lambda trial: trial.recall)
    values = asdict(chosen.config)
    changed = [f"--set index.{index}.{name}={values[name]}" for name in _find_varied(trials)]
    return " ".join([f"--index {index}", *changed])


def _find_varied(trials: Sequence[Trial]) -> list[str]:
    rows = [asdict(trial.config) for trial in trials]
    return [name for name in rows[0] if len({str(row[name]) for row in rows}) > 1]
