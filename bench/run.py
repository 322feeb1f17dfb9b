"""One run, left to right: data, weights, fingerprints, search, score, logbook.

Every stage is kept in the store under a content key, so running again is resuming.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
import torch

import bench
from bench import registry
from bench.align.evaluate import align_name, aligner_specs, evaluate_alignment, pair_sources
from bench.config import flatten
from bench.data import BenchmarkData, TrainingSet, format_left_out, prepare_training, with_queries, with_validation
from bench.degrade.cells import benchmark_name, validation_config
from bench.device import pick_device, use_full_fp32
from bench.errors import ConfigError, PluginError, Pruned, StoreError
from bench.evaluate import Evaluation, evaluate
from bench.fingerprint import SHORTEST_QUERY, Embedder, build_random_projection
from bench.logbook import labels, open_book, provenance
from bench.logbook.mlflow_metrics import log_result
from bench.machine import keep_freed_memory
from bench.results import Result, start_result, with_alignment, with_segments, write_result
from bench.settings import RunConfig, require
from bench.store import Store, digest
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.train.loop import Watch, fit, load_history, watch_nothing
from bench.train.ranks import Ranks, init_ranks
from bench.train.unusual_settings import find_unusual_settings
from bench.values import Progress, no_progress

ENCODER_PARTS = ("rate_hz", "segment_s", "dim", "features", "embed")
Task = Literal["all", "segments", "validation", "alignment"]
TASKS: tuple[Task, ...] = get_args(Task)
MIN_IDENTITY = 0.995  # clean queries on the grid: what is lost here is lost by the machinery


@dataclass(frozen=True)
class RunContext:
    """What a run needs beside its settings.

    `watch` sees the training curves as they come, beside the logbook, and may raise Pruned; `tags` go to MLflow.
    """

    plugin: ModuleType
    root: Path | None
    store: Store
    progress: Progress
    warn: Callable[[str], None]
    weights: Path | None = None
    watch: Watch = watch_nothing
    tags: Mapping[str, str] = field(default_factory=dict)


def run(config: RunConfig, context: RunContext, task: Task = "all") -> Result | None:
    """Train an encoder, test it on the whole grid with its controls and on recorders, log it, and return the result.

    `task` leaves one of both tests out, or puts that by which sweeps choose, on held-out training tracks, in their
    place. Of the processes that torchrun starts, the others than the first help to train and return None.
    Raises: BenchError (a subclass) with a sentence for the user; what was computed stays in the store.
    """
    if task == "validation":
        config = replace(config, eval=validation_config(config.eval))
    check_run(config, context)
    device = pick_device(config.device)
    use_full_fp32()
    ranks = init_ranks(device)
    if ranks.rank > 0:
        context = replace(context, progress=no_progress, warn=lambda message: None)
    if context.weights is None:
        for sentence in find_unusual_settings(config.train, config.eval.hop_ms):
            context.warn(sentence)
    if device.type == "cpu":
        keep_freed_memory()
    training_set = prepare_training(config, context.root, context.store, context.progress)
    if ranks.rank > 0:
        help_train(config, context, training_set, device, ranks)
        return None
    for sentence in format_left_out(training_set):
        context.warn(sentence)
    data = prepare_test_data(config, training_set, context, task)
    benchmark = benchmark_of(config, task)
    key = run_key(config, context, training_set, data, task)
    folder = context.store.root / "runs" / key
    name = f"{config.encoder}/{config.seed}/{key[:6]}"
    with open_book(folder, experiment=benchmark, name=name, store=context.store.root, warn=context.warn) as book:
        book.params(flatten(config))
        names = labels(config, device, training_set.music.digest) | {"bench.task": benchmark, "bench.run": key}
        book.tags(provenance() | names | {"bench.code": registry.code_digest()} | dict(context.tags))
        book.dataset(config.data.dataset, training_set.music.digest, "train", config.data.dataset)

        def watch(values: dict[str, float], step: int) -> None:
            book.metrics(values, step)
            context.watch(values, step)

        embedder, facts = train_or_load(config, context, training_set, device, ranks, watch)
        result = start_result(key, benchmark, config, facts)
        if data is not None:
            book.dataset(config.data.dataset, data.queries.key, "eval", config.data.dataset)
            found = evaluate(embedder, data, config.eval, context.store, context.progress, config.index)
            floor = evaluate_floor(config, context, data, device)
            result = with_segments(result, context.store, config, data, found, floor)
        if task in ("all", "alignment") and config.align.sets:
            aligned = evaluate_alignment(embedder, config, context.root, context.store, context.progress)
            for problem in aligned.left_out:
                context.warn(f"left out of the alignment: {problem.reason}")
            result = with_alignment(result, aligned)
        write_result(folder, result, config)
        log_result(book, folder, result, config)
    if (identity := result.summary["headline"].get("control/identity", 1.0)) < MIN_IDENTITY:
        context.warn(f"only {identity:.1%} of clean queries on the grid were found, {MIN_IDENTITY:.1%} are expected")
    return result


def prepare_test_data(
    config: RunConfig, training_set: TrainingSet, context: RunContext, task: Task
) -> BenchmarkData | None:
    """Return the queries of a task, with the music that holds them; None where recorders alone are aligned."""
    if task == "alignment":
        return None
    prepare = with_validation if task == "validation" else with_queries
    return prepare(config, training_set, context.store, context.progress)


def benchmark_of(config: RunConfig, task: Task) -> str:
    """Return the versioned name of what a task tests."""
    if task == "alignment":
        return align_name(config)
    return benchmark_name(config.data.dataset, config.eval, "validation" if task == "validation" else "segment")


def check_run(config: RunConfig, context: RunContext) -> None:
    """Check that a run can be computed here: its device, its weights, and every plug-in that it needs.

    Raises: ConfigError or PluginError, before any work starts.
    """
    pick_device(config.device)
    encoder = build_encoder(context.plugin, config)
    lacking = [part for part in ENCODER_PARTS if not hasattr(encoder, part)]
    if lacking:
        raise PluginError(f"encoder {config.encoder!r} has no {', '.join(lacking)}; see `bench.testing.check_encoder`")
    segment_s = encoder.segment_s
    require(
        min(config.eval.lengths_s) >= SHORTEST_QUERY * segment_s,
        f"eval.lengths_s must be >= {SHORTEST_QUERY} of the encoder's {segment_s} s (what is missing is mirrored)",
        config.eval.lengths_s,
    )
    require(
        config.data.min_track_s >= segment_s,
        f"data.min_track_s must be >= the encoder's {segment_s} s",
        config.data.min_track_s,
    )
    if context.weights is not None:
        if not context.weights.is_file():
            raise ConfigError(f"no checkpoint at {context.weights}; give the path of a {WEIGHTS}")
        try:
            checkpoint.load_weights(encoder, context.weights)
        except StoreError as error:
            raise ConfigError(str(error)) from error
    for name, settings in config.index.items():
        registry.load("index", name).build(settings, np.eye(2, encoder.dim, dtype=np.float32))  # is it installed?
    aligner_specs(config)
    pair_sources(config, context.root)


def run_key(
    config: RunConfig, context: RunContext, training_set: TrainingSet, data: BenchmarkData | None, task: Task
) -> str:
    """Return the content key of a run: its settings, its encoder's source, its data, this version."""
    tested = data.digest if data else ""
    recorded = [source.digest() for source in pair_sources(config, context.root)]
    return digest(
        bench.__version__, asdict(config), _weights_key(config, context, training_set), tested, recorded, task
    )


def train_or_load(
    config: RunConfig, context: RunContext, training_set: TrainingSet, device: torch.device, ranks: Ranks, watch: Watch
) -> tuple[Embedder, dict[str, Any]]:
    """Return the encoder with its best weights, trained now or found in the store, and facts about it."""
    key = _weights_key(config, context, training_set)
    encoder = build_encoder(context.plugin, config)
    facts: dict[str, Any] = {
        "digests": training_set.digests | {"encoder": registry.source_digest(context.plugin)},
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "segment_s": encoder.segment_s,
        "dim": encoder.dim,
        "seconds": {},
    }
    if context.weights is not None:
        path = context.weights
    else:
        train = False

        def build(partial: Path) -> None:
            nonlocal train
            train = bool(ranks.broadcast_first(1.0, device))
            _fit(partial, encoder, config, context, training_set, device, ranks, watch)

        try:
            folder = context.store.fetch("weights", key, build)
        except Pruned:  # nobody will go on from here
            shutil.rmtree(context.store.partial("weights", key), ignore_errors=True)
            raise
        if not train:
            ranks.broadcast_first(0.0, device)  # the others wait to hear whether there is something to do
        path = folder / WEIGHTS
        facts["seconds"] = {"training": context.store.seconds("weights", key)}
        for step, values in load_history(folder):
            watch(values, step)
    state = checkpoint.load_weights(encoder, path)
    facts["checkpoint"] = {"key": key, **state}
    return Embedder(encoder.to(device).eval(), device, config.eval.precision, key), facts


def help_train(
    config: RunConfig, context: RunContext, training_set: TrainingSet, device: torch.device, ranks: Ranks
) -> None:
    """Train along with the first process, unless it finds the weights in the store; write nothing."""
    if context.weights is None and ranks.broadcast_first(0.0, device):
        encoder = build_encoder(context.plugin, config)
        partial = context.store.partial("weights", _weights_key(config, context, training_set))
        _fit(partial, encoder, config, context, training_set, device, ranks)


def _fit(
    partial: Path,
    encoder: Any,
    config: RunConfig,
    context: RunContext,
    training_set: TrainingSet,
    device: torch.device,
    ranks: Ranks,
    watch: Watch = watch_nothing,
) -> None:
    store, progress, warn = context.store, context.progress, context.warn
    fit(partial, encoder, config, training_set, store, device, watch, progress, warn, ranks)


def evaluate_floor(config: RunConfig, context: RunContext, data: BenchmarkData, device: torch.device) -> Evaluation:
    """Return the hits of the random projection: shortest queries, exact search. The same for every encoder."""
    embedder = build_random_projection(device)
    short = replace(config.eval, lengths_s=(min(config.eval.lengths_s),), indexes=("exact",))
    return evaluate(embedder, data, short, context.store, context.progress)


def build_encoder(plugin: ModuleType, config: RunConfig) -> Any:
    """Return an untrained encoder, whose first weights depend on the run's seed alone."""
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return plugin.build(config.model)


def _weights_key(config: RunConfig, context: RunContext, data: TrainingSet) -> str:
    if context.weights is not None:
        content = hashlib.sha256(context.weights.read_bytes()).hexdigest()
        return digest(bench.__version__, registry.source_digest(context.plugin), asdict(config.model), content)
    own = registry.source_digest(context.plugin)
    settings = (asdict(config.model), asdict(config.train), config.seed)
    return digest(bench.__version__, config.encoder, own, settings, data.digest)
