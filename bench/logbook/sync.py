"""`bench sync`: delivers what a tracking server missed, and the end of runs whose process was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import Timeout

from bench.logbook.journal import Journal, journals
from bench.logbook.uploader import Uploader, connect, first_line, switch_target, user_uri

UP_TO_DATE, DELIVERED, IN_PROGRESS, FAILED = "up to date", "delivered", "in progress", "failed"


def sync(store: Path, warn: Callable[[str], None]) -> list[tuple[str, str]]:
    """Deliver everything that MLflow does not have of the store's runs; return (run key, outcome) of each run.

    A run goes to MLFLOW_TRACKING_URI if it is set, else to the tracking store that it was logged to. Runs in progress
    are skipped. An outcome is one of the four constants above; `warn` gets the reason of a failure.
    """
    backlog = Backlog(store, warn)
    return [(journal.folder.name, backlog.deliver(journal)) for journal in journals(store)]


class Backlog:
    """Delivers journals that no process is working on; tries to connect to each tracking store only once."""

    def __init__(self, store: Path, warn: Callable[[str], None]) -> None:
        self._store = store
        self._warn = warn
        self._clients: dict[str, Any] = {}

    def deliver(self, journal: Journal) -> str:
        """Deliver one journal and return the outcome."""
        try:
            with journal.lock().acquire(timeout=0):
                journal.end_if_dead()
                return UP_TO_DATE if journal.is_delivered() else self._send(journal)
        except Timeout:
            return IN_PROGRESS

    def _send(self, journal: Journal) -> str:
        link = journal.load_link()
        assert link is not None
        uri = user_uri() or link.uri
        if uri not in self._clients:
            self._clients[uri] = self._connect(uri)
        if self._clients[uri] is None:
            return FAILED
        journal.write_link(switch_target(link, uri))
        uploader = Uploader(self._clients[uri], journal, self._store)
        try:
            uploader.deliver()
        except Exception as error:
            self._warn(f"MLflow failed on {journal.folder}: {first_line(error)}; run `bench sync` again")
            return FAILED
        for refusal in uploader.refused:
            self._warn(f"MLflow did not take an entry of {journal.folder}: {refusal}")
        return DELIVERED

    def _connect(self, uri: str) -> Any:
        try:
            return connect(uri, self._store)
        except Exception as error:
            self._warn(
                f"MLflow at {uri or self._store} cannot be reached ({first_line(error)}); "
                f"start it or set MLFLOW_TRACKING_URI, then run `bench sync` again"
            )
            return None
