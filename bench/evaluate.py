"""Evaluation: searches the queries of every test condition in the database of all test tracks, and scores the answers.

Shape legend: Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench.data import BenchmarkData, split_tracks
from bench.degrade.cells import list_cells
from bench.degrade.queries import WaveBatches, hop_samples
from bench.fingerprint import fingerprint_tracks
from bench.score.hits import score_hits
from bench.score.rows import REAL, SYNTHETIC
from bench.search.distractors import synthetic_blocks
from bench.search.encoder_searcher import EncoderSearcher
from bench.search.repetitions import find_repeated_samples
from bench.search.searcher import Searcher
from bench.search.sign_bits import prepare_sign_bits
from bench.search.verify import verify_everywhere
from bench.settings import EvalConfig
from bench.store import Store, decisive_settings, digest, read_frame, write_frame
from bench.timing import Timer
from bench.values import RATE_HZ, Cell, Ints, Progress

FORMAT = 5  # of the hits in the store
DISTRACTORS_FORMAT = 1  # of their scores in the store
QUERY_BATCH = 32  # queries answered at once
RETIMED = ("speed", "tempo", "pitch")  # kinds whose waves no longer run along with the track's
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
    searched = decisive_settings(
        replace(config, recall_at=(), cost_queries=0, ceiling_queries=0, distractors=(), real_distractors=False)
    )  # what hits depend on
    hits, seconds = {}, {"database": searcher.seconds, "queries": 0.0}
    for i, cell in enumerate(cells):
        progress("test cells", i, len(cells))
        key = digest(FORMAT, searcher.key, data.queries.key, searched, _conditions_of(cell))

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
                compared = answers.are_candidates
                candidate = np.nan if compared is None else compared(np.roll(own_Q, shift), truth_Q[1]).astype(float)
                hits = hits.assign(length_s=length_s, index=answers.index, sequence=answers.sequence, truth=truth)
                yield hits.assign(candidate=candidate, impostor_score=answers.impostor_Q)


def _conditions_of(cell: Cell) -> dict[str, Any]:
    """Return what a cell is, for a key; a cell without a distortion has the key of before there were any."""
    return {name: value for name, value in asdict(cell).items() if name != "distortion" or value}


def score_crowds(
    searcher: EncoderSearcher, data: BenchmarkData, config: EvalConfig, store: Store, progress: Progress
) -> dict[Cell, pd.DataFrame]:
    """Return how well the best distractor matches each of the shortest queries, for every cell and number of them.

    Columns: origin, distractors (how many fingerprints they are), query, score. Synthetic ones are made of the database
    and never kept; those made of a query's own track do not count for it. Real ones, if wanted, are the tracks of the
    training side: held-out ones, which no training has heard, then the others. Then all sizes are of both, up to as
    many real ones as there are.
    Cost: an exact search of the largest size for each cell; memory that of a block, for any size.
    """
    sizes, crowds = set(config.distractors), {SYNTHETIC: searcher.database}
    if config.real_distractors:
        train, held_out = split_tracks(data.music)
        tracks, hop = np.concatenate([held_out, train]), searcher.database.hop_samples
        real = fingerprint_tracks(store, searcher.embedder, data.music, tracks, hop, progress)
        crowds[REAL] = real
        sizes |= {int(real.first_vector[len(held_out)]), len(real.vectors)}
    cells, length_s, scores = list_cells(config), min(config.lengths_s), {}
    for i, cell in enumerate(cells):
        progress("distractors", i, len(cells))
        tables = []
        for origin, crowd in crowds.items():
            reached = sorted(sizes if origin == SYNTHETIC else (size for size in sizes if size <= len(crowd.vectors)))
            of_crowd = (DISTRACTORS_FORMAT, origin, crowd.key, reached)
            key = digest(searcher.key, data.queries.key, of_crowd, length_s, _conditions_of(cell))

            def build(folder: Path, cell: Cell = cell, origin: str = origin, reached: list[int] = reached) -> None:
                waves = data.queries.batches(cell, length_s, QUERY_BATCH)
                blocks = synthetic_blocks(crowds[origin]) if origin == SYNTHETIC else [crowds[origin]]
                best_QS = searcher.score_distractors(waves, data.queries.truth(cell)[0], blocks, reached)
                table = pd.DataFrame(best_QS, columns=reached).rename_axis("query").reset_index()
                write_frame(folder / "scores.parquet", table.melt("query", var_name="distractors", value_name="score"))

            table = read_frame(store.fetch("distractors", key, build) / "scores.parquet")
            tables.append(table.astype({"distractors": np.int64}).assign(origin=origin))
        scores[cell] = pd.concat(tables, ignore_index=True)
    progress("distractors", len(cells), len(cells))
    return scores


def find_ceiling(
    data: BenchmarkData, config: EvalConfig, store: Store, progress: Progress, device: torch.device
) -> dict[Cell, pd.DataFrame]:
    """Return the hits of the matched filter, the waves compared with every place of every track.

    Cells of RETIMED have none: there it would be no ceiling, as fingerprints forgive what a wave does not.
    Of each cell it answers `eval.ceiling_queries` of the shortest queries, at equal distances among all. What it misses
    can hardly be found by a fingerprint of this audio. It is the same for all encoders and matchers: it depends on the
    music and the queries alone, and is kept in the store.
    Cost: for each query of a cell, one transform of the whole database.
    """
    tracks = data.music.numbers("test")
    bits = prepare_sign_bits(store, data.music, tracks, progress)
    length_s, num_queries = min(config.lengths_s), len(data.queries.table)
    query_Q = np.unique(np.linspace(0, num_queries - 1, min(config.ceiling_queries, num_queries)).round().astype(int))
    tolerance_samples = round(config.tolerance_ms * RATE_HZ / 1000)
    hits = {}
    for cell in (cell for cell in list_cells(config) if cell.kind not in RETIMED):
        track_Q, start_Q = (truth[query_Q] for truth in data.queries.truth(cell))
        settings = (length_s, query_Q.tolist(), config.top_k, config.tolerance_ms, config.hop_ms)
        key = digest(FORMAT, bits.key, data.queries.key, _conditions_of(cell), settings)

        def build(folder: Path, cell: Cell = cell, track_Q: Ints = track_Q, start_Q: Ints = start_Q) -> None:
            waves = WaveBatches(data.queries, cell, length_s, len(query_Q), query_Q.tolist())
            own_Q = np.searchsorted(tracks, track_Q)
            found, impostor_Q = verify_everywhere(waves, own_Q, bits, config.top_k, progress, device)
            num_samples = round(length_s * RATE_HZ)
            repetitions = partial(find_repeated_samples, data.music, tracks, found, num_samples, tolerance_samples)
            near_samples = tolerance_samples + hop_samples(config)
            table = score_hits(found, tracks, track_Q, start_Q, tolerance_samples, near_samples, repetitions)
            table = table.assign(query=query_Q, length_s=length_s, index="exact", sequence="verify", truth=UNSHUFFLED)
            write_frame(folder / "hits.parquet", table.assign(candidate=np.nan, impostor_score=impostor_Q))

        hits[cell] = read_frame(store.fetch("ceilings", key, build) / "hits.parquet")
    return hits
