"""One worker: a process that trains one trial after another, until as many were begun as are wanted.

The launcher starts it with its orders as one line of JSON on standard input. The end of that input is the end of the
launcher, and so of the worker: nobody is left who waits for it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
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
from bench.sweeps.study import OBJECTIVES, Pruner, definition_of, join_study, open_storage
from bench.sweeps.trials import REASON, RUN, SECONDS, TrialQueue, heartbeat
from bench.values import Progress

VALIDATION = "val/top1_50ms"
INTERRUPTED = 130
SAME_FAILURES = 3  # in a row: it is not the trial's settings that are wrong
WRITE_EVERY_S = 1.0


@dataclass(frozen=True)
class WorkerSpec:
    """What the launcher tells a worker. `storage` may hold a password: it is never written to disk."""

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
        """Return the orders as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


def parse_worker_spec(line: str) -> WorkerSpec:
    """Return the orders in a line of JSON."""
    values = json.loads(line)
    return WorkerSpec(**values | {"space": read_space(values["space"]), "overrides": tuple(values["overrides"])})


def work(orders: WorkerSpec, progress: Progress, warn: Callable[[str], None]) -> None:
    """Run trials until enough were begun. Raises: BenchError if trials fail by something that is not theirs."""
    store = Store(Path(orders.store))
    study = join_study(open_storage(orders.storage, store), orders.study, orders.pruner)
    desk = TrialQueue(study, orders.space, store.root / "sweeps" / orders.study, warn)
    failures: list[str] = []
    while (trial := desk.ask(orders.trials)) is not None:
        failed = _try_trial(trial, orders, store, desk, progress, warn)
        failures = [*failures, failed] if failed else []
        if len(failures) == SAME_FAILURES and len(set(failures)) == 1:
            raise BenchError(f"{SAME_FAILURES} trials in a row failed alike: {failures[0]}")


def _try_trial(
    trial: Trial, orders: WorkerSpec, store: Store, desk: TrialQueue, progress: Progress, warn: Callable[[str], None]
) -> str:
    """Run one trial and tell its end; return why it failed, nothing if it did not."""
    began_s = time.monotonic()
    config: RunConfig | None = None

    def attrs(**more: object) -> dict[str, Any]:
        return {SECONDS: round(time.monotonic() - began_s, 1), **more}

    try:
        with heartbeat(desk.study._storage, trial):
            config = _config(orders, trial)
            result = _run(trial, config, orders, store, desk, progress, warn)
    except Pruned:
        desk.tell(trial.number, TrialState.PRUNED, None, attrs())
    except BenchError as error:
        warn(f"trial {trial.number} failed: {error}")
        desk.tell(trial.number, TrialState.FAIL, None, attrs(**{REASON: str(error)}))
        return str(error)
    except (KeyboardInterrupt, SystemExit):
        desk.requeue(trial)
        raise
    else:
        values = [OBJECTIVES[name].extract(result.summary, config) for name in definition_of(desk.study)["objectives"]]
        desk.tell(trial.number, TrialState.COMPLETE, values, attrs(**{RUN: result.summary["run"]}))
    return ""


def _config(orders: WorkerSpec, trial: Trial) -> RunConfig:
    plugin = load("encoder", orders.model)
    basis = Basis(orders.model, orders.encoder, plugin, orders.preset, orders.dataset, orders.overrides)
    return basis.config(orders.space.budget, to_settings(orders.space, trial.params))


def _run(
    trial: Trial,
    config: RunConfig,
    orders: WorkerSpec,
    store: Store,
    desk: TrialQueue,
    progress: Progress,
    warn: Callable[[str], None],
) -> Result:
    seen: set[int] = set()

    def watch(values: dict[str, float], step: int) -> None:
        if VALIDATION not in values or step in seen:  # a training that goes on tells its whole curve again
            return
        seen.add(step)
        if desk.report(trial, values[VALIDATION], step):
            raise Pruned(f"trial {trial.number} at step {step}")

    def prefix_stage(stage: str, done: int, total: int) -> None:
        progress(f"trial {trial.number}: {stage}", done, total)

    root = Path(orders.data_root) if orders.data_root else None
    context = RunContext(
        load("encoder", orders.model), root, store, prefix_stage, warn, watch=watch, tags=_tags(orders, trial)
    )
    result = run(config, context, "validation")
    assert result is not None  # one trial is one process: nobody else trains along
    return result


def _tags(orders: WorkerSpec, trial: Trial) -> Mapping[str, str]:
    tags = {"optuna.study": orders.study, "optuna.trial": str(trial.number), "bench.worker": str(orders.worker)}
    return tags | ({"mlflow.parentRunId": orders.parent} if orders.parent else {})


def build_file_progress(path: Path) -> Progress:
    """Return a Progress that keeps the latest stage in a file, for the launcher to show."""
    last_s = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= WRITE_EVERY_S:
            last_s = time.monotonic()
            write_json(path, {"stage": stage, "done": done, "total": total})

    return show


def _end_with_launcher() -> None:
    """Wait for the end of standard input in a thread, then interrupt this process as Ctrl-C does."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


def main() -> int:
    """Take orders from standard input and work. Return the exit code; 130 if interrupted."""
    from bench.console import warn

    orders = parse_worker_spec(sys.stdin.readline())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with it ignored
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _end_with_launcher()
    folder = Path(orders.store) / "sweeps" / orders.study
    folder.mkdir(parents=True, exist_ok=True)
    try:
        work(orders, build_file_progress(folder / f"worker-{orders.worker}.json"), warn)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
