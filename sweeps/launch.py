"""Launches a sweep: checks and prepares everything once, then starts the workers and monitors them until they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import optuna
import pandas as pd
from filelock import FileLock
from optuna.trial import FrozenTrial, TrialState

import bench
from bench import registry
from bench.config import format_setting
from bench.data import prepare_training
from bench.degrade.cells import validation_config
from bench.errors import BenchError, ConfigError
from bench.logbook import Logbook, first_line, is_open, open_book, provenance
from bench.machine import cores
from bench.run import RunContext, benchmark_of, check_run, prepare_test_data
from bench.runs import CURVES, STUDY, TRIALS
from bench.settings import RunConfig, require
from bench.store import Store, digest, read_frame, read_json
from bench.sweeps import export
from bench.sweeps.space import Basis, Space, check, to_params
from bench.sweeps.study import (
    OBJECTIVES,
    Definition,
    Origin,
    Pruner,
    create_or_join,
    definition_of,
    describe_other_studies,
    open_storage,
    tell_if_away,
)
from bench.sweeps.trials import count_begun, enqueue_preset
from bench.sweeps.worker import WorkerSpec
from bench.values import Progress

MLFLOW_RUN = "mlflow_run"
POLL_S = 0.5
END_S = 60.0  # time for workers to end by themselves after an interruption
RESTARTS = 3  # of killed workers, in all
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as requested by the user."""

    basis: Basis
    space: Space
    space_path: Path
    """The file of the search space, named in error messages."""

    trials: int
    """Number of trials of the whole study."""

    workers: int
    objectives: tuple[str, ...]
    pruner: Pruner
    storage: str | None
    study: str | None
    data_root: Path | None
    store: Store


@tell_if_away()
def sweep(request: SweepRequest, progress: Progress, warn: Callable[[str], None], say: Callable[[str], None]) -> Path:
    """Run the remaining trials of a study, and return the folder of its files.

    The same request resumes an interrupted study, or joins one that other machines are running.
    Raises: ConfigError before any work starts; BenchError if a worker fails or the storage does not respond;
    KeyboardInterrupt after a clean stop.
    """
    _check_request(request)
    check(request.space, request.basis, request.space_path)
    storage = open_storage(request.storage, request.store, warn)
    definition, config = _prepare_definition(request, progress, warn)
    if request.study is None:
        for sentence in describe_other_studies(storage, definition):
            warn(sentence)
    origin = Origin(request.basis.model, request.basis.dataset, str(request.data_root) if request.data_root else None)
    study = create_or_join(storage, definition, origin, request.study)
    folder = request.store.root / "sweeps" / study.study_name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / "ask.lock")):
        enqueue_preset(study, to_params(request.space, config))
    say(f"study {study.study_name}: {count_begun(study.get_trials(deepcopy=False))} of {request.trials} trials started")
    with _open_parent_run(study, definition, request.store, warn) as (book, run_id):
        spec = _build_worker_spec(request, study.study_name, run_id)
        try:
            _watch_workers(spec, request.workers, study, folder, progress, warn, say)
        finally:
            _try_export(study, folder, warn)
            if book is not None and (folder / STUDY).is_file():
                _log(book, folder, definition)
    return folder


def _check_request(request: SweepRequest) -> None:
    require(request.trials >= 1, "--trials must be >= 1", request.trials)
    pruners = get_args(Pruner)
    require(request.pruner in pruners, f"--pruner must be one of {', '.join(pruners)}", repr(request.pruner))
    require(1 <= request.workers <= 256, "--workers must be between 1 and 256", request.workers)
    for name in request.objectives:
        if name not in OBJECTIVES:
            raise ConfigError(registry.format_unknown("objective", name, list(OBJECTIVES)))
    require(
        len(set(request.objectives)) == len(request.objectives) >= 1,
        "--objective must not name an objective twice",
        request.objectives,
    )


def _prepare_definition(
    request: SweepRequest, progress: Progress, warn: Callable[[str], None]
) -> tuple[Definition, RunConfig]:
    """Prepare the audio that all trials share; return the definition of the study and the settings of a trial."""
    config = request.basis.config(request.space.budget)
    config = replace(config, eval=validation_config(config.eval))
    context = RunContext(request.basis.plugin, request.data_root, request.store, progress, warn)
    check_run(config, context)
    training_set = prepare_training(config, request.data_root, request.store, progress)
    data = prepare_test_data(config, training_set, context, "validation")
    assert data is not None
    definition = Definition(
        encoder=config.encoder,
        benchmark=benchmark_of(config, "validation"),
        data=digest(training_set.digest, data.digest),
        source=registry.source_digest(request.basis.plugin),
        version=bench.__version__,
        overrides=request.basis.overrides,
        objectives=request.objectives,
        space=replace(request.space, preset=request.basis.preset),
    )
    return definition, config


def _build_worker_spec(request: SweepRequest, study: str, parent: str) -> WorkerSpec:
    basis = request.basis
    return WorkerSpec(
        model=basis.model, encoder=basis.encoder, preset=basis.preset, dataset=basis.dataset,
        overrides=basis.overrides, data_root=str(request.data_root) if request.data_root else None,
        store=str(request.store.root), storage=request.storage, study=study, pruner=request.pruner,
        trials=request.trials, worker=0, parent=parent, space=request.space,
    )  # fmt: skip


@contextmanager
def _open_parent_run(
    study: optuna.Study, definition: Definition, store: Store, warn: Callable[[str], None]
) -> Iterator[tuple[Logbook | None, str]]:
    """Open the MLflow run of the study, the parent of the runs of its trials; yield its logbook and its id.

    The logbook is None if another launcher has the run open.
    """
    folder = store.root / "runs" / digest("study", study.study_name)
    known = study.user_attrs.get(MLFLOW_RUN, "")
    is_elsewhere = bool(known) and not folder.is_dir()
    if is_elsewhere or (folder.is_dir() and is_open(folder)):
        yield None, known
        return
    with open_book(folder, experiment=definition.benchmark, name=study.study_name, store=store.root, warn=warn) as book:
        book.tags(provenance() | {"optuna.study": study.study_name, "bench.encoder": definition.encoder})
        book.tags({"bench.task": definition.benchmark, "bench.kind": "sweep"})
        if book.run_id:
            study.set_user_attr(MLFLOW_RUN, book.run_id)
        yield book, book.run_id


class _Workers:
    """The worker processes. Each receives its specification on standard input, and ends when that input closes."""

    def __init__(self, spec: WorkerSpec, number: int, folder: Path) -> None:
        self._spec, self._number, self._folder = spec, number, folder
        self.running = {i: self._start(i) for i in range(number)}
        self.restarts = 0

    def _start(self, worker: int) -> subprocess.Popen[bytes]:
        log = (self._folder / f"worker-{worker}.log").open("ab")
        with log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.sweeps.worker"],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | _build_environment(worker, self._number),
            )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(replace(self._spec, worker=worker).line().encode())
        process.stdin.flush()
        return process

    def poll(self, warn: Callable[[str], None]) -> None:
        """Remove workers that have ended, and restart killed ones. Raises: BenchError if a worker failed."""
        for worker, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[worker]
            if code < 0 and self.restarts < RESTARTS:
                self.restarts += 1
                warn(f"worker {worker} was killed by signal {-code}; restarting it, and its trial is tried once more")
                self.running[worker] = self._start(worker)
            elif code != 0:
                raise BenchError(f"worker {worker} failed: {self.last_log_line(worker)}")

    def last_log_line(self, worker: int) -> str:
        """Return the last line of the log of a worker, and where the log is."""
        path = self._folder / f"worker-{worker}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1].removeprefix('error: ') if lines else 'no message'} (the whole log is {path})"

    def end(self) -> None:
        """End all workers as Ctrl-C does; one that does not end within END_S is killed."""
        for process in self.running.values():
            assert process.stdin is not None
            process.stdin.close()
        deadline_s = time.monotonic() + END_S
        for process in self.running.values():
            try:
                process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _build_environment(worker: int, workers: int) -> Mapping[str, str]:
    """Return the environment that gives a worker its share of the machine: one GPU, or some of the cores."""
    import torch

    threads = str(max(1, cores() // workers))
    shares = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        shares["CUDA_VISIBLE_DEVICES"] = visible.split(",")[worker % gpus]
    return shares


def _watch_workers(
    spec: WorkerSpec,
    number: int,
    study: optuna.Study,
    folder: Path,
    progress: Progress,
    warn: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Start the workers, and show their progress until they end."""
    reported = {trial.number for trial in study.get_trials(deepcopy=False, states=ENDED)}
    if count_begun(study.get_trials(deepcopy=False)) >= spec.trials and not _select_unfinished(study):
        return
    workers = _Workers(spec, number, folder)
    show = _skip_repeats(progress)
    try:
        while workers.running:
            time.sleep(POLL_S)
            workers.poll(warn)
            try:
                trials = study.get_trials(deepcopy=False)
                news = {
                    t.number: _format_outcome(t, study) for t in trials if t.state in ENDED and t.number not in reported
                }
            except Exception:  # the storage does not respond; the workers report this, and wait
                continue
            reported |= news.keys()
            for sentence in news.values():
                say(sentence)
            if news:
                _try_export(study, folder, warn)
            _show(trials, spec, workers, folder, show)
    finally:
        workers.end()


def _try_export(study: optuna.Study, folder: Path, warn: Callable[[str], None]) -> None:
    """Write the files of the study; if its storage does not respond, they stay as they are."""
    try:
        export.export(study, folder)
    except Exception as error:
        warn(f"the files in {folder} are not up to date ({first_line(error)}); repeat the command to update them")


def _select_unfinished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have not ended; those of dead workers are found by the next worker that asks."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))


def _skip_repeats(progress: Progress) -> Progress:
    """Return a Progress that passes on only changes, so that a finished stage is not logged again and again."""
    last: dict[str, tuple[int, int]] = {}

    def show(stage: str, done: int, total: int) -> None:
        if last.get(stage) != (done, total):
            last[stage] = (done, total)
            progress(stage, done, total)

    return show


def _show(trials: list[FrozenTrial], spec: WorkerSpec, workers: _Workers, folder: Path, progress: Progress) -> None:
    done = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
    progress("trials", min(done, spec.trials), spec.trials)
    for worker in workers.running:
        path = folder / f"worker-{worker}.json"
        if path.is_file():
            shown = read_json(path)
            progress(f"worker {worker}", shown["done"], shown["total"])


def _format_outcome(trial: FrozenTrial, study: optuna.Study) -> str:
    """Return one line on how a trial ended."""
    names = definition_of(study)["objectives"]
    if trial.state == TrialState.COMPLETE:
        outcome = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, trial.values, strict=True))
        is_best = len(names) == 1 and study.best_trial.number == trial.number
        outcome += ", the best so far" if is_best else ""
    elif trial.state == TrialState.PRUNED:
        last = max(trial.intermediate_values, default=0)
        outcome = f"pruned at step {last}, validation top-1 {trial.intermediate_values.get(last, float('nan')):.3f}"
    else:
        outcome = trial.user_attrs.get("reason", "killed; its settings are tried again")
    settings = " ".join(f"{name}={format_setting(value)}" for name, value in trial.params.items())
    return f"trial {trial.number}: {outcome} ({settings})"


def _log(book: Logbook, folder: Path, definition: Definition) -> None:
    """Log the results of a study: a point for each trial, tables, and a description."""
    trials = read_frame(folder / TRIALS)
    first = f"value.{definition.objectives[0]}"
    for row in trials[trials["state"] == "complete"].to_dict("records"):
        book.metrics({f"sweep/{definition.objectives[0]}": row[first]}, step=row["number"])
    book.table("trials", trials)
    for name in (STUDY, TRIALS, CURVES):
        book.artifact(folder / name, "sweep")
    book.note(_note(trials, read_json(folder / STUDY), first))


def _note(trials: pd.DataFrame, study: dict[str, object], first: str) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in trials["state"].value_counts().items())
    best = trials[trials["number"].isin(study["best"])]  # type: ignore[arg-type]
    rows = "\n".join(
        f"| {row['number']} | {row[first]:.4f} | {_settings(row)} |"
        for row in best.rename(columns=str).to_dict("records")
    )
    shares = study["importances"]
    assert isinstance(shares, dict)
    importances = "\n".join(f"| {name} | {share:.2f} |" for name, share in shares.items())
    return (
        f"**Sweep of {study['encoder']}** on {study['benchmark']}: {counts}.\n\n"
        f"| best trial | {first[6:]} | settings |\n| --- | --- | --- |\n{rows}\n\n"
        f"| parameter | importance |\n| --- | --- |\n{importances}\n"
    )


def _settings(row: Mapping[Any, object]) -> str:
    return ", ".join(
        f"{name[6:]} = {format_setting(value)}" for name, value in row.items() if name.startswith("param.")
    )
