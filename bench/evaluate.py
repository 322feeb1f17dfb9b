"""Evaluation: searches the queries of every test condition in the database of all test tracks, and scores the answers.

Shape legend: Q queries, M segments of a query, D dimensions, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench import registry
from bench.config import format_plugin_name
from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.degrade.queries import hop_samples
from bench.fingerprint import Embedder, fingerprint_queries, fingerprint_tracks
from bench.score.hits import score_hits
from bench.search.cached import build_or_load
from bench.search.contract import Index
from bench.search.diagonal import Scan, Wanted, scan
from bench.search.neighbours import MARGIN, neighbours_of, shares_product
from bench.search.sequence import Ranking, interpolate, rescore, vote
from bench.settings import EvalConfig
from bench.store import Store, digest, read_frame, write_frame
from bench.timing import Timer
from bench.values import RATE_HZ, Cell, Fingerprints, Floats, Ints, Progress

FORMAT = 3  # of the hits in the store
QUERY_BATCH = 32  # queries embedded at once
UNSHUFFLED, SHUFFLED = "own", "shuffled"
# The control of shuffled labels compares each answer with the truth of the previous query.
SHIFTS = {UNSHUFFLED: 0, SHUFFLED: 1}


@dataclass(frozen=True)
class Evaluation:
    """The hits of every cell."""

    hits: dict[Cell, pd.DataFrame]

    database: Fingerprints
    """The fingerprints that were searched."""

    seconds: dict[str, float]
    """How long the database and the queries took."""


def evaluate(
    embedder: Embedder,
    data: BenchmarkData,
    config: EvalConfig,
    store: Store,
    progress: Progress,
    indexes: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Return the hits of every cell of the grid, query length, index and sequence search.

    `indexes` maps the name of an index (`format_plugin_name`) to its Config; a missing index has its defaults.
    The store keeps each cell separately: a killed process loses only the cell in progress.
    """
    hop = hop_samples(config)
    database = fingerprint_tracks(store, embedder, data.music, data.music.numbers("test"), hop, progress)
    plugins = {format_plugin_name(name): registry.load("index", name.partition(":")[0]) for name in config.indexes}
    settings = {name: (indexes or {}).get(name) or plugin.Config() for name, plugin in plugins.items()}
    index_keys = [(name, registry.source_digest(plugins[name]), asdict(settings[name])) for name in plugins]
    index_of = _builder(store, plugins, settings, database)
    cells = list_cells(config)
    hits, seconds = {}, {"database": store.seconds("fingerprints", database.key), "queries": 0.0}
    for i, cell in enumerate(cells):
        progress("test cells", i, len(cells))
        key = digest(FORMAT, database.key, data.queries.key, asdict(config), asdict(cell), index_keys)

        def build(folder: Path, cell: Cell = cell) -> None:
            tables = _hits_of(cell, embedder, data, config, database, index_of, store.timed)
            write_frame(folder / "hits.parquet", pd.concat(tables, ignore_index=True))

        hits[cell] = read_frame(store.fetch("hits", key, build) / "hits.parquet")
        seconds["queries"] += store.seconds("hits", key)
    progress("test cells", len(cells), len(cells))
    return Evaluation(hits, database, seconds)


def _builder(
    store: Store, plugins: Mapping[str, ModuleType], settings: Mapping[str, Any], database: Fingerprints
) -> Callable[[str], Index]:
    """Return a function that builds or loads an index by name, each at most once."""

    @cache
    def index_of(name: str) -> Index:
        return build_or_load(store, plugins[name], settings[name], database.vectors, database.key)

    return index_of


def _hits_of(
    cell: Cell,
    embedder: Embedder,
    data: BenchmarkData,
    config: EvalConfig,
    database: Fingerprints,
    index_of: Callable[[str], Index],
    timed: Timer,
) -> Iterator[pd.DataFrame]:
    """Yield the hits of one cell, one table for each query length, index, sequence search and set of labels."""
    track_Q, start_Q = data.queries.truth(cell)
    own_Q = np.searchsorted(database.tracks, track_Q)
    tolerance_samples = round(config.tolerance_ms * RATE_HZ / 1000)
    for length_s in config.lengths_s:
        with timed("mix and embed"):
            waves = data.queries.batches(cell, length_s, QUERY_BATCH)
            vectors_QMD = fingerprint_queries(embedder, waves, database.hop_samples)
        with timed("scan"):
            found = _scan(vectors_QMD, database, config, own_Q, index_of, embedder.device)
        impostor_Q = found.rankings[0].scores_QR[:, 0]
        for index, sequence, ranking in _rankings(vectors_QMD, database, config, index_of, found, timed):
            for truth, shift in SHIFTS.items() if cell.kind == "clean" else [(UNSHUFFLED, 0)]:
                truth_Q = (np.roll(track_Q, shift), np.roll(start_Q, shift))
                with timed("score"):
                    hits = score_hits(ranking, database, *truth_Q, tolerance_samples, vectors_QMD.shape[1])
                hits = hits.assign(length_s=length_s, index=index, sequence=sequence, truth=truth)
                # Votes are not similarities, so that an impostor's score cannot be compared with them.
                yield hits.assign(impostor_score=np.float32(np.nan) if sequence == "vote" else impostor_Q)


def _scan(
    vectors_QMD: Floats,
    database: Fingerprints,
    config: EvalConfig,
    own_Q: Ints,
    index_of: Callable[[str], Index],
    device: torch.device,
) -> Scan:
    """Return the impostors, the best places outside each query's own track, and what comes from the same products.

    These are the places of `diagonal`, the second ranking, and candidates for the indexes that share the product.
    """
    searches = [Wanted(1, own_Q)]
    if "diagonal" in config.sequences:
        searches.append(Wanted(config.top_k))
    shares = any(shares_product(index_of(name)) for name in map(format_plugin_name, config.indexes))
    return scan(vectors_QMD, database, searches, config.top_k + MARGIN if shares else 0, device)


def _rankings(
    vectors_QMD: Floats,
    database: Fingerprints,
    config: EvalConfig,
    index_of: Callable[[str], Index],
    found: Scan,
    timed: Timer,
) -> Iterator[tuple[str, str, Ranking]]:
    """Yield index, sequence search and ranking. `diagonal` uses no index, so it is labelled "exact"."""
    for index in map(format_plugin_name, config.indexes):
        built = index_of(index)
        with timed(f"search {index}"):
            neighbours_QMK = neighbours_of(built, vectors_QMD, database, config.top_k, found)
        if "vote" in config.sequences:
            with timed("vote"):
                voted = vote(neighbours_QMK, database, config.top_k)
            yield index, "vote", voted
        with timed("rescore"):
            rescored = rescore(vectors_QMD, neighbours_QMK, database, config.top_k)
        yield index, "rescore", rescored
        if "interpolate" in config.sequences:
            with timed("interpolate"):
                interpolated = interpolate(rescored, vectors_QMD, database)
            yield index, "interpolate", interpolated
    if "diagonal" in config.sequences:
        yield "exact", "diagonal", found.rankings[1]
