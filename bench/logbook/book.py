"""The logbook of one run: each call writes to a journal on disk at once, and a thread delivers it to MLflow.

A log call never waits for MLflow and never raises. If the tracking server is down at the start, dies midway or hangs,
the run continues with one warning, and `bench sync` delivers the rest later.
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
from bench.logbook.uploader import (
    Uploader,
    connect,
    describe_failure,
    format_refusals,
    switch_target,
    system_sampler,
    target_uri,
)
from bench.store import write_text

if TYPE_CHECKING:
    import pandas as pd

FLUSH_S = 5.0  # between deliveries; one takes 20 to 400 ms, so this costs little and is live enough to watch
SYSTEM_S = 10.0  # between samples of the machine's load; MLflow's default
RETRY_S = 60.0  # after a failed delivery, so that a hanging server is not tried all the time
START_WAIT_S = 60.0  # a new database takes 3 s; a hanging server fails earlier, by its HTTP timeouts
CLOSE_WAIT_S = 120.0  # for uploading the last artefacts
FIRST_SIGNAL_CODE = 128  # exit codes from here on mean that a signal ended the process

P = ParamSpec("P")


@contextmanager
def open_book(
    folder: Path, *, experiment: str, name: str, store: Path, warn: Callable[[str], None]
) -> Iterator[Logbook]:
    """Yield the logbook of the run in `folder`; at the end the run is FINISHED, FAILED or KILLED in MLflow.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME override the store's MLflow database and `experiment`. If the folder
    was logged before, its MLflow run is continued. If another process has the folder open, this one waits for it.
    `warn` gets at most one message about a failure of MLflow and one about what it refused, possibly from another
    thread, and names damaged lines of the journal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder)
    with _lock_journal(journal, warn):
        journal.mend()
        link = journal.load_link() or RunLink(
            os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment, name, target_uri(store)
        )
        journal.write_link(switch_target(link, target_uri(store)))
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
    """Return whether any process, this one included, has the logbook of the run in `folder` open."""
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
        warn(f"another process is working on {journal.folder}; waiting until it ends")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _status_of(error: BaseException) -> str:
    """Return the MLflow status of a run that ended with this exception."""
    if isinstance(error, SystemExit):
        code = error.code or 0
        return (
            "FINISHED" if code == 0 else "KILLED" if isinstance(code, int) and code >= FIRST_SIGNAL_CODE else "FAILED"
        )
    return "FAILED" if isinstance(error, Exception) and not isinstance(error, Pruned) else "KILLED"


def _never_raises(method: Callable[Concatenate[Logbook, P], None]) -> Callable[Concatenate[Logbook, P], None]:
    """Wrap a log call so that a failure is only a warning: a full disk must not kill a training."""

    @wraps(method)
    def call(self: Logbook, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._warn_once("disk", f"cannot log {method.__name__.strip('_')} to {self._journal.folder}: {error}")

    return call


class Logbook:
    """Logs one run. Keys are words joined by dots or slashes."""

    def __init__(self, journal: Journal, store: Path, warn: Callable[[str], None]) -> None:
        self._journal = journal
        self._store = store
        self._warn = warn
        self._warned: set[str] = set()
        self._params: dict[str, object] = {}
        self._known: set[int] = set()  # hashes of (key, step, value): a long training has a million
        self._sample: Callable[[], dict[str, float]] | None = None
        self._samples = 0
        self._read_earlier_sessions()
        self._stop = threading.Event()
        self._tried = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start a session, and wait until MLflow has the run or has failed."""
        self._status("RUNNING")
        self.tags({"bench.host": socket.gethostname(), "bench.pid": os.getpid()})
        self._thread = threading.Thread(target=self._deliver_until_stopped, name="logbook", daemon=True)
        self._thread.start()
        self._tried.wait(START_WAIT_S)

    @property
    def run_id(self) -> str:
        """Return the id of the MLflow run, empty until MLflow has been reached."""
        link = self._journal.load_link()
        target = link.targets.get(link.uri) if link else None
        return target.run_id if target else ""

    @_never_raises
    def params(self, values: Mapping[str, object]) -> None:
        """Log settings. MLflow cannot change a param, so a new value becomes the tag `changed.<name>`."""
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
        """Log numbers at a step, which may be negative (an SNR in dB); NaN and infinities are allowed.

        A point that was logged before is skipped, so that a repeated run draws its curves once.
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
        is_in_store = path.resolve().is_relative_to(self._store.resolve())  # which may be moved before the delivery
        recorded = os.path.relpath(path.resolve(), self._journal.folder.resolve()) if is_in_store else path.resolve()
        self._journal.append("artifact", path=str(recorded), under=under)

    @_never_raises
    def dataset(self, name: str, digest: str, context: str, source: str) -> None:
        """Log which data a run used, by its digest; `context` is "train" or "eval"."""
        self._journal.append("dataset", name=name, digest=digest, context=context, source=source)

    def close(self, status: str) -> None:
        """Log the end of the session, and deliver the rest within CLOSE_WAIT_S."""
        self._status(status)
        self._stop.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_WAIT_S)
        if self._thread.is_alive():
            self._warn_undelivered("does not answer")

    @_never_raises
    def _status(self, status: str) -> None:
        self._journal.append("status", value=status)

    def _read_earlier_sessions(self) -> None:
        """Read from the journal what earlier sessions logged, so that it is not logged twice."""
        for events, _ in self._journal.read():
            for event in events:
                if event["kind"] == "params":
                    self._params = event["values"] | self._params
                elif event["kind"] == "metrics":
                    self._known |= {hash((k, event["step"], str(v))) for k, v in event["values"].items()}
                    self._samples += any(k.startswith("system/") for k in event["values"])

    def _deliver_until_stopped(self) -> None:
        """Deliver new events every FLUSH_S and sample the machine's load every SYSTEM_S; runs in its own thread."""
        uploader: Uploader | None = None
        failed_s = sampled_s = -math.inf
        stopping = caught_up = False
        while True:
            if stopping or time.monotonic() - failed_s > RETRY_S:
                try:
                    uploader = uploader or self._build_uploader()
                    uploader.deliver()
                except Exception as error:
                    failed_s = time.monotonic()
                    self._warn_undelivered(describe_failure(error))
            if time.monotonic() - sampled_s > SYSTEM_S:
                sampled_s = time.monotonic()
                self._system_metrics()
            self._tried.set()
            if stopping:
                break
            if uploader and not caught_up:
                caught_up = True
                self._catch_up()
            stopping = self._stop.wait(FLUSH_S)
        if uploader and uploader.refused:
            self._warn_once("refused", format_refusals(uploader.refused, self._journal.folder))

    def _build_uploader(self) -> Uploader:
        link = self._journal.load_link()
        assert link is not None
        return Uploader(connect(link.uri, self._store), self._journal, self._store)

    @_never_raises
    def _catch_up(self) -> None:
        """Deliver what the tracking store missed of other runs, and end those whose process died."""
        backlog = Backlog(self._store, lambda reason: None)  # `bench sync` reports problems with them
        for journal in journals(self._store):
            link = journal.load_link()
            if link is not None and link.uri == target_uri(self._store) and not self._stop.is_set():
                backlog.deliver(journal)

    @_never_raises
    def _system_metrics(self) -> None:
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
            return
        self._sample = self._sample or system_sampler()
        self.metrics(self._sample(), step=self._samples)
        self._samples += 1

    def _warn_undelivered(self, failure: str) -> None:
        self._warn_once(
            "mlflow",
            f"MLflow {failure}; the run continues and everything is kept in "
            f"{self._journal.folder}: upload it later with `bench sync`",
        )

    def _warn_once(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self._warn(message)


def _number(value: float) -> float | str:
    """Return a finite float unchanged, and NaN or infinity as text, because JSON cannot represent them."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
