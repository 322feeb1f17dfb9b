"""Delivers the events of a run's journal to MLflow, and connects to tracking stores.

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
from urllib.parse import urlsplit

from filelock import FileLock

from bench.logbook.journal import Event, Journal, RunLink, Target, update_target

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What MLflow 3 accepts (mlflow/utils/validation.py): lengths in characters, entries per log_batch.
MAX_KEY, MAX_PARAM, MAX_TAG, MAX_DIGEST = 250, 6000, 8000, 36
BATCH = {"metrics": 1000, "params": 100, "tags": 100}
# Error codes of MLflow for entries that it will never accept.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
QUIET = {  # defaults for the environment: a dead server is noticed in seconds; no chatter, no telemetry
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def store_uri(store: Path) -> str:
    """Return the URI of the store's MLflow database."""
    return f"sqlite:///{store.resolve() / 'mlflow.db'}"


def user_uri() -> str:
    """Return the user's MLFLOW_TRACKING_URI without any password, empty if it is not set."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    netloc = urlsplit(uri).netloc
    return uri.replace(netloc, netloc.rpartition("@")[2], 1) if "@" in netloc else uri


def connect(uri: str, store: Path) -> MlflowClient:
    """Return a client of the tracking store at `uri` (empty: the store's database), after it has answered once.

    Raises: whatever MLflow raises when the tracking store cannot be used.
    """
    import logging

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    if uri:
        # The URI in the environment may contain a password, which is never written to disk.
        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"] if uri == user_uri() else uri)
        client.search_experiments(max_results=1)
        return client
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(str(store / "mlflow.lock")):  # two processes that migrate a new database at once break it
        client = MlflowClient(store_uri(store))
        client.search_experiments(max_results=1)
    return client


class Uploader:
    """Delivers the journal of one run; `refused` collects messages about entries that MLflow does not accept."""

    def __init__(self, client: MlflowClient, journal: Journal, store: Path) -> None:
        self._client = client
        self._journal = journal
        self._store = store
        self._run_id = ""
        self.refused: list[str] = []

    def deliver(self) -> None:
        """Send every event that the target in use does not have. Raises: whatever MLflow raises."""
        link = self._journal.load_link()
        assert link is not None
        if not self._run_id:
            link = self._journal.write_link(self._find_or_create_run(link))
            self._run_id = link.targets[link.uri].run_id
        for events, end in self._journal.read(link.targets[link.uri].delivered):
            self._send(events)
            link = self._journal.write_link(update_target(link, Target(self._run_id, end)))

    def _find_or_create_run(self, link: RunLink) -> RunLink:
        """Return the link to a run that exists: the one it names, one tagged with its id, or a new one."""
        target = link.targets.get(link.uri)
        if target is not None and self._exists(target.run_id):
            return link
        experiment = self._experiment(link)
        runs = self._client.search_runs([experiment], f"tags.`bench.book` = '{link.id}'", max_results=1)
        if not runs:  # else the run was created, but a lost answer or a kill kept its id from being recorded
            start, tags = self._find_start_ms(), {"bench.book": link.id}
            runs.append(self._client.create_run(experiment, start_time=start, tags=tags, run_name=link.name))
        return update_target(link, Target(runs[0].info.run_id, 0))

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment(self, link: RunLink) -> str:
        from mlflow.exceptions import MlflowException

        location = None if link.uri else (self._store.resolve() / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(link.experiment, artifact_location=location))
        except MlflowException as error:
            found = self._client.get_experiment_by_name(link.experiment)
            if found is None:
                raise error
        if found.lifecycle_stage != "active":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_start_ms(self) -> int | None:
        for events, _ in self._journal.read():
            return int(events[0]["ms"]) if events else None
        return None

    def _send(self, events: list[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        def merged(kind: str) -> dict[str, Any]:
            """Return the values of all events of a kind; the last value of a key wins."""
            return {k: v for e in events if e["kind"] == kind for k, v in e["values"].items()}

        points = [e for e in events if e["kind"] == "metrics"]
        metrics = [Metric(_key(k), float(v), e["ms"], e["step"]) for e in points for k, v in e["values"].items()]
        self._log_batch("params", [Param(_key(k), str(v)[:MAX_PARAM]) for k, v in merged("params").items()])
        self._log_batch("tags", [RunTag(_key(k), str(v)[:MAX_TAG]) for k, v in merged("tags").items()])
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
                if error.error_code not in REFUSALS:
                    raise
                if len(part) == 1:
                    self.refused.append(f"{kind} {part[0].key}: {first_line(error)}")
                else:  # one bad entry fails the whole batch: send the entries one by one
                    for entry in part:
                        self._log_batch(kind, [entry])

    def _log_file(self, event: Event) -> None:
        path = self._journal.folder / event["path"]  # an absolute path replaces the folder
        if not path.exists():
            self.refused.append(f"{event['kind']} {path}: the file is gone")
        elif path.is_dir():
            self._client.log_artifacts(self._run_id, str(path), posixpath.join(event["under"], path.name))
        else:
            self._client.log_artifact(self._run_id, str(path), event["under"] or None)
        if event["kind"] == "table":
            # As MLflow's log_table, except that a repeated delivery does not append to the table.
            tables = sorted(p.name for p in path.parent.glob("*.json"))
            value = json.dumps([{"path": name, "type": "table"} for name in tables])
            self._client.set_tag(self._run_id, "mlflow.loggedArtifacts", value)

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
    """Return the type and the first line of an error; MLflow's messages have many lines."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def switch_target(link: RunLink, uri: str) -> RunLink:
    """Return the link with another tracking store in use; it still records what the others have."""
    return link if link.uri == uri else replace(link, uri=uri)


def _key(text: str) -> str:
    """Return a key that MLflow accepts: other characters become `_`, the path is normalised, the length limited."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", text).lstrip("/") or "_")[:MAX_KEY]
