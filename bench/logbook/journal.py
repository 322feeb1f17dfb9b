"""The journal of a run: every logged event as one line on disk, and how many of them MLflow has.

`<store>/runs/<run key>/events.jsonl` is the source of truth. `mlflow.json` beside it names the MLflow run of these
events and the byte up to which they were delivered. A process that logs or delivers holds the lock `book.lock`; the
kernel frees it when the process dies, so a free lock means that no process is working on the run.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.errors import StoreError
from bench.logbook.salvage import blank_rest, describe_damage, find_objects, keep_copy
from bench.store import read_json, write_json

Event = dict[str, Any]
EVENTS = "events.jsonl"
KEYS = ("kind", "ms")  # of every event
RUN_LINK = "mlflow.json"
SLICE_BYTES = 1 << 20  # events are delivered in parts of this size, and each delivery is recorded on disk
TAIL_BYTES = 4096  # much longer than the line of a status event


@dataclass(frozen=True)
class Target:
    """A tracking store that has events of this run."""

    run_id: str
    """The run's id in it."""

    delivered: int
    """How many bytes of the journal it has."""

    refused: tuple[Event, ...] = ()
    """Artefacts that it refused, which `bench sync` sends once more."""


@dataclass(frozen=True)
class RunLink:
    """The link from a run's folder to its MLflow run."""

    experiment: str
    name: str

    uri: str
    """The target in use, empty for the store's MLflow database."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """A tag of the MLflow run, by which it is found if the answer to its creation was lost."""

    targets: dict[str, Target] = field(default_factory=dict)
    """Each target that the run was delivered to, by URI."""


class Journal:
    """Reads and appends the events of one run folder. Threads may append at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / EVENTS
        self._writing = threading.Lock()
        self._torn = False
        self._ended = False

    def lock(self) -> FileLock:
        """Return the lock that a process holds while it logs to or delivers from this folder."""
        return FileLock(str(self.folder / "book.lock"))

    def load_link(self) -> RunLink | None:
        """Return the folder's link to MLflow, None if it is missing or unreadable."""
        try:
            values = read_json(self.folder / RUN_LINK)
            return RunLink(**{**values, "targets": {uri: Target(**t) for uri, t in values["targets"].items()}})
        except (StoreError, TypeError, KeyError):
            return None

    def write_link(self, link: RunLink) -> RunLink:
        """Write the folder's link to MLflow and return it."""
        write_json(self.folder / RUN_LINK, asdict(link))
        return link

    def append(self, kind: str, **values: object) -> None:
        """Append one event with the time in ms. Events after the status that ends a session are dropped.

        Raises: OSError if the disk is full.
        """
        line = json.dumps({"kind": kind, "ms": time.time_ns() // 1_000_000, **values}, default=str)
        with self._writing, self._path.open("ab", buffering=0) as file:
            if self._ended and kind != "status":
                return  # from a thread that was late
            self._ended = kind == "status" and values["value"] != "RUNNING"
            data = b"\n" * self._torn + line.encode() + b"\n"
            self._torn = True  # until the line is complete; after a failure the next event starts a new line
            if file.write(data) != len(data):
                raise OSError(f"no space left for {self._path}")
            self._torn = False

    def mend(self) -> list[str]:
        """Remove an incomplete last line and blank the damaged parts of others; call it under the lock.

        Return a sentence on the damaged lines, of which a copy is kept. All else keeps its place in the file.
        """
        if not self._path.is_file():
            return []
        data = self._path.read_bytes()
        complete_bytes, start = data.rfind(b"\n") + 1, 0
        damaged: dict[int, int] = {}
        blanked: dict[int, bytes] = {}  # by position
        for number, line in enumerate(data[:complete_bytes].split(b"\n"), 1):
            found = [part for part, _ in find_objects(line, KEYS)]
            sound = blank_rest(line, found)
            if sound.strip() != line.strip():
                damaged[number], blanked[start] = len(found), sound
            start += len(line) + 1
        sentences = [describe_damage(self._path, damaged, keep_copy(self._path))] if damaged else []
        with self._path.open("r+b") as file:
            for position, sound in blanked.items():
                file.seek(position)
                file.write(sound)
            file.truncate(complete_bytes)
        return sentences

    def read(self, start: int = 0) -> Iterator[tuple[list[Event], int]]:
        """Yield (events, byte after them) in parts from byte `start`, up to the last complete line."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            while data := file.read(SLICE_BYTES) + file.readline():
                whole = data[: data.rfind(b"\n") + 1]
                if whole:
                    start += len(whole)
                    yield [event for line in whole.split(b"\n") for event in _parse(line)], start
                if len(whole) < len(data):
                    return

    def is_delivered(self, target: Target | None) -> bool:
        """Return whether a target has every event; None is one that was never delivered to."""
        size = self._path.stat().st_size if self._path.is_file() else 0
        return size <= (target.delivered if target else 0)

    def is_open(self) -> bool:
        """Return whether the last session did not log its end, as after a kill."""
        if not self._path.is_file():
            return False
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - TAIL_BYTES))
            last = _parse(file.read().rstrip(b"\n").rpartition(b"\n")[2])
        return not last or last[-1]["kind"] != "status" or last[-1]["value"] == "RUNNING"

    def end_if_dead(self) -> None:
        """Log KILLED as the end of a session whose process died, after `mend`; call it under the lock."""
        if self.is_open():
            self.append("status", value="KILLED")


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from, according to its journal. A resumed run has several sessions."""

    tags: Mapping[str, str] = field(default_factory=dict)

    data_digests: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Digests by (name of the data set, "train" or "eval")."""

    began_ms: int | None = None
    """When the first session began."""

    took_ms: int = 0
    """How long all sessions took together."""


def read_provenance(folder: Path) -> Provenance:
    """Return the provenance of the run in a folder; empty without a journal."""
    tags: dict[str, str] = {}
    data_digests: dict[tuple[str, str], str] = {}
    began_ms: list[int] = []
    took_ms = 0
    for events, _ in Journal(folder).read():
        for event in events:
            if event["kind"] == "tags":
                tags |= event["values"]
            elif event["kind"] == "dataset":
                data_digests[event["name"], event["context"]] = event["digest"]
            elif event["kind"] == "status":
                if event["value"] == "RUNNING":
                    began_ms.append(event["ms"])
                elif began_ms:
                    took_ms += event["ms"] - began_ms[-1]
    return Provenance(tags, data_digests, min(began_ms, default=None), took_ms)


def update_target(link: RunLink, target: Target) -> RunLink:
    """Return the link with a new state of the target in use."""
    return replace(link, targets={**link.targets, link.uri: target})


def journals(store: Path) -> list[Journal]:
    """Return the journal of every run in the store, in the order of their keys."""
    return [Journal(path.parent) for path in sorted((store / "runs").glob(f"*/{RUN_LINK}"))]


def _parse(line: bytes) -> list[Event]:
    """Return the events of a line: one, unless the line is damaged or was cut short by a full disk or a kill."""
    try:
        event = json.loads(line)
    except ValueError:
        return [event for _, event in find_objects(line, KEYS)]
    return [event] if isinstance(event, dict) and all(key in event for key in KEYS) else []
