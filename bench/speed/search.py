"""What each index finds, how fast, and what it takes: on the same vectors, with the same queries, in one run.

The queries are those of a finished run, degraded; the database is its own with a crowd around it. Every index is
measured in a process of its own, one after another, so that memory is its own and its death is a row of the table.
The first is brute force: the index `exact` with its default settings. Recall is against its answers, by number.

Shape legend: N database vectors, Q queries, M segments of a query, P = Q x M query vectors, D dimensions,
K neighbours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import registry
from bench.config import load_plugin, resolve
from bench.data import prepare_data
from bench.degrade.queries import hop_samples
from bench.errors import ConfigError, PluginError
from bench.evaluate import QUERY_BATCH
from bench.fingerprint import RANDOM_PROJECTION, SHORTEST_QUERY, fingerprint_queries, fingerprint_tracks
from bench.logbook import open_book, provenance
from bench.machine import cores
from bench.runs import FinishedRun, find_run
from bench.score.hits import score_hits
from bench.score.statistics import wilson
from bench.search.sequence import rescore
from bench.settings import RunConfig, require
from bench.speed.distractors import prepare_distractors
from bench.speed.isolated import Costs, Status, measure_isolated
from bench.store import Store, digest, write_json
from bench.values import RATE_HZ, Cell, Fingerprints, Floats, Ints, Progress

RECORD, PICTURE, VECTORS = "search.json", "search.png", "vectors.npy"
BRUTE_FORCE = "exact"


@dataclass(frozen=True)
class IndexSpec:
    """One row that is wanted: an index by its plug-in's name, one of its presets (empty where it has none)."""

    index: str
    preset: str
    config: Any


@dataclass(frozen=True)
class LabelledQueries:
    """The queries of one cell: fingerprints (Q, M, D), track numbers (Q,) and start samples (Q,)."""

    vectors_QMD: Floats
    track_Q: Ints
    start_Q: Ints


@dataclass(frozen=True)
class Quality:
    """What an index found: shares of brute force's first and first K neighbours, and hits after `rescore`."""

    recall_at_1: float
    recall_at_k: float
    hits: int
    top1: float
    top1_low: float
    top1_high: float


@dataclass(frozen=True)
class IndexRow:
    """One index with one preset. Costs and quality are None where it could not be measured; `told` says why."""

    index: str
    preset: str
    settings: dict[str, Any]
    outcome: Status
    told: str = ""
    costs: Costs | None = None
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """Return how tables, pictures and metrics call it."""
        index = Path(self.index).stem if self.index.endswith(".py") else self.index
        return f"{index}/{self.preset}" if self.preset else index


@dataclass(frozen=True)
class SearchSpeed:
    """Everything that was measured; the first row is brute force. `load` is the machine's, just before."""

    run: str
    encoder: str
    cell: str
    length_s: float
    top_k: int
    vectors: int
    real_vectors: int
    dim: int
    queries: int
    query_vectors: int
    machine: str
    load: float
    rows: tuple[IndexRow, ...]

    def times_faster(self, row: IndexRow) -> tuple[float, float]:
        """Return how many times less than brute force a measured row takes: single, batched."""
        brute, costs = self.rows[0].costs, row.costs
        assert brute is not None and costs is not None
        return brute.single_ms / costs.single_ms, brute.batched_ms / costs.batched_ms

    def numbers(self) -> dict[str, float]:
        """Return what was measured as flat names and numbers."""
        told: dict[str, float] = {}
        for row in self.rows:
            if row.costs is None or row.quality is None:
                continue
            single, batched = self.times_faster(row)
            numbers = asdict(row.costs) | asdict(row.quality)
            numbers |= {"times_faster_single": single, "times_faster_batched": batched}
            numbers["bytes_per_vector"] = row.costs.num_bytes / self.vectors
            told |= {f"{row.name}/{name}": float(value) for name, value in numbers.items()}
        return told


@dataclass(frozen=True)
class SearchSpeedOptions:
    """What to measure. `run` is the beginning of a run's key, None the latest; `queries` the most that are asked."""

    run: str | None
    vectors: int
    indexes: Sequence[str]
    snr_db: float
    length_s: float
    top_k: int
    queries: int
    overrides: Sequence[str]

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "--top-k must be >= 1", self.top_k)
        require(self.queries >= 1, "--queries must be >= 1", self.queries)


def measure_indexes(
    wanted: SearchSpeedOptions,
    root: Path | None,
    store: Store,
    progress: Progress,
    warn: Callable[[str], None],
    draw: Callable[[SearchSpeed, Path], None],
) -> tuple[SearchSpeed, Path]:
    """Return what was measured, and the folder in the store where record and picture are kept; logged to MLflow too.

    `draw` makes the picture. Raises: BenchError where there is no such run, index or setting, before any work.
    """
    rows = parse_index_specs(wanted.indexes, wanted.overrides)
    run = find_run(store, wanted.run)
    config = run.restore_config(run.load_plugin(), without=("index", "eval.indexes"))
    summary = run.summary
    require(
        wanted.length_s <= max(config.eval.lengths_s),
        f"--length must be at most the run's longest query, {max(config.eval.lengths_s):g} s",
        wanted.length_s,
    )
    require(
        wanted.vectors >= summary["database_vectors"],
        f"--vectors must be at least the run's own {summary['database_vectors']}",
        wanted.vectors,
    )
    cell = Cell("noise", snr_db=wanted.snr_db)
    real, questions = fingerprint_run(run, config, cell, wanted, root, progress)
    database = prepare_distractors(store, real, wanted.vectors, progress)
    path = store.folder("fingerprints" if database is real else "crowd", database.key) / VECTORS
    load = os.getloadavg()[0]
    found = compare_indexes(rows, database, path, questions, wanted.top_k, _tolerance(config), progress)
    num_queries, num_segments, dim = questions.vectors_QMD.shape
    result = SearchSpeed(
        run=summary["run"], encoder=summary["encoder"], cell=cell.name, length_s=wanted.length_s, top_k=wanted.top_k,
        vectors=len(database.vectors), real_vectors=len(real.vectors), dim=dim, queries=num_queries,
        query_vectors=num_queries * num_segments, machine=_describe_machine(), load=load, rows=found,
    )  # fmt: skip
    name = f"search-{summary['encoder']}-{digest(asdict(result), time.time())[:6]}"
    folder = store.root / "speed" / name
    with open_book(folder, experiment="speed", name=name, store=store.root, warn=warn) as book:
        write_json(folder / RECORD, asdict(result))
        draw(result, folder / PICTURE)
        book.params({k: v for k, v in asdict(result).items() if k != "rows"})
        book.params({f"index.{row.name}.{k}": v for row in found for k, v in row.settings.items()})
        book.tags(provenance() | {"bench.task": "speed-search", "bench.encoder": summary["encoder"]})
        book.metrics(result.numbers(), 0)
        for kept in (RECORD, PICTURE):
            book.artifact(folder / kept)
    return result, folder


def parse_index_specs(names: Sequence[str], overrides: Sequence[str]) -> list[IndexSpec]:
    """Return the rows that are wanted, brute force first: all presets of each index, or the one after a colon.

    `overrides` are settings such as `index.falconn.tables=10`; they change every preset of their index.
    Raises: ConfigError or PluginError for a name or a setting that there is not.
    """
    indexes = list(dict.fromkeys(name.partition(":")[0] for name in names))
    for text in overrides:
        path = text.partition("=")[0]
        require(path.startswith("index."), "--set changes an index here, such as index.falconn.tables=10", text)
        name = path.split(".")[1]
        if name not in indexes and name != BRUTE_FORCE:
            raise ConfigError(registry.format_unknown("index among the measured", name, indexes))
    brute = IndexSpec(
        BRUTE_FORCE, "", _override_config(BRUTE_FORCE, registry.load("index", BRUTE_FORCE).Config(), overrides)
    )
    rows = [brute]
    for name in dict.fromkeys(names):
        index, _, preset = name.partition(":")
        plugin, config = load_plugin("index", name)
        every = plugin.presets() if hasattr(plugin, "presets") else {"": config}
        chosen = {preset: config} if preset else every
        rows += [IndexSpec(index, each, _override_config(index, config, overrides)) for each, config in chosen.items()]
    # Brute force is measured once, under the name of its preset if it has one.
    same = [row for row in rows[1:] if row.index == BRUTE_FORCE and row.config == brute.config]
    return [*same[:1], *(row for row in rows[1:] if row not in same)] if same else rows


def fingerprint_run(
    run: FinishedRun,
    config: RunConfig,
    cell: Cell,
    wanted: SearchSpeedOptions,
    root: Path | None,
    progress: Progress,
) -> tuple[Fingerprints, LabelledQueries]:
    """Return the database of a run, and its queries in one cell, fingerprinted with its weights.

    Raises: ConfigError if its weights are not in the store, DataError if its audio is not there.
    """
    embedder = run.embedder()
    segment_s = embedder.encoder.segment_s
    require(
        wanted.length_s >= SHORTEST_QUERY * segment_s,
        f"--length must be at least {SHORTEST_QUERY} of the encoder's {segment_s} s",
        wanted.length_s,
    )
    data = prepare_data(config, root, run.store, progress)
    hop = hop_samples(config.eval)
    database = fingerprint_tracks(run.store, embedder, data.music, data.music.numbers("test"), hop, progress)
    count = min(wanted.queries, len(data.queries.table))

    def waves() -> Iterator[Floats]:
        batches = data.queries.batches(cell, wanted.length_s, QUERY_BATCH)
        for i, wave_BT in enumerate(islice(batches, -(-count // QUERY_BATCH))):
            progress("queries", i * QUERY_BATCH, count)
            yield wave_BT[: count - i * QUERY_BATCH]
        progress("queries", count, count)

    vectors_QMD = fingerprint_queries(embedder, waves(), hop)
    track_Q, start_Q = data.queries.truth(cell)
    return database, LabelledQueries(vectors_QMD, track_Q[:count], start_Q[:count])


def compare_indexes(
    rows: Sequence[IndexSpec],
    database: Fingerprints,
    path: Path,
    questions: LabelledQueries,
    top_k: int,
    tolerance_samples: int,
    progress: Progress,
) -> tuple[IndexRow, ...]:
    """Return a row for each that is asked; the first is brute force. `path` is the file of the database's vectors.

    Raises: PluginError if brute force itself cannot be measured or is not exact: there is nothing to compare with.
    """
    vector_PD = questions.vectors_QMD.reshape(-1, questions.vectors_QMD.shape[2])
    found: list[IndexRow] = []
    true_PK: Ints | None = None
    for i, row in enumerate(rows):
        progress("indexes", i, len(rows))
        settings = {item.name: getattr(row.config, item.name) for item in fields(row.config)}
        name = f"{row.index} {row.preset}".strip()
        ending = measure_isolated(name, row.index, settings, path, vector_PD, top_k, progress)
        if true_PK is None:
            if ending.costs is None or ending.near_PK is None or not ending.costs.exact:
                reason = ending.reason or "its settings make it inexact"
                raise PluginError(f"brute force, to compare with, could not be measured: {reason}")
            true_PK = ending.near_PK
        quality = None
        if ending.near_PK is not None:
            quality = quality_of(ending.near_PK, true_PK, database, questions, tolerance_samples)
        found.append(IndexRow(row.index, row.preset, settings, ending.outcome, ending.reason, ending.costs, quality))
    progress("indexes", len(rows), len(rows))
    return tuple(found)


def quality_of(
    near_PK: Ints, true_PK: Ints, database: Fingerprints, questions: LabelledQueries, tolerance_samples: int
) -> Quality:
    """Return how much of brute force's answers was found, and the segment-level top-1 after `rescore`."""
    num_queries, num_segments = questions.vectors_QMD.shape[:2]
    ranking = rescore(questions.vectors_QMD, near_PK.reshape(num_queries, num_segments, -1), database, 1)
    judged = score_hits(ranking, database, questions.track_Q, questions.start_Q, tolerance_samples)
    hits = int(judged["hit"].sum())
    low, high = wilson(hits, num_queries)
    return Quality(*recall(near_PK, true_PK), hits, hits / num_queries, low, high)


def recall(near_PK: Ints, true_PK: Ints) -> tuple[float, float]:
    """Return the shares of true nearest neighbours found first, and of true K nearest found among K."""
    there_PK = true_PK >= 0
    # One number for each pair of a query vector and a database vector, so that all are looked up at once.
    pair_P1 = np.arange(len(true_PK))[:, None] * (int(true_PK.max(initial=0)) + 1)
    near = (pair_P1 + near_PK)[(near_PK >= 0) & (near_PK <= true_PK.max(initial=0))]
    found = np.isin((pair_P1 + true_PK)[there_PK], near)
    first_P = near_PK[there_PK[:, 0], 0] == true_PK[there_PK[:, 0], 0]
    return float(first_P.sum() / max(1, len(first_P))), float(found.sum() / max(1, len(found)))


def _override_config(index: str, config: Any, overrides: Sequence[str]) -> Any:
    """Return the settings of an index with those of `overrides` that are for it, checked as those of a run are."""
    own = [text for text in overrides if text.startswith(f"index.{index}.")]
    if not own:
        return config
    default = type(config)()
    names = [item.name for item in fields(config) if getattr(config, item.name) != getattr(default, item.name)]
    preset = [f"index.{index}.{name}={json.dumps(getattr(config, name))}" for name in names]
    encoder = registry.load("encoder", RANDOM_PROJECTION)  # any: the settings of an index do not depend on it
    layers = [f"eval.indexes={json.dumps([index])}", *preset, *own]
    return resolve(RANDOM_PROJECTION, encoder, "small", overrides=layers).index[index]


def _tolerance(config: RunConfig) -> int:
    return round(config.eval.tolerance_ms * RATE_HZ / 1000)


def _describe_machine() -> str:
    told = f"{cores()} cores, {torch.get_num_threads()} threads of torch"
    return f"{told}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else told
