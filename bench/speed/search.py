"""Compares indexes on the same vectors and queries: recall, top-1, speed and memory.

The queries are the degraded queries of a finished run; the database is that of the run, enlarged with synthetic
distractors. The indexes are measured one after another, each in a separate process, so that its memory is that of the
index and a crash is a row of the table. The first is brute force: the index `exact` with its default settings. Recall
is the share of its answers, by vector number, that another index finds.

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
from bench.config import format_plugin_name, load_plugin, resolve
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
from bench.speed.distractors import STAGE, prepare_distractors
from bench.speed.isolated import Costs, Status, measure_isolated
from bench.store import Store, digest, write_json
from bench.values import RATE_HZ, Cell, Fingerprints, Floats, Ints, Progress

RECORD, PICTURE, VECTORS = "search.json", "search.png", "vectors.npy"
BRUTE_FORCE = "exact"


@dataclass(frozen=True)
class IndexSpec:
    """An index to measure."""

    index: str
    """The name or path of its plug-in."""

    preset: str
    """One of its presets, empty if it has none."""

    config: Any


@dataclass(frozen=True)
class LabelledQueries:
    """The queries of one cell: fingerprints (Q, M, D), track numbers (Q,) and start samples (Q,)."""

    vectors_QMD: Floats
    track_Q: Ints
    start_Q: Ints


@dataclass(frozen=True)
class Quality:
    """What an index found."""

    recall_at_1: float
    """The share of brute force's nearest vectors that it found first."""

    recall_at_k: float
    """The share of brute force's K nearest vectors that are among its K."""

    hits: int
    """Queries answered correctly after `rescore`."""

    top1: float
    """The share of hits, with its 95 % interval."""

    top1_low: float
    top1_high: float


@dataclass(frozen=True)
class IndexRow:
    """The measurement of one index with one preset."""

    index: str
    preset: str
    settings: dict[str, Any]
    outcome: Status

    told: str = ""
    """Why there are no costs and no quality; empty if there are."""

    costs: Costs | None = None
    quality: Quality | None = None

    @property
    def name(self) -> str:
        """Return its name in tables, pictures and metrics."""
        index = Path(self.index).stem if self.index.endswith(".py") else self.index
        return f"{index}/{self.preset}" if self.preset else index


@dataclass(frozen=True)
class SearchSpeed:
    """A comparison of indexes; the first row is brute force. `load` is the machine's load average just before."""

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
        """Return the speed-up of a measured row over brute force: single, batched."""
        brute, costs = self.rows[0].costs, row.costs
        assert brute is not None and costs is not None
        return brute.single_ms / costs.single_ms, brute.batched_ms / costs.batched_ms

    def numbers(self) -> dict[str, float]:
        """Return all measurements by name, as metrics for MLflow."""
        metrics: dict[str, float] = {}
        for row in self.rows:
            if row.costs is None or row.quality is None:
                continue
            single, batched = self.times_faster(row)
            numbers = asdict(row.costs) | asdict(row.quality)
            numbers |= {"times_faster_single": single, "times_faster_batched": batched}
            numbers["bytes_per_vector"] = row.costs.num_bytes / self.vectors
            metrics |= {f"{row.name}/{name}": float(value) for name, value in numbers.items()}
        return metrics


@dataclass(frozen=True)
class SearchSpeedOptions:
    """What to measure."""

    run: str | None
    """The beginning of a run's key, None for the latest run."""

    vectors: int
    """The size of the database."""

    indexes: Sequence[str]
    """Names of indexes, each with an optional preset after a colon."""

    snr_db: float
    length_s: float
    top_k: int

    queries: int
    """At most this many queries are searched."""

    overrides: Sequence[str]
    """Settings of indexes, as `--set` takes them."""

    def __post_init__(self) -> None:
        require(self.top_k >= 1, "--top-k must be >= 1", self.top_k)
        require(self.queries >= 1, "--queries must be >= 1", self.queries)


def measure_indexes(
    options: SearchSpeedOptions,
    root: Path | None,
    store: Store,
    progress: Progress,
    warn: Callable[[str], None],
    draw: Callable[[SearchSpeed, Path], None],
) -> tuple[SearchSpeed, Path]:
    """Return the comparison, and the folder in the store that holds its record and picture; log it to MLflow too.

    `draw` writes the picture. Raises: BenchError if there is no such run, index or setting, before any work.
    """
    # 1. Check the options.
    specs = parse_index_specs(options.indexes, options.overrides)
    run = find_run(store, options.run)
    config = run.restore_config(run.load_plugin(), without=("index", "eval.indexes"))
    summary = run.summary
    require(
        options.length_s <= max(config.eval.lengths_s),
        f"--length must be at most the run's longest query, {max(config.eval.lengths_s):g} s",
        options.length_s,
    )
    require(
        options.vectors >= summary["database_vectors"],
        f"--vectors must be at least the run's own {summary['database_vectors']}",
        options.vectors,
    )
    # 2. Prepare database and queries, and measure.
    cell = Cell("noise", snr_db=options.snr_db)
    real, queries = fingerprint_run(run, config, cell, options, root, progress)
    database = prepare_distractors(store, real, options.vectors, progress)
    path = store.folder("fingerprints" if database is real else STAGE, database.key) / VECTORS
    load = os.getloadavg()[0]
    rows = compare_indexes(specs, database, path, queries, options.top_k, _tolerance(config), progress)
    num_queries, num_segments, dim = queries.vectors_QMD.shape
    result = SearchSpeed(
        run=summary["run"], encoder=summary["encoder"], cell=cell.name, length_s=options.length_s, top_k=options.top_k,
        vectors=len(database.vectors), real_vectors=len(real.vectors), dim=dim, queries=num_queries,
        query_vectors=num_queries * num_segments, machine=_describe_machine(), load=load, rows=rows,
    )  # fmt: skip
    # 3. Save and log.
    name = f"search-{summary['encoder']}-{digest(asdict(result), time.time())[:6]}"
    folder = store.root / "speed" / name
    with open_book(folder, experiment="speed", name=name, store=store.root, warn=warn) as book:
        write_json(folder / RECORD, asdict(result))
        draw(result, folder / PICTURE)
        book.params({k: v for k, v in asdict(result).items() if k != "rows"})
        book.params({f"index.{row.name}.{k}": v for row in rows for k, v in row.settings.items()})
        book.tags(provenance() | {"bench.task": "speed-search", "bench.encoder": summary["encoder"]})
        book.metrics(result.numbers(), 0)
        for file in (RECORD, PICTURE):
            book.artifact(folder / file)
    return result, folder


def parse_index_specs(names: Sequence[str], overrides: Sequence[str]) -> list[IndexSpec]:
    """Return the indexes to measure, brute force first: all presets of each index, or the one named after a colon.

    `overrides` are settings such as `index.falconn.tables=10`; they change every preset of their index.
    Raises: ConfigError or PluginError for an unknown name or setting.
    """
    indexes = list(dict.fromkeys(name.partition(":")[0] for name in names))
    for text in overrides:
        path = text.partition("=")[0]
        require(
            path.startswith("index."), "--set must be a setting of an index here, such as index.falconn.tables=10", text
        )
        name, called = path.split(".")[1], [format_plugin_name(index) for index in indexes]
        if name not in called and name != BRUTE_FORCE:
            raise ConfigError(registry.format_unknown("index among the measured", name, called))
    brute = IndexSpec(
        BRUTE_FORCE, "", _override_config(BRUTE_FORCE, registry.load("index", BRUTE_FORCE).Config(), overrides)
    )
    specs = [brute]
    for name in dict.fromkeys(names):
        index, _, preset = name.partition(":")
        plugin, config = load_plugin("index", name)
        presets = plugin.presets() if hasattr(plugin, "presets") else {"": config}
        chosen = {preset: config} if preset else presets
        for name_of_preset, values in chosen.items():
            specs.append(IndexSpec(index, name_of_preset, _override_config(index, values, overrides)))
    # Brute force is measured once, under the name of its preset if it has one.
    same = [spec for spec in specs[1:] if spec.index == BRUTE_FORCE and spec.config == brute.config]
    return [*same[:1], *(spec for spec in specs[1:] if spec not in same)] if same else specs


def fingerprint_run(
    run: FinishedRun,
    config: RunConfig,
    cell: Cell,
    options: SearchSpeedOptions,
    root: Path | None,
    progress: Progress,
) -> tuple[Fingerprints, LabelledQueries]:
    """Return the database of a run and its queries in one cell, fingerprinted with its weights.

    Raises: ConfigError if its weights are not in the store, DataError if its audio is missing.
    """
    embedder = run.embedder()
    segment_s = embedder.encoder.segment_s
    require(
        options.length_s >= SHORTEST_QUERY * segment_s,
        f"--length must be at least {SHORTEST_QUERY} of the encoder's {segment_s} s",
        options.length_s,
    )
    data = prepare_data(config, root, run.store, progress)
    hop = hop_samples(config.eval)
    database = fingerprint_tracks(run.store, embedder, data.music, data.music.numbers("test"), hop, progress)
    count = min(options.queries, len(data.queries.table))

    def waves() -> Iterator[Floats]:
        """Yield the first `count` queries in batches."""
        batches = data.queries.batches(cell, options.length_s, QUERY_BATCH)
        for i, wave_BT in enumerate(islice(batches, -(-count // QUERY_BATCH))):
            progress("queries", i * QUERY_BATCH, count)
            yield wave_BT[: count - i * QUERY_BATCH]
        progress("queries", count, count)

    vectors_QMD = fingerprint_queries(embedder, waves(), hop)
    track_Q, start_Q = data.queries.truth(cell)
    return database, LabelledQueries(vectors_QMD, track_Q[:count], start_Q[:count])


def compare_indexes(
    specs: Sequence[IndexSpec],
    database: Fingerprints,
    path: Path,
    queries: LabelledQueries,
    top_k: int,
    tolerance_samples: int,
    progress: Progress,
) -> tuple[IndexRow, ...]:
    """Return one row per index; the first is brute force. `path` is the file of the database's vectors.

    Raises: PluginError if brute force, with which the others are compared, cannot be measured or is not exact.
    """
    vector_PD = queries.vectors_QMD.reshape(-1, queries.vectors_QMD.shape[2])
    rows: list[IndexRow] = []
    true_PK: Ints | None = None
    for i, spec in enumerate(specs):
        progress("indexes", i, len(specs))
        settings = {item.name: getattr(spec.config, item.name) for item in fields(spec.config)}
        name = f"{spec.index} {spec.preset}".strip()
        measured = measure_isolated(name, spec.index, settings, path, vector_PD, top_k, progress)
        if true_PK is None:
            if measured.costs is None or measured.near_PK is None or not measured.costs.exact:
                reason = measured.reason or "its settings make it inexact"
                raise PluginError(f"brute force, to compare with, could not be measured: {reason}")
            true_PK = measured.near_PK
        quality = None
        if measured.near_PK is not None:
            quality = quality_of(measured.near_PK, true_PK, database, queries, tolerance_samples)
        rows.append(
            IndexRow(
                index=spec.index,
                preset=spec.preset,
                settings=settings,
                outcome=measured.outcome,
                told=measured.reason,
                costs=measured.costs,
                quality=quality,
            )
        )
    progress("indexes", len(specs), len(specs))
    return tuple(rows)


def quality_of(
    near_PK: Ints, true_PK: Ints, database: Fingerprints, queries: LabelledQueries, tolerance_samples: int
) -> Quality:
    """Return the recall of brute force's answers, and the segment-level top-1 after `rescore`."""
    num_queries, num_segments = queries.vectors_QMD.shape[:2]
    ranking = rescore(queries.vectors_QMD, near_PK.reshape(num_queries, num_segments, -1), database, 1)
    found = ranking.found(database, 0)
    truth = (queries.track_Q, queries.start_Q)
    scored = score_hits(found, database.tracks, *truth, tolerance_samples, tolerance_samples)
    hits = int(scored["hit"].sum())
    low, high = wilson(hits, num_queries)
    return Quality(*recall(near_PK, true_PK), hits, hits / num_queries, low, high)


def recall(near_PK: Ints, true_PK: Ints) -> tuple[float, float]:
    """Return recall at 1, and the share of the true K nearest neighbours that are among the K found."""
    exists_PK = true_PK >= 0
    # A unique number for each pair of a query vector and a database vector, so that one `isin` looks up all.
    pair_P1 = np.arange(len(true_PK))[:, None] * (int(true_PK.max(initial=0)) + 1)
    near = (pair_P1 + near_PK)[(near_PK >= 0) & (near_PK <= true_PK.max(initial=0))]
    found = np.isin((pair_P1 + true_PK)[exists_PK], near)
    first_P = near_PK[exists_PK[:, 0], 0] == true_PK[exists_PK[:, 0], 0]
    return float(first_P.sum() / max(1, len(first_P))), float(found.sum() / max(1, len(found)))


def _override_config(index: str, config: Any, overrides: Sequence[str]) -> Any:
    """Return an index's settings changed by the overrides that name it, and checked like the settings of a run."""
    called = format_plugin_name(index)
    for_index = [text for text in overrides if text.startswith(f"index.{called}.")]
    if not for_index:
        return config
    default = type(config)()
    names = [item.name for item in fields(config) if getattr(config, item.name) != getattr(default, item.name)]
    preset = [f"index.{called}.{name}={json.dumps(getattr(config, name))}" for name in names]
    encoder = registry.load("encoder", RANDOM_PROJECTION)  # any encoder will do: an index's settings need none
    layers = [f"eval.indexes={json.dumps([index])}", *preset, *for_index]
    return resolve(RANDOM_PROJECTION, encoder, "small", overrides=layers).index[called]


def _tolerance(config: RunConfig) -> int:
    return round(config.eval.tolerance_ms * RATE_HZ / 1000)


def _describe_machine() -> str:
    cpu = f"{cores()} cores, {torch.get_num_threads()} threads of torch"
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cpu
