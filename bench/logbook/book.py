"""The logbook of one run: a call writes to the journal on disk at once, a thread delivers to MLflow.

A call here never waits for MLflow and never raises: whether the tracking server is down at the start,
dies midway or hangs, the run goes on with one warning, and `bench sync` delivers the rest later.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from filelock import Timeout

from bench.errors import Pruned
from bench.logbook.journal import Journal, RunLink, journals
from bench.logbook.sync import Backlog
from bench.logbook.uploader import Uploader, connect, first_line, switch_target, system_sampler, user_uri
from bench.store import write_text

if TYPE_CHECKING:
    import pandas as pd

FLUSH_S = 5.0  # a log_batch takes 20 to 400 ms: rare enough to cost nothing, often enough to watch
SYSTEM_S = 10.0  # MLflow's own sampling interval
RETRY_S = 60.0  # after a failure, so that a server that hangs is not asked all the time
START_WAIT_S = 60.0  # a fresh database takes 3 s; a server that hangs is given up after its HTTP timeouts
CLOSE_WAIT_S = 120.0  # for uploading the last artefacts
FIRST_SIGNAL_CODE = 128  # exit codes from here on mean "ended by a signal"

P = ParamSpec("P")


@contextmanager
def open_book(
    folder: Path, *, experiment: str, name: str, store: Path, warn: Callable[[str], None]
) -> Iterator[Logbook]:
    """Give the logbook of the run in `folder`; at the end the run is FINISHED, FAILED or KILLED in MLflow.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME win over the store's own database and `experiment`.
    A folder that was logged before is continued in its MLflow run. A second process that opens the
    same folder waits for the first. `warn` gets at most one sentence about MLflow, from any thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    with _lock_journal(journal, warn):
        journal.mend()
        card = journal.load_link() or RunLink(os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment, name, user_uri())
        journal.write_link(switch_target(card, user_uri()))
        book = Logbook(journal, store, warn)
        status = "FINISHED"
        try:
            book.start()
            yield book
        except BaseException as error:
            status = _status_of(error)
            raise
        finally:
            book.close(status)


def is_open(folder: Path) -> bool:
    """Say whether a process, this one or another, has the logbook of the run in `folder` open."""
    try:
        with Journal(folder).lock().acquire(timeout=0):
            return False
    except Timeout:
        return True


@contextmanager
def _lock_journal(journal: Journal, warn: Callable[[str], None]) -> Iterator[None]:
    lock = journal.lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        warn(f"another process is at work on {journal.folder}; waiting until it has ended")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _status_of(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = error.code or 0
        return (
            "FINISHED" if code == 0 else "KILLED" if isinstance(code, int) and code >= FIRST_SIGNAL_CODE else "FAILED"
        )
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Pruned) else "KILLED"


def _never_raises(method: Callable[Concatenate[Logbook, P], None]) -> Callable[Concatenate[Logbook, P], None]:
    """Wrap a log call so that its failure is a warning: a full disk must not kill a training."""

    @wraps(method)
    def call(self: Logbook, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._warn_once("disk", f"cannot log {method.__name__.strip('_')} to {self._journal.folder}: {error}")

    return call


class Logbook:
    """Logs one run. Keys are dotted or slashed words."""

    def __init__(self, journal: Journal, store: Path, warn: Callable[[str], None]) -> None:
        self._journal = journal
        self._store = store
        self._warn = warn
        self._warned: set[str] = set()
        self._params: dict[str, object] = {}
        self._known: set[int] = set()  # hashes of (key, step, value): a long training has a million
        self._sample: Callable[[], dict[str, float]] | None = None
        self._samples = 0
        self._recall()
        self._stop = threading.Event()
        self._tried = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin a session and wait until MLflow knows the run or has failed."""
        self._status("RUNNING")
        self.tags({"bench.host": socket.gethostname(), "bench.pid": os.getpid()})
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="logbook", daemon=True)
        self._thread.start()
        self._tried.wait(START_WAIT_S)

    @property
    def run_id(self) -> str:
        """Return the id of the MLflow run, empty while MLflow could not be reached."""
        card = self._journal.load_link()
        target = card.targets.get(card.uri) if card else None
        return target.run_id if target else ""

    @_never_raises
    def params(self, values: Mapping[str, object]) -> None:
        """Log settings. MLflow never changes a param: a new value becomes the tag `changed.<name>`."""
        changed = {f"changed.{k}": v for k, v in values.items() if k in self._params and self._params[k] != str(v)}
        new = {k: str(v) for k, v in values.items() if k not in self._params}
        self._params |= new
        if new:
            self._journal.append("params", values=new)
        if changed:
            self.tags(changed)

    @_never_raises
    def tags(self, values: Mapping[str, object]) -> None:
        """Log tags; a later value replaces an earlier one."""
        self._journal.append("tags", values={k: str(v) for k, v in values.items()})

    def note(self, markdown: str) -> None:
        """Set the description that MLflow shows on the run's page."""
        self.tags({"mlflow.note.content": markdown})

    @_never_raises
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step, which may be negative (an SNR in dB); NaN and infinities are fine.

        A point that was logged before is skipped, so that a run done again draws its curves once.
        """
        points = {hash((k, int(step), str(number))): (k, number) for k, v in values.items() for number in [_number(v)]}
        new = dict(point for code, point in points.items() if code not in self._known)
        if new:
            self._journal.append("metrics", values=new, step=int(step))
            self._known |= points.keys()

    @_never_raises
    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Log a table, shown by MLflow and read by `mlflow.load_table(f"{name}.json")`."""
        path = self._journal.folder / "tables" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        write_text(path, frame.to_json(orient="split", index=False, date_format="iso"))
        self._journal.append("table", path=str(path.relative_to(self._journal.folder)), under="")

    @_never_raises
    def artifact(self, path: Path, under: str = "") -> None:
        """Log a file or a whole folder, into the folder `under` of the run's artefacts."""
        inside = path.resolve().is_relative_to(self._journal.folder.resolve())
        kept = path.resolve().relative_to(self._journal.folder.resolve()) if inside else path.resolve()
        self._journal.append("artifact", path=str(kept), under=under)

    @_never_raises
    def dataset(self, name: str, digest: str, context: str, source: str) -> None:
        """Log which data a run used, by our manifest's digest; context is `train` or `eval`."""
        self._journal.append("dataset", name=name, digest=digest, context=context, source=source)

    def close(self, status: str) -> None:
        """Log the end and deliver what is left, within CLOSE_WAIT_S."""
        self._status(status)
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_WAIT_S)
        if self._thread.is_alive():
            self._warn_undelivered("it does not answer")

    @_never_raises
    def _status(self, status: str) -> None:
        self._journal.append("status", value=status)

    def _recall(self) -> None:
        """Learn what earlier sessions logged."""
        for events, _ in self._journal.read():
            for event in events:
                if event["kind"] == "params":
                    self._params = event["values"] | self._params
                elif event["kind"] == "metrics":
                    self._known |= {hash((k, event["step"], str(v))) for k, v in event["values"].items()}
                    self._samples += any(k.startswith("system/") for k in event["values"])

    def _deliver_until_stopped(self) -> None:
        courier: Uploader | None = None
        failed_s = sampled_s = -math.inf
        stopping = caught_up = False
        while True:
            if time.monotonic() - failed_s > RETRY_S:
                try:
                    courier = courier or self._build_uploader()
                    courier.deliver()
                except Exception as error:
                    failed_s = time.monotonic()
                    self._warn_undelivered(first_line(error))
            if time.monotonic() - sampled_s > SYSTEM_S:
                sampled_s = time.monotonic()
                self._system_metrics()
            self._tried.set()
            if stopping:
                break
            if courier and not caught_up:
                caught_up = True
                self._catch_up()
            stopping = self._stop.wait(FLUSH_S)
        if courier and courier.refused:
            self._warn_once("refused", f"MLflow did not take {len(courier.refused)} entries: {courier.refused[0]}")

    def _build_uploader(self) -> Uploader:
        card = self._journal.load_link()
        assert card is not None
        return Uploader(connect(card.uri, self._store), self._journal, self._store)

    @_never_raises
    def _catch_up(self) -> None:
        """End dead runs in the tracking store that has just answered, and deliver what it missed of others."""
        backlog = Backlog(self._store, lambda reason: None)  # `bench sync` will say what is wrong with them
        for journal in journals(self._store):
            card = journal.load_link()
            if card is not None and card.uri == user_uri() and not self._stop.is_set():
                backlog.deliver(journal)

    @_never_raises
    def _system_metrics(self) -> None:
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
            return
        self._sample = self._sample or system_sampler()
        self.metrics(self._sample(), step=self._samples)
        self._samples += 1

    def _warn_undelivered(self, reason: str) -> None:
        self._warn_once(
            "mlflow",
            f"MLflow cannot be reached ({reason}); the run goes on and everything is kept in "
            f"{self._journal.folder}: upload it later with `bench sync`",
        )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self._warn(message)


def _number(value: float) -> float | str:
    """Return a finite float as it is and others as text, because JSON has no word for them."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
