"""Evaluation: searches the queries of every test condition in the database of all test tracks, and scores the answers.

Shape legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.degrade.queries import hop_samples
from bench.score.hits import score_hits
from bench.search.searcher import Searcher
from bench.settings import EvalConfig
from bench.store import Store, decisive_settings, digest, read_frame, write_frame
from bench.timing import Timer
from bench.values import RATE_HZ, Cell, Progress

FORMAT = 4  # of the hits in the store
QUERY_BATCH = 32  # queries answered at once
UNSHUFFLED, SHUFFLED = "own", "shuffled"
# The control of shuffled labels compares each answer with the truth of the previous query.
SHIFTS = {UNSHUFFLED: 0, SHUFFLED: 1}


@dataclass(frozen=True)
class Evaluation:
    """The hits of every cell."""

    hits: dict[Cell, pd.DataFrame]

    searcher: Searcher
    """What was searched."""

    seconds: dict[str, float]
    """How long the database and the queries took."""


def evaluate(
    searcher: Searcher, data: BenchmarkData, config: EvalConfig, store: Store, progress: Progress
) -> Evaluation:
    """Return the hits of every cell of the grid, query length, index and sequence search.

    The store keeps each cell separately: a killed process loses only the cell in progress.
    """
    cells = list_cells(config)
    searched = decisive_settings(replace(config, recall_at=(), cost_queries=0))  # what hits depend on
    hits, seconds = {}, {"database": searcher.seconds, "queries": 0.0}
    for i, cell in enumerate(cells):
        progress("test cells", i, len(cells))
        key = digest(FORMAT, searcher.key, data.queries.key, searched, asdict(cell))

        def build(folder: Path, cell: Cell = cell) -> None:
            tables = _hits_of(cell, searcher, data, config, store.timed)
            write_frame(folder / "hits.parquet", pd.concat(tables, ignore_index=True))

        hits[cell] = read_frame(store.fetch("hits", key, build) / "hits.parquet")
        seconds["queries"] += store.seconds("hits", key)
    progress("test cells", len(cells), len(cells))
    return Evaluation(hits, searcher, seconds)


def _hits_of(
    cell: Cell, searcher: Searcher, data: BenchmarkData, config: EvalConfig, timed: Timer
) -> Iterator[pd.DataFrame]:
    """Yield the hits of one cell, one table for each query length, index, sequence search and set of labels."""
    track_Q, start_Q = data.queries.truth(cell)
    own_Q = np.searchsorted(searcher.tracks, track_Q)
    tolerance_samples = round(config.tolerance_ms * RATE_HZ / 1000)
    near_samples = tolerance_samples + hop_samples(config)
    for length_s in config.lengths_s:
        waves = data.queries.batches(cell, length_s, QUERY_BATCH)
        for answers in searcher.search(waves, own_Q):
            for truth, shift in SHIFTS.items() if cell.kind == "clean" else [(UNSHUFFLED, 0)]:
                truth_Q = (np.roll(track_Q, shift), np.roll(start_Q, shift))
                with timed("score"):
                    hits = score_hits(
                        answers.found,
                        searcher.tracks,
                        *truth_Q,
                        tolerance_samples,
                        near_samples,
                        answers.find_repetitions,
                    )
                hits = hits.assign(length_s=length_s, index=answers.index, sequence=answers.sequence, truth=truth)
                yield hits.assign(impostor_score=answers.impostor_Q)
