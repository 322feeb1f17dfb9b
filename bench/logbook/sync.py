"""`bench sync`: delivers what a tracking server missed, and the end of runs whose process was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import Timeout

from bench.logbook.journal import Journal, RunLink, journals
from bench.logbook.uploader import (
    Uploader,
    check_tracking,
    connect,
    describe_failure,
    first_line,
    format_refusals,
    switch_target,
    target_uri,
    user_uri,
)

UP_TO_DATE, DELIVERED, IN_PROGRESS, FAILED = "up to date", "delivered", "in progress", "failed"
IN_PART = "delivered in part"


def sync(store: Path, warn: Callable[[str], None]) -> list[tuple[str, str]]:
    """Deliver everything that MLflow does not have of the store's runs; return (run key, outcome) of each run.

    A run goes to MLFLOW_TRACKING_URI if it is set, even if another tracking store has it, else to the one that it was
    logged to. Runs in progress are skipped, and artefacts that were refused are sent once more. An outcome is one of
    the five constants above; `warn` gets the reason of a failure, and what was refused.
    Raises: ConfigError if MLFLOW_TRACKING_URI is a database of Optuna's.
    """
    check_tracking()
    backlog = Backlog(store, warn, thorough=True)
    return [(journal.folder.name, backlog.deliver(journal)) for journal in journals(store)]


class Backlog:
    """Delivers journals that no process is working on; tries to connect to each tracking store only once.

    If `thorough`, it also asks whether a tracking store still has what it was sent, and sends refused artefacts again.
    """

    def __init__(self, store: Path, warn: Callable[[str], None], thorough: bool = False) -> None:
        self._store = store
        self._warn = warn
        self._thorough = thorough
        self._clients: dict[str, Any] = {}

    def deliver(self, journal: Journal) -> str:
        """Deliver one journal and return the outcome."""
        try:
            with journal.lock().acquire(timeout=0):
                return self._deliver_locked(journal)
        except Timeout:
            return IN_PROGRESS

    def _deliver_locked(self, journal: Journal) -> str:
        link = journal.load_link()
        if link is None:
            self._warn(f"mlflow.json of {journal.folder} is damaged; repeat the command of that run to upload it anew")
            return FAILED
        uri = target_uri(self._store) if user_uri() else link.uri
        target = link.targets.get(uri)
        if journal.is_open() or not journal.is_delivered(target):
            for sentence in journal.mend():
                self._warn(sentence)
            journal.end_if_dead()
        if not journal.is_delivered(target):
            return self._send(journal, link, uri)
        if target is None or not self._thorough:
            return UP_TO_DATE
        return self._send_again(journal, link, uri)

    def _send_again(self, journal: Journal, link: RunLink, uri: str) -> str:
        """Send what a tracking store has lost or refused of a journal that it once had."""
        client = self._client(uri)
        if client is None:  # it cannot be asked, and by all that is known it has everything
            return UP_TO_DATE
        try:
            has_run = Uploader(client, journal, self._store).exists(link.targets[uri].run_id)
        except Exception as error:
            self._warn(f"MLflow failed on {journal.folder}: {first_line(error)}; run `bench sync` again")
            return FAILED
        if has_run and not link.targets[uri].refused:
            return UP_TO_DATE
        return self._send(journal, link, uri)

    def _send(self, journal: Journal, link: RunLink, uri: str) -> str:
        client = self._client(uri)
        if client is None:
            return FAILED
        journal.write_link(switch_target(link, uri))
        uploader = Uploader(client, journal, self._store)
        try:
            uploader.deliver(retry=self._thorough)
        except Exception as error:
            self._warn(f"MLflow failed on {journal.folder}: {first_line(error)}; run `bench sync` again")
            return FAILED
        finally:
            if uploader.refused:
                self._warn(format_refusals(uploader.refused, journal.folder))
        return IN_PART if uploader.refused else DELIVERED

    def _client(self, uri: str) -> Any:
        if uri not in self._clients:
            self._clients[uri] = self._connect(uri)
        return self._clients[uri]

    def _connect(self, uri: str) -> Any:
        try:
            return connect(uri, self._store)
        except Exception as error:
            self._warn(f"MLflow at {uri or self._store} {describe_failure(error)}, then run `bench sync` again")
            return None
