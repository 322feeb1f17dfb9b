"""A worker of a sweep: a process that trains one trial after another until enough trials were started.

The launcher starts it and sends its specification as one line of JSON on standard input. When that input closes, the
launcher has ended, and the worker ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial, TrialState

from bench.errors import BenchError, Pruned
from bench.registry import load
from bench.results import Result
from bench.run import RunContext, run
from bench.settings import RunConfig
from bench.store import Store, write_json
from bench.sweeps.space import Basis, Space, read_space, to_settings
from bench.sweeps.study import OBJECTIVES, Pruner, definition_of, join_study, open_storage, tell_if_away
from bench.sweeps.trials import REASON, RUN, SECONDS, TrialQueue, heartbeat
from bench.values import Progress

VALIDATION = "val/top1_50ms"
INTERRUPTED = 130  # exit code
SAME_FAILURES = 3  # consecutive trials with the same error: their settings are not the cause
WRITE_EVERY_S = 1.0  # least time between two writes of the progress file


@dataclass(frozen=True)
class WorkerSpec:
    """What the launcher sends to a worker. `storage` may contain a password, so it is never written to disk."""

    model: str
    encoder: str
    preset: str
    dataset: str | None
    overrides: tuple[str, ...]
    data_root: str | None
    store: str
    storage: str | None
    study: str
    pruner: Pruner
    trials: int
    worker: int
    parent: str
    space: Space

    def line(self) -> str:
        """Return the specification as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def parse_worker_spec(line: str) -> WorkerSpec:
    """Return the specification from a line of JSON."""
    values = json.loads(line)
    return WorkerSpec(**values | {"space": read_space(values["space"]), "overrides": tuple(values["overrides"])})


def work(spec: WorkerSpec, progress: Progress, warn: Callable[[str], None]) -> None:
    """Run trials until enough were started. Raises: BenchError if SAME_FAILURES trials in a row fail with one error."""
    store = Store(Path(spec.store))
    with tell_if_away():
        study = join_study(open_storage(spec.storage, store, warn), spec.study, spec.pruner)
        objectives = definition_of(study)["objectives"]
    queue = TrialQueue(study, spec.space, store.root / "sweeps" / spec.study, warn)
    failures: list[str] = []
    while (trial := queue.ask(spec.trials)) is not None:
        failure = _try_trial(trial, spec, objectives, store, queue, progress, warn)
        failures = [*failures, failure] if failure else []
        if len(failures) == SAME_FAILURES and len(set(failures)) == 1:
            raise BenchError(f"{SAME_FAILURES} consecutive trials failed with the same error: {failures[0]}")


def _try_trial(
    trial: Trial,
    spec: WorkerSpec,
    objectives: Sequence[str],
    store: Store,
    queue: TrialQueue,
    progress: Progress,
    warn: Callable[[str], None],
) -> str:
    """Run one trial and report its end; return why it failed, or an empty string."""
    start_s = time.monotonic()
    config: RunConfig | None = None

    def attrs(**more: object) -> dict[str, Any]:
        return {SECONDS: round(time.monotonic() - start_s, 1), **more}

    try:
        with heartbeat(queue.study._storage, trial):
            config = _config(spec, trial)
            result = _run(trial, config, spec, store, queue, progress, warn)
    except Pruned:
        queue.tell(trial.number, TrialState.PRUNED, None, attrs())
    except BenchError as error:
        warn(f"trial {trial.number} failed: {error}")
        queue.tell(trial.number, TrialState.FAIL, None, attrs(**{REASON: str(error)}))
        return str(error)
    except (KeyboardInterrupt, SystemExit):
        queue.requeue(trial)
        raise
    else:
        values = [OBJECTIVES[name].extract(result.summary, config) for name in objectives]
        queue.tell(trial.number, TrialState.COMPLETE, values, attrs(**{RUN: result.summary["run"]}))
    return ""


def _config(spec: WorkerSpec, trial: Trial) -> RunConfig:
    plugin = load("encoder", spec.model)
    basis = Basis(spec.model, spec.encoder, plugin, spec.preset, spec.dataset, spec.overrides)
    return basis.config(spec.space.budget, to_settings(spec.space, trial.params))


def _run(
    trial: Trial,
    config: RunConfig,
    spec: WorkerSpec,
    store: Store,
    queue: TrialQueue,
    progress: Progress,
    warn: Callable[[str], None],
) -> Result:
    seen: set[int] = set()

    def watch(values: dict[str, float], step: int) -> None:
        if VALIDATION not in values or step in seen:  # a resumed training reports its whole curve again
            return
        seen.add(step)
        if queue.report(trial, values[VALIDATION], step):
            raise Pruned(f"trial {trial.number} at step {step}")

    def prefix_stage(stage: str, done: int, total: int) -> None:
        progress(f"trial {trial.number}: {stage}", done, total)

    root = Path(spec.data_root) if spec.data_root else None
    context = RunContext(
        load("encoder", spec.model), root, store, prefix_stage, warn, watch=watch, tags=_tags(spec, trial)
    )
    result = run(config, context, "validation")
    assert result is not None  # a trial trains in a single process, which has the result
    return result


def _tags(spec: WorkerSpec, trial: Trial) -> Mapping[str, str]:
    tags = {"optuna.study": spec.study, "optuna.trial": str(trial.number), "bench.worker": str(spec.worker)}
    return tags | ({"mlflow.parentRunId": spec.parent} if spec.parent else {})


def build_file_progress(path: Path) -> Progress:
    """Return a Progress that writes the latest stage to a file, for the launcher to show."""
    last_s = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= WRITE_EVERY_S:
            last_s = time.monotonic()
            write_json(path, {"stage": stage, "done": done, "total": total})

    return show


def _end_with_launcher() -> None:
    """Start a thread that interrupts this process, as Ctrl-C does, when standard input closes."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def main() -> int:
    """Read the specification from standard input and run trials. Return the exit code; 130 if interrupted."""
    from bench.console import warn

    spec = parse_worker_spec(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent process may have left it ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _end_with_launcher()
    folder = Path(spec.store) / "sweeps" / spec.study
    folder.mkdir(parents=True, exist_ok=True)
    try:
        work(spec, build_file_progress(folder / f"worker-{spec.worker}.json"), warn)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
