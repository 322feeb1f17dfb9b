"""One run from audio to score: the main path of the benchmark. Start reading at `run`.

    audio -> weights -> queries -> fingerprints -> hits -> rows of results     -> logbook
                        (a matcher: prints)
                     -> pairs of recordings -> time maps -> alignment errors   -> logbook

Each stage keeps its output in the store under a key of all its inputs, so running again is resuming.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import pandas as pd
import torch

import bench
from bench import plugin_check, registry
from bench.align.evaluate import align_name, aligner_specs, evaluate_alignment, pair_sources
from bench.config import flatten_run, format_plugin_name
from bench.costs import measure_costs
from bench.data import BenchmarkData, TrainingSet, format_left_out, prepare_training, with_queries, with_validation
from bench.degrade.cells import benchmark_name, list_ignored_levels, validation_config
from bench.degrade.distort import check_codecs
from bench.device import limit_threads, pick_device, use_full_fp32
from bench.errors import ConfigError, Pruned, StoreError
from bench.evaluate import Evaluation, evaluate, find_ceiling, score_crowds
from bench.fingerprint import SHORTEST_QUERY, Embedder, build_random_projection
from bench.logbook import Logbook, check_tracking, labels, open_book, provenance
from bench.logbook.mlflow_metrics import log_result
from bench.machine import keep_freed_memory
from bench.match.searcher import CPU, build_matcher_searcher
from bench.results import Result, start_result, with_alignment, with_segments, write_result
from bench.search.encoder_searcher import EncoderSearcher, build_encoder_searcher
from bench.search.searcher import Searcher
from bench.settings import RunConfig, require
from bench.store import Store, decisive_settings, digest
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.train.loop import Watch, fit, load_history, watch_nothing
from bench.train.ranks import Ranks, init_ranks
from bench.train.unusual_settings import find_unusual_settings
from bench.values import Cell, Progress, no_progress

Task = Literal["all", "segments", "validation", "alignment"]
TASKS: tuple[Task, ...] = get_args(Task)
MIN_IDENTITY = 0.995  # top-1 of clean queries that start on the database's grid; a lower one points to a bug
TRAIN, DO_NOT_TRAIN = 1.0, 0.0  # what the first process broadcasts to the others


@dataclass(frozen=True)
class RunContext:
    """What a run needs besides its settings."""

    plugin: ModuleType
    """The plug-in of the encoder or the matcher."""

    root: Path | None
    """The data root, None if the user gave none."""

    store: Store
    progress: Progress
    warn: Callable[[str], None]

    weights: Path | None = None
    """Weights to test instead of training."""

    watch: Watch = watch_nothing
    """Gets each point of the training curves, as the logbook does; may raise Pruned to stop the run."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """More tags for the MLflow run."""


def run(config: RunConfig, context: RunContext, task: Task = "all") -> Result | None:
    """Train an encoder and test it; log and return the result.

    `task` selects the tests: "segments" (the grid of degraded queries, with its controls), "alignment" (pairs of
    recordings), "all" (both), or "validation" (queries from held-out training tracks, by which sweeps choose).
    Under torchrun the first process does all this; the others help it to train and return None.
    Raises: BenchError (a subclass), with a message for the user. The stages completed so far stay in the store.
    """
    if config.matcher:
        return _run_matcher(config, context, task)
    # 1. Check everything that could stop the run later.
    if task == "validation":
        config = replace(config, eval=validation_config(config.eval))
    check_run(config, context)
    device = set_up_device(config)
    ranks = init_ranks(device)
    if ranks.rank > 0:
        context = replace(context, progress=no_progress, warn=lambda message: None)
    _warn_of_unusual_settings(config, context)

    # 2. Prepare the audio: what training may use, then the test queries.
    training_set = prepare_training(config, context.root, context.store, context.progress)
    if ranks.rank > 0:
        help_train(config, context, training_set, device, ranks)
        return None
    for message in format_left_out(training_set):
        context.warn(message)
    data = prepare_test_data(config, training_set, context, task)

    benchmark, key = benchmark_of(config, task), run_key(config, context, training_set, data, task)
    folder, name = context.store.root / "runs" / key, f"{config.encoder}/{config.seed}/{key[:6]}"
    with open_book(folder, experiment=benchmark, name=name, store=context.store.root, warn=context.warn) as book:
        _log_settings(book, config, context, training_set, device, {"bench.task": benchmark, "bench.run": key})
        # 3. Train the encoder, or load its weights from the store.
        embedder, facts = train_or_load(config, context, training_set, device, ranks, _watch(book, context))
        result = start_result(key, benchmark, config, facts)
        # 4. Identify degraded queries.
        if data is not None:
            searcher = build_encoder_searcher(
                embedder, data.music, config.eval, context.store, context.progress, config.index
            )
            result = _test_segments(result, searcher, config, context, data, book)
        # 5. Align pairs of recordings.
        if task in ("all", "alignment") and config.align.sets:
            result = _test_alignment(result, embedder, config, context)
        # 6. Save and log.
        with context.store.timed("save and log"):
            write_result(folder, result, config)
            log_result(book, folder, result, config)
    _warn_of_low_identity(result, context)
    return result


def _run_matcher(config: RunConfig, context: RunContext, task: Task) -> Result:
    """Test a matcher on degraded queries; log and return the result. It is not trained, and aligns nothing."""
    if task == "alignment":
        raise ConfigError(
            f"the matcher {config.matcher} identifies queries and aligns no recordings; give --model NAME"
        )
    if config.eval.distractors:
        raise ConfigError(
            f"eval.distractors are fingerprint vectors, and the matcher {config.matcher} has none; leave them out"
        )
    task = "validation" if task == "validation" else "segments"
    if task == "validation":
        config = replace(config, eval=validation_config(config.eval))
    # 1. Check everything that could stop the run later.
    check_tracking()
    _check_benchmark(config, context)
    plugin_check.check_matcher(context.plugin, config.matcher, config.model)
    set_up_device(config)

    # 2. Prepare the audio and the queries.
    training_set = prepare_training(config, context.root, context.store, context.progress)
    for message in format_left_out(training_set):
        context.warn(message)
    data = prepare_test_data(config, training_set, context, task)
    assert data is not None

    benchmark, key = benchmark_of(config, task), run_key(config, context, training_set, data, task)
    folder, name = context.store.root / "runs" / key, f"{config.matcher}/{key[:6]}"
    with open_book(folder, experiment=benchmark, name=name, store=context.store.root, warn=context.warn) as book:
        _log_settings(book, config, context, training_set, CPU, {"bench.task": benchmark, "bench.run": key})
        facts = {"digests": training_set.digests | {"matcher": registry.source_digest(context.plugin)}, "seconds": {}}
        # 3. Make the prints of all tracks, and answer the degraded queries.
        searcher = build_matcher_searcher(
            config.matcher, context.plugin, config.model, data.music, config.eval, context.store, context.progress
        )
        result = _test_segments(start_result(key, benchmark, config, facts), searcher, config, context, data, book)
        # 4. Save and log.
        with context.store.timed("save and log"):
            write_result(folder, result, config)
            log_result(book, folder, result, config)
    for length_s in searcher.facts["lengths_too_short_s"]:
        context.warn(
            f"{config.matcher} hears queries of at least {searcher.matcher.shortest_s:g} s; all of {length_s:g} s are "
            "counted as misses"
        )
    return result


def check_run(config: RunConfig, context: RunContext) -> None:
    """Check that a run can be computed here: its device, its weights, and every plug-in that it needs.

    Raises: ConfigError or PluginError, before any work starts.
    """
    check_tracking()
    _check_benchmark(config, context)
    pick_device(config.device)
    encoder = build_encoder(context.plugin, config)
    plugin_check.check_encoder_parts(encoder, context.plugin, config.encoder)
    segment_s = encoder.segment_s
    require(
        min(config.eval.lengths_s) >= SHORTEST_QUERY * segment_s,
        f"eval.lengths_s must be >= {SHORTEST_QUERY} of the encoder's {segment_s} s (the missing part is mirrored)",
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
    for name in config.eval.indexes:
        plugin_check.check_index(name, config.index[format_plugin_name(name)], encoder.dim)
    aligner_specs(config)
    pair_sources(config, context.root)
    trains = context.weights is None and config.train.steps > 0
    masks = config.train.mask_count > 0
    plugin_check.check_encoder(encoder, context.plugin, config.encoder, config.model, trains=trains, masks=masks)


def _check_benchmark(config: RunConfig, context: RunContext) -> None:
    """Check that the queries of the benchmark's version can be made here. Raises: ConfigError."""
    if config.eval.version == "v2":
        check_codecs("eval.v2.codecs", config.eval.v2.codecs)
    if not config.matcher and config.train.transforms.codec > 0:
        check_codecs("train.transforms.codec", ("mp3-16", "opus-16"))
    if ignored := list_ignored_levels(config.eval):
        context.warn(f"{', '.join(ignored)} are of v1 alone and not used: v2 has levels of its own in eval.v2")


def set_up_device(config: RunConfig) -> torch.device:
    """Return the device of a run, and set this process up for it. Raises: ConfigError as `pick_device`."""
    device = pick_device(config.device)
    use_full_fp32()
    if device.type == "cpu":
        keep_freed_memory()
        limit_threads()
    return device


def build_encoder(plugin: ModuleType, config: RunConfig) -> Any:
    """Return an untrained encoder, whose initial weights depend on the run's seed alone. Raises: PluginError."""
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return plugin_check.build_encoder(plugin, config.encoder, config.model)


def prepare_test_data(
    config: RunConfig, training_set: TrainingSet, context: RunContext, task: Task
) -> BenchmarkData | None:
    """Return the queries of a task, with the music that contains them; None for the task "alignment"."""
    if task == "alignment":
        return None
    prepare = with_validation if task == "validation" else with_queries
    return prepare(config, training_set, context.store, context.progress)


def benchmark_of(config: RunConfig, task: Task) -> str:
    """Return the versioned name of what a task tests."""
    if task == "alignment":
        return align_name(config)
    return benchmark_name(config.data.dataset, config.eval, "validation" if task == "validation" else "segment")


def run_key(
    config: RunConfig, context: RunContext, training_set: TrainingSet, data: BenchmarkData | None, task: Task
) -> str:
    """Return the content key of a run: its settings, the source of its encoder or matcher, its data, this version."""
    test_data = data.digest if data else ""
    if config.matcher:
        return digest(
            bench.__version__, decisive_settings(config), registry.source_digest(context.plugin), test_data, task
        )
    pairs = [source.digest() for source in pair_sources(config, context.root)]
    return digest(
        bench.__version__,
        decisive_settings(config),
        _weights_key(config, context, training_set),
        test_data,
        pairs,
        task,
    )


def train_or_load(
    config: RunConfig, context: RunContext, training_set: TrainingSet, device: torch.device, ranks: Ranks, watch: Watch
) -> tuple[Embedder, dict[str, Any]]:
    """Return the encoder with its best weights, trained now or loaded, and facts for the result's summary."""
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
        others_train = False

        def build(partial: Path) -> None:
            nonlocal others_train
            others_train = bool(ranks.broadcast_first(TRAIN, device))
            _fit(partial, encoder, config, context, training_set, device, ranks, watch)

        try:
            folder = context.store.fetch("weights", key, build)
        except Pruned:  # a pruned trial is never resumed
            shutil.rmtree(context.store.partial("weights", key), ignore_errors=True)
            raise
        if not others_train:
            ranks.broadcast_first(DO_NOT_TRAIN, device)  # the other processes wait for the answer in `help_train`
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
    """Train together with the first process, unless it finds the weights in the store; write nothing."""
    if context.weights is None and ranks.broadcast_first(DO_NOT_TRAIN, device):  # returns the first process's answer
        encoder = build_encoder(context.plugin, config)
        partial = context.store.partial("weights", _weights_key(config, context, training_set))
        _fit(partial, encoder, config, context, training_set, device, ranks)


def evaluate_floor(config: RunConfig, context: RunContext, data: BenchmarkData, device: torch.device) -> Evaluation:
    """Return the hits of the random projection on the shortest queries, by exact search: equal for all encoders."""
    embedder = build_random_projection(device)
    sequences = tuple(name for name in config.eval.sequences if name != "verify")
    short = replace(config.eval, lengths_s=(min(config.eval.lengths_s),), indexes=("exact",), sequences=sequences)
    searcher = build_encoder_searcher(embedder, data.music, short, context.store, context.progress)
    return evaluate(searcher, data, short, context.store, context.progress)


def _test_segments(
    result: Result, searcher: Searcher, config: RunConfig, context: RunContext, data: BenchmarkData, book: Logbook
) -> Result:
    """Return the result with the hits of all queries, those of the random projection, and the costs of an answer."""
    book.dataset(config.data.dataset, data.queries.key, "eval", config.data.dataset)
    evaluation = evaluate(searcher, data, config.eval, context.store, context.progress)
    with context.store.timed("random projection"):
        floor = evaluate_floor(config, context, data, searcher.device)
    ceiling: dict[Cell, pd.DataFrame] = {}
    if config.eval.ceiling_queries and "verify" in config.eval.sequences:
        with context.store.timed("ceiling"):
            ceiling = find_ceiling(data, config.eval, context.store, context.progress, searcher.device)
    crowds: dict[Cell, pd.DataFrame] = {}
    if config.eval.distractors and isinstance(searcher, EncoderSearcher):
        with context.store.timed("distractors"):
            crowds = score_crowds(searcher, data, config.eval, context.store, context.progress)
    costs = pd.DataFrame()
    if config.eval.cost_queries:
        with context.store.timed("costs"):
            costs = measure_costs(searcher, data, config.eval, context.store, context.progress)
    with context.store.timed("score"):
        return with_segments(result, context.store, config, data, evaluation, floor, ceiling, crowds, costs)


def _test_alignment(result: Result, embedder: Embedder, config: RunConfig, context: RunContext) -> Result:
    """Return the result with the errors of all aligners; a pair that cannot be used is left out with a warning."""
    alignments = evaluate_alignment(embedder, config, context.root, context.store, context.progress)
    for problem in alignments.left_out:
        context.warn(f"left out of the alignment: {problem.reason}")
    return with_alignment(result, alignments)


def _log_settings(
    book: Logbook,
    config: RunConfig,
    context: RunContext,
    training_set: TrainingSet,
    device: torch.device,
    names: dict[str, str],
) -> None:
    book.params(flatten_run(config))
    tags = labels(config, device, training_set.music.digest) | names
    book.tags(provenance() | tags | {"bench.code": registry.code_digest()} | dict(context.tags))
    book.dataset(config.data.dataset, training_set.music.digest, "train", config.data.dataset)


def _watch(book: Logbook, context: RunContext) -> Watch:
    """Return a function that sends the points of the training curves to the logbook, then to `context.watch`."""

    def watch(values: dict[str, float], step: int) -> None:
        book.metrics(values, step)
        context.watch(values, step)

    return watch


def _warn_of_unusual_settings(config: RunConfig, context: RunContext) -> None:
    if context.weights is None:
        for message in find_unusual_settings(config.train, config.eval.hop_ms):
            context.warn(message)


def _warn_of_low_identity(result: Result, context: RunContext) -> None:
    identity = result.summary["headline"].get("control/identity", 1.0)
    if identity < MIN_IDENTITY:
        context.warn(
            f"only {identity:.1%} of clean queries on the grid were found; expected at least {MIN_IDENTITY:.1%}; "
            "tracks that repeat themselves, as loops do, may be the cause (`bench data verify` names them), or a bug"
        )


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


def _weights_key(config: RunConfig, context: RunContext, training_set: TrainingSet) -> str:
    source = registry.source_digest(context.plugin)
    if context.weights is not None:
        weights = hashlib.sha256(context.weights.read_bytes()).hexdigest()
        return digest(bench.__version__, source, asdict(config.model), weights)
    settings = (asdict(config.model), decisive_settings(config.train), config.seed)
    return digest(bench.__version__, config.encoder, source, settings, training_set.digest)
