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
from bench.data import BenchmarkData, format_left_out, prepare_training, with_queries, with_validation
from bench.degrade.cells import benchmark_name, validation_config
from bench.errors import ConfigError, PluginError, Pruned, StoreError
from bench.evaluate import Evaluation, evaluate
from bench.fingerprint import SHORTEST_QUERY, Embedder
from bench.logbook import labels, open_book, provenance
from bench.machine import keep_freed_memory
from bench.results import RANDOM_PROJECTION, Result, log, start_result, with_alignment, with_segments, write_result
from bench.settings import RunConfig, require
from bench.store import Store, digest
from bench.train import checkpoint
from bench.train.loop import WEIGHTS, TrainingSet, Watch, fit, load_history, watch_nothing
from bench.train.ranks import Ranks, init_ranks, local_rank
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


def run(config: RunConfig, plan: RunContext, task: Task = "all") -> Result | None:
    """Train an encoder, test it on the whole grid with its controls and on recorders, log it, and return the result.

    `task` leaves one of both tests out, or puts that by which sweeps choose, on held-out training tracks, in their
    place. Of the processes that torchrun starts, the others than the first help to train and return None.
    Raises: BenchError (a subclass) with a sentence for the user; what was computed stays in the store.
    """
    if task == "validation":
        config = replace(config, eval=validation_config(config.eval))
    device = check_run(config, plan)
    ranks = init_ranks(device)
    if ranks.rank > 0:
        plan = replace(plan, progress=no_progress, warn=lambda told: None)
    for doubt in [] if plan.weights else find_unusual_settings(config.train, config.eval.hop_ms):
        plan.warn(doubt)
    if device.type == "cpu":
        keep_freed_memory()
    heard = prepare_training(config, plan.root, plan.store, plan.progress)
    if ranks.rank > 0:
        help_train(config, plan, heard, device, ranks)
        return None
    for told in format_left_out(heard):
        plan.warn(told)
    data = prepare_test_data(config, heard, plan, task)
    benchmark = benchmark_of(config, task)
    key = run_key(config, plan, heard, data, task)
    folder = plan.store.root / "runs" / key
    name = f"{config.encoder}/{config.seed}/{key[:6]}"
    with open_book(folder, experiment=benchmark, name=name, store=plan.store.root, warn=plan.warn) as book:
        book.params(flatten(config))
        names = labels(config, device, heard.music.digest) | {"bench.task": benchmark, "bench.run": key}
        book.tags(provenance() | names | {"bench.code": registry.code_digest()} | dict(plan.tags))
        book.dataset(config.data.dataset, heard.music.digest, "train", config.data.dataset)

        def watch(values: dict[str, float], step: int) -> None:
            book.metrics(values, step)
            plan.watch(values, step)

        embedder, facts = train_or_load(config, plan, heard, device, ranks, watch)
        result = start_result(key, benchmark, config, facts)
        if data is not None:
            book.dataset(config.data.dataset, data.queries.key, "eval", config.data.dataset)
            found = evaluate(embedder, data, config.eval, plan.store, plan.progress, config.index)
            floor = evaluate_floor(config, plan, data, device)
            result = with_segments(result, plan.store, config, data, found, floor)
        if task in ("all", "alignment") and config.align.sets:
            aligned = evaluate_alignment(embedder, config, plan.root, plan.store, plan.progress)
            for problem in aligned.left_out:
                plan.warn(f"left out of the alignment: {problem.reason}")
            result = with_alignment(result, aligned)
        write_result(folder, result, config)
        log(book, folder, result, config)
    if (identity := result.summary["headline"].get("control/identity", 1.0)) < MIN_IDENTITY:
        plan.warn(f"only {identity:.1%} of clean queries on the grid were found, {MIN_IDENTITY:.1%} are expected")
    return result


def prepare_test_data(config: RunConfig, heard: TrainingSet, plan: RunContext, task: Task) -> BenchmarkData | None:
    """Return the queries of a task, with the music that holds them; None where recorders alone are aligned."""
    if task == "alignment":
        return None
    prepare = with_validation if task == "validation" else with_queries
    return prepare(config, heard, plan.store, plan.progress)


def benchmark_of(config: RunConfig, task: Task) -> str:
    """Return the versioned name of what a task tests."""
    if task == "alignment":
        return align_name(config)
    return benchmark_name(config.data.dataset, config.eval, "validation" if task == "validation" else "segment")


def check_run(config: RunConfig, plan: RunContext) -> torch.device:
    """Return the device to run on, having found every plug-in that the run will need.

    Raises: ConfigError or PluginError, before any work starts.
    """
    encoder = _build_encoder(plan.plugin, config)
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
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch sees no GPU here; use --set device=auto, or see `bench doctor`")
    if plan.weights is not None:
        if not plan.weights.is_file():
            raise ConfigError(f"no checkpoint at {plan.weights}; give the path of a {WEIGHTS}")
        try:
            checkpoint.load_weights(encoder, plan.weights)
        except StoreError as error:
            raise ConfigError(str(error)) from error
    for name, settings in config.index.items():
        registry.load("index", name).build(settings, np.eye(2, encoder.dim, dtype=np.float32))  # is it installed?
    aligner_specs(config)
    pair_sources(config, plan.root)
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # fp32 is fp32: torch's own default rounds convolutions, and not matrix products, to ten bits on such a GPU.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", local_rank())


def run_key(config: RunConfig, plan: RunContext, heard: TrainingSet, data: BenchmarkData | None, task: Task) -> str:
    """Return the content key of a run: its settings, its encoder's source, its data, this version."""
    tested = data.digest if data else ""
    recorded = [source.digest() for source in pair_sources(config, plan.root)]
    return digest(bench.__version__, asdict(config), _weights_key(config, plan, heard), tested, recorded, task)


def train_or_load(
    config: RunConfig, plan: RunContext, data: TrainingSet, device: torch.device, ranks: Ranks, watch: Watch
) -> tuple[Embedder, dict[str, Any]]:
    """Return the encoder with its best weights, trained now or found in the store, and facts about it."""
    key = _weights_key(config, plan, data)
    encoder = _build_encoder(plan.plugin, config)
    facts: dict[str, Any] = {
        "digests": data.digests | {"encoder": registry.source_digest(plan.plugin)},
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "segment_s": encoder.segment_s,
        "dim": encoder.dim,
        "seconds": {},
    }
    if plan.weights is not None:
        path = plan.weights
    else:
        train = False

        def build(partial: Path) -> None:
            nonlocal train
            train = bool(ranks.broadcast_first(1.0, device))
            fit(partial, encoder, config, data, device, watch, plan.progress, plan.warn, ranks)

        try:
            folder = plan.store.fetch("weights", key, build)
        except Pruned:  # nobody will go on from here
            shutil.rmtree(plan.store.partial("weights", key), ignore_errors=True)
            raise
        if not train:
            ranks.broadcast_first(0.0, device)  # the others wait to hear whether there is something to do
        path = folder / WEIGHTS
        facts["seconds"] = {"training": plan.store.seconds("weights", key)}
        for step, values in load_history(folder):
            watch(values, step)
    state = checkpoint.load_weights(encoder, path)
    facts["checkpoint"] = {"key": key, **state}
    return Embedder(encoder.to(device).eval(), device, config.eval.precision, key), facts


def help_train(config: RunConfig, plan: RunContext, data: TrainingSet, device: torch.device, ranks: Ranks) -> None:
    """Train along with the first process, unless it finds the weights in the store; write nothing."""
    if plan.weights is None and ranks.broadcast_first(0.0, device):
        encoder = _build_encoder(plan.plugin, config)
        partial = plan.store.partial("weights", _weights_key(config, plan, data))
        fit(partial, encoder, config, data, device, watch_nothing, no_progress, plan.warn, ranks)


def evaluate_floor(config: RunConfig, plan: RunContext, data: BenchmarkData, device: torch.device) -> Evaluation:
    """Return the hits of the random projection: shortest queries, exact search. The same for every encoder."""
    plugin = registry.load("encoder", RANDOM_PROJECTION)
    encoder = plugin.build(plugin.Config()).to(device)
    embedder = Embedder(encoder, device, "fp32", digest(bench.__version__, registry.source_digest(plugin)))
    short = replace(config.eval, lengths_s=(min(config.eval.lengths_s),), indexes=("exact",))
    return evaluate(embedder, data, short, plan.store, plan.progress)


def _build_encoder(plugin: ModuleType, config: RunConfig) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return plugin.build(config.model)


def _weights_key(config: RunConfig, plan: RunContext, data: TrainingSet) -> str:
    if plan.weights is not None:
        content = hashlib.sha256(plan.weights.read_bytes()).hexdigest()
        return digest(bench.__version__, registry.source_digest(plan.plugin), asdict(config.model), content)
    own = registry.source_digest(plan.plugin)
    settings = (asdict(config.model), asdict(config.train), config.seed)
    return digest(bench.__version__, config.encoder, own, settings, data.digest)
