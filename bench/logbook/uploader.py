"""Delivers the events of a run's journal to MLflow, and connects to tracking stores.

What a server refuses (an artefact larger than a proxy accepts) is named and left out; it holds back nothing else.

A delivery can be repeated without harm: MLflow's SQL stores ignore a metric with the same key, step, time and value,
and params, tags and artefacts are overwritten with the same content. So a kill between sending events and recording
that they were sent duplicates nothing.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bench.logbook.databases import (
    ARTEFACTS,
    check_not_mlflows,
    check_not_optunas,
    create_whole,
    is_same_database,
    relocate_artefacts,
    sqlite_path,
)
from bench.logbook.journal import Event, Journal, RunLink, Target, journals, update_target
from bench.logbook.redact import redact, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow 3 accepts (mlflow/utils/validation.py): lengths in characters, entries per log_batch.
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_DIGEST = 250, 6000, 8000, 36
BATCH = {"metrics": 1000, "params": 100, "tags": 100}
# Error codes of MLflow for entries that it will never accept.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
SHOWN_REFUSALS = 5
PARENT = "mlflow.parentRunId"  # the tag under which MLflow's UI shows a run below another
TOO_LARGE = 413  # the HTTP status of a body over the limit of a server, or of a proxy before it
TOO_LARGE_REASON = "HTTP 413, larger than the server or a proxy before it accepts"
PASSING = {401, 407, 408, 425, 429}  # HTTP statuses below 500 of a request that may succeed later, as all from 500 on
NO_ENTRY = {401, 403}
QUIET = {  # defaults for the environment: a dead server is noticed in seconds; no chatter, no telemetry
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # an error is raised as well, and told in a sentence
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def store_uri(store: Path) -> str:
    """Return the URI of the store's MLflow database."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


def user_uri() -> str:
    """Return the user's MLFLOW_TRACKING_URI without any password, empty if it is not set."""
    return without_password(os.environ.get("MLFLOW_TRACKING_URI", ""))


def target_uri(store: Path) -> str:
    """Return the target that the user asks for: `user_uri()`, empty if that is the store's own database."""
    uri = user_uri()
    return "" if is_same_database(uri, store_uri(store)) else uri


def check_tracking() -> None:
    """Check that MLFLOW_TRACKING_URI can be MLflow's, before any work. Raises: ConfigError if it is Optuna's."""
    check_not_optunas(os.environ.get("MLFLOW_TRACKING_URI", ""))


def check_storage(url: str, store: Path) -> None:
    """Check that the storage of a sweep is no database that MLflow logs to. Raises: ConfigError if it is one."""
    check_not_mlflows(url, os.environ.get("MLFLOW_TRACKING_URI", ""), store_uri(store))


def connect(uri: str, store: Path) -> MlflowClient:
    """Return a client of the tracking store at `uri` (empty: the store's database), after it has answered once.

    The artefacts of a store that was moved are found at its new place.
    Raises: ConfigError if it is a database of Optuna's; whatever MLflow raises when it cannot be used.
    """
    import logging

    if uri:
        check_not_optunas(_with_password(uri))

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    def open_client(address: str) -> MlflowClient:
        client = MlflowClient(address)
        client.search_experiments(max_results=1)
        return client

    address = _with_password(uri) if uri else store_uri(store)
    if not uri:
        store.mkdir(parents=True, exist_ok=True)
    path = sqlite_path(address)
    if path is None or path.is_dir() or not path.parent.is_dir():
        return open_client(address)
    with FileLock(str(path.with_suffix(".lock"))):  # two processes that migrate a new database at once break it
        if not path.exists():
            create_whole(path, lambda beginning: open_client(f"sqlite:///{beginning.resolve()}"))
        client = open_client(address)
        if not uri:
            relocate_artefacts(path, store.resolve() / ARTEFACTS)
    return client


def _with_password(uri: str) -> str:
    """Return the URI to connect with; that of the environment may contain a password, which is never written."""
    return os.environ["MLFLOW_TRACKING_URI"] if uri == user_uri() else uri


class Uploader:
    """Delivers the journal of one run; `refused` collects messages about entries that MLflow does not accept."""

    def __init__(self, client: MlflowClient, journal: Journal, store: Path) -> None:
        self._client = client
        self._journal = journal
        self._store = store
        self._run_id = ""
        self._uri = ""
        self._left_out: list[Event] = []  # artefacts that were refused
        self._failure: Exception | None = None
        self.refused: list[str] = []

    def deliver(self, retry: bool = False) -> None:
        """Send every event that the target in use does not have; `retry` also sends refused artefacts once more.

        An artefact that fails holds back neither the others nor the status: a refused one is named in `refused`, and
        after any other failure the next delivery repeats its part of the journal.
        Raises: whatever MLflow raises.
        """
        self._failure = None
        link = self._journal.load_link()
        assert link is not None
        self._uri = link.uri
        if not self._run_id:
            link = self._journal.write_link(self._find_or_create_run(link))
            self._run_id, self._left_out = link.targets[link.uri].run_id, list(link.targets[link.uri].refused)
        if retry:
            link = self._retry_refused(link)
        for events, end in self._journal.read(link.targets[link.uri].delivered):
            self._send(events)
            if self._failure is None:
                link = self._record(link, end)
        if self._failure is not None:
            raise self._failure

    def _retry_refused(self, link: RunLink) -> RunLink:
        before, self._left_out = self._left_out, []
        for event in before:
            self._log_file(event)
        return self._record(link, link.targets[link.uri].delivered) if self._failure is None else link

    def _record(self, link: RunLink, end: int) -> RunLink:
        target = Target(self._run_id, end, tuple(self._left_out))
        return self._journal.write_link(update_target(link, target))

    def _find_or_create_run(self, link: RunLink) -> RunLink:
        """Return the link to a run that exists: the one it names, one tagged with its id, or a new one."""
        target = link.targets.get(link.uri)
        if target is not None and self.exists(target.run_id):
            return link
        return update_target(link, Target(self._find_or_create_id(self._journal, link), 0))

    def _find_or_create_id(self, journal: Journal, link: RunLink) -> str:
        """Return the id of the run that is tagged with the link's id, or of a new one."""
        experiment = self._experiment(link)
        runs = self._client.search_runs([experiment], f"tags.`bench.book` = '{link.id}'", max_results=1)
        if not runs:  # else the run was created, but a lost answer or a kill kept its id from being recorded
            start, tags = _find_start_ms(journal), {"bench.book": link.id}
            runs.append(self._client.create_run(experiment, start_time=start, tags=tags, run_name=link.name))
        return str(runs[0].info.run_id)

    def _find_parent(self, recorded: str) -> str:
        """Return the id, in this tracking store, of the run that was logged as a parent under an id of another store.

        A parent of the store that was not delivered yet is created; its own delivery finds it by its tag.
        """
        if self.exists(recorded):
            return recorded
        for journal in journals(self._store):
            link = journal.load_link()
            if link is not None and any(target.run_id == recorded for target in link.targets.values()):
                here = link.targets.get(self._uri)
                if here is not None and self.exists(here.run_id):
                    return here.run_id
                return self._find_or_create_id(journal, switch_target(link, self._uri))
        return recorded

    def exists(self, run_id: str) -> bool:
        """Return whether the tracking store has a run. Raises: whatever MLflow raises."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment(self, link: RunLink) -> str:
        from mlflow.exceptions import MlflowException

        location = None if link.uri else (self._store.resolve() / ARTEFACTS).as_uri()
        try:
            return str(self._client.create_experiment(link.experiment, artifact_location=location))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(link.experiment)
            if found is None:
                raise error
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _send(self, events: list[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        def merged(kind: str) -> dict[str, Any]:
            """Return the values of all events of a kind; the last value of a key wins."""
            return {k: v for e in events if e["kind"] == kind for k, v in e["values"].items()}

        points = [e for e in events if e["kind"] == "metrics"]
        metrics = [Metric(_key(k), float(v), e["ms"], e["step"]) for e in points for k, v in e["values"].items()]
        self._log_batch("params", [Param(_key(k), str(v)[:MAX_PARAM]) for k, v in merged("params").items()])
        tags = merged("tags")
        if PARENT in tags:
            tags[PARENT] = self._find_parent(tags[PARENT])
        self._log_batch("tags", [RunTag(_key(k), str(v)[:MAX_TAG]) for k, v in tags.items()])
        self._log_batch("metrics", metrics)
        files = {(e["path"], e["under"]): e for e in events if e["kind"] in ("artifact", "table")}
        for event in files.values():
            self._log_file(event)
        self._log_datasets([e for e in events if e["kind"] == "dataset"])
        statuses = [e for e in events if e["kind"] == "status"]
        if statuses:
            self._log_status(statuses[-1])

    def _log_batch(self, kind: str, entries: list[Any]) -> None:
        from mlflow.exceptions import MlflowException

        for start in range(0, len(entries), BATCH[kind]):
            part = entries[start : start + BATCH[kind]]
            try:
                arguments: dict[str, Any] = {kind: part}
                self._client.log_batch(self._run_id, **arguments)
            except MlflowException as error:
                if error.error_code not in REFUSALS and _http_status(error) != TOO_LARGE:
                    raise
                if len(part) == 1:
                    self.refused.append(f"{kind} {part[0].key}: {_reason(error)}")
                else:  # one bad entry fails the whole batch, and a smaller batch may be small enough
                    self._log_batch(kind, part[: len(part) // 2])
                    self._log_batch(kind, part[len(part) // 2 :])

    def _log_file(self, event: Event) -> None:
        path = self._journal.folder / event["path"]  # an absolute path replaces the folder
        if not path.exists():
            self.refused.append(f"{event['kind']} {path}: the file is gone")
        elif path.is_dir():
            for file in sorted(each for each in path.rglob("*") if each.is_file()):
                self._upload(file, posixpath.join(event["under"], path.name, *file.parent.relative_to(path).parts))
        else:
            self._upload(path, event["under"])
        if event["kind"] == "table":
            # As MLflow's log_table, except that a repeated delivery does not append to the table.
            tables = sorted(p.name for p in path.parent.glob("*.json"))
            value = json.dumps([{"path": name, "type": "table"} for name in tables])
            self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", value)

    def _upload(self, path: Path, under: str) -> None:
        """Send one file. Raises: the exception of a lost connection; any other failure concerns this file alone."""
        folder = self._journal.folder
        recorded = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
        event = {"kind": "artifact", "path": recorded, "under": under}
        self._left_out = [each for each in self._left_out if each != event]
        try:
            self._client.log_artifact(self._run_id, str(path), under or None)
        except Exception as error:
            if _is_connection_lost(error):
                raise
            if _may_pass(error):
                self._failure = self._failure or error
                return
            name, size = posixpath.join(under, path.name), format_size(path.stat().st_size)
            self.refused.append(f"artefact {name} ({size}): {_reason(error)}")
            self._left_out.append(event)

    def _log_datasets(self, events: list[Event]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not events:
            return
        inputs = [
            DatasetInput(
                Dataset(e["name"], e["digest"][:MAX_DIGEST], "local", json.dumps({"uri": e["source"]})),
                [InputTag("mlflow.data.context", e["context"])],
            )
            for e in events
        ]
        self._client.log_inputs(self._run_id, inputs)

    def _log_status(self, event: Event) -> None:
        if event["value"] == "RUNNING":
            self._client.update_run(self._run_id, "RUNNING")
        else:
            self._client.set_terminated(self._run_id, event["value"], end_time=event["ms"])


def _find_start_ms(journal: Journal) -> int | None:
    for events, _ in journal.read():
        return int(events[0]["ms"]) if events else None
    return None


def system_sampler() -> Callable[[], dict[str, float]]:
    """Return a function that samples the machine's load, under the names that MLflow's System page shows."""
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    kinds: list[Any] = [cpu_monitor.CPUMonitor, disk_monitor.DiskMonitor, network_monitor.NetworkMonitor]
    gpu: Any = gpu_monitor.GPUMonitor
    monitors = [kind() for kind in kinds]
    with suppress(Exception):  # no GPU, or nvidia-ml-py is not installed: MLflow raises a different type for each
        monitors.append(gpu())

    def sample() -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= {f"system/{k}": float(v) for k, v in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values

    return sample


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error, without passwords; MLflow's messages have many lines."""
    return f"{type(error).__name__}: {redact((str(error).splitlines() or [''])[0])[:200]}"


def describe_failure(error: BaseException) -> str:
    """Return why a tracking store cannot be used, as the rest of a sentence about it."""
    status = _http_status(error)
    return (
        f"refuses user and password (HTTP {status})"
        if status in NO_ENTRY
        else f"cannot be reached ({first_line(error)})"
    )


def format_size(num_bytes: int) -> str:
    """Return a size for people: `12.3 kB`, `4.5 MB`."""
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes < 1e6 else f"{num_bytes / 1e6:.1f} MB"


def format_refusals(refused: list[str], where: Path) -> str:
    """Return a sentence on entries that MLflow refused, which are all kept in the folder of their run."""
    num_more = len(refused) - SHOWN_REFUSALS
    shown = "; ".join(refused[:SHOWN_REFUSALS]) + (f"; and {num_more} more" if num_more > 0 else "")
    limit = "raise the limit (nginx: client_max_body_size), then " if TOO_LARGE_REASON in shown else ""
    return (
        f"MLflow did not take {len(refused)} entries of {where}: {shown}; all else was delivered. "
        f"To send the artefacts again, {limit}run `bench sync`"
    )


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status in an exception of requests or of MLflow, None if it has none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    found = re.search(r"(?:failed with error code|too many) (\d{3})\b", str(error))
    return int(status) if status is not None else int(found[1]) if found else None


def _is_connection_lost(error: Exception) -> bool:
    """Return whether the server did not answer, so that the next request would fail as well."""
    from requests import RequestException

    is_network = isinstance(error, RequestException | ConnectionError | TimeoutError)
    return _http_status(error) is None and (is_network or "failed with exception" in str(error))


def _may_pass(error: Exception) -> bool:
    status = _http_status(error)
    return status is not None and (status >= 500 or status in PASSING)


def _reason(error: Exception) -> str:
    """Return why an entry was refused."""
    return TOO_LARGE_REASON if _http_status(error) == TOO_LARGE else first_line(error)


def switch_target(link: RunLink, uri: str) -> RunLink:
    """Return the link with another tracking store in use; it still records what the others have."""
    return link if link.uri == uri else replace(link, uri=uri)


def _key(text: str) -> str:
    """Return a key that MLflow accepts: other characters become `_`, the path is normalised, the length limited."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", text).lstrip("/") or "_")[:MAX_KEY]
