"""The journal of a run: every logged event as one line on disk, and how far MLflow has heard of it.

`<store>/runs/<run key>/events.jsonl` is the truth. `mlflow.json` beside it says which MLflow run
holds these events and up to which byte they were delivered. `book.lock` is held by whoever logs or
delivers; the kernel frees it when that process dies, so a free lock means that nobody is at work.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from bench.errors import StoreError
from bench.store import read_json, write_json

Event = dict[str, Any]
EVENTS = "events.jsonl"
RUN_LINK = "mlflow.json"
SLICE_BYTES = 1 << 20  # events are delivered in parts of this size, each confirmed on disk
TAIL_BYTES = 4096  # far longer than the line of a status event


@dataclass(frozen=True)
class Target:
    """One tracking store that this run was delivered to: the run's id there, bytes of events delivered."""

    run_id: str
    delivered: int


@dataclass(frozen=True)
class RunLink:
    """Where a run belongs in MLflow. `uri` is the target now in use, empty for the store's own database."""

    experiment: str
    name: str
    uri: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    targets: dict[str, Target] = field(default_factory=dict)


class Journal:
    """Reads and appends the events of one run folder. Threads may append at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / EVENTS
        self._writing = threading.Lock()
        self._torn = False
        self._ended = False

    def lock(self) -> FileLock:
        """Return the lock that whoever logs to or delivers from this folder holds."""
        return FileLock(str(self.folder / "book.lock"))

    def load_link(self) -> RunLink | None:
        """Return the folder's card, None if it has none or not one that can be read."""
        try:
            values = read_json(self.folder / RUN_LINK)
            return RunLink(**{**values, "targets": {uri: Target(**t) for uri, t in values["targets"].items()}})
        except (StoreError, TypeError, KeyError):
            return None

    def write_link(self, card: RunLink) -> RunLink:
        """Write the card and return it."""
        write_json(self.folder / RUN_LINK, asdict(card))
        return card

    def append(self, kind: str, **values: object) -> None:
        """Append one event with the time in ms; the status that ends a session is its last event.

        Raises: OSError if the disk is full.
        """
        line = json.dumps({"kind": kind, "ms": time.time_ns() // 1_000_000, **values}, default=str)
        with self._writing, self._path.open("ab", buffering=0) as file:
            if self._ended and kind != "status":
                return  # a thread that was late
            self._ended = kind == "status" and values["value"] != "RUNNING"
            data = b"\n" * self._torn + line.encode() + b"\n"
            self._torn = True  # until the whole line is out; the next one then starts afresh
            if file.write(data) != len(data):
                raise OSError(f"no space left for {self._path}")
            self._torn = False

    def mend(self) -> None:
        """Cut off the half line that a kill in the middle of a write leaves; call it under the lock."""
        if self._path.is_file():
            whole = self._path.read_bytes().rfind(b"\n") + 1
            os.truncate(self._path, whole)

    def read(self, start: int = 0) -> Iterator[tuple[list[Event], int]]:
        """Yield (events, byte after them) in parts from byte `start`, up to the last whole line."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(start)
            while data := file.read(SLICE_BYTES) + file.readline():
                whole = data[: data.rfind(b"\n") + 1]
                if whole:
                    start += len(whole)
                    yield [e for line in whole.splitlines() if (e := _parse(line)) is not None], start
                if len(whole) < len(data):
                    return

    def is_delivered(self) -> bool:
        """Say whether the target in use has every event."""
        card = self.load_link()
        if card is None:
            return True
        target = card.targets.get(card.uri)
        size = self._path.stat().st_size if self._path.is_file() else 0
        return size <= (target.delivered if target else 0)

    def is_open(self) -> bool:
        """Say whether the last session has not written its end, which a killed process cannot do."""
        if not self._path.is_file():
            return False
        with self._path.open("rb") as file:
            file.seek(max(0, self._path.stat().st_size - TAIL_BYTES))
            last = _parse(file.read().rstrip(b"\n").rpartition(b"\n")[2])
        return last is None or last["kind"] != "status" or last["value"] == "RUNNING"

    def end_if_dead(self) -> bool:
        """Write KILLED as the end of a session whose process died; call it under the lock."""
        if not self.is_open():
            return False
        self.mend()
        self.append("status", value="KILLED")
        return True


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from, as its journal tells.

    `data_digests` are by (name of the data set, what it was used for: "train" or "eval"). A run that was resumed has
    several sessions: `began_ms` is the start of the first one, `took_ms` the time that all of them took.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    data_digests: Mapping[tuple[str, str], str] = field(default_factory=dict)
    began_ms: int | None = None
    took_ms: int = 0


def read_provenance(folder: Path) -> Provenance:
    """Return the provenance of the run in a folder; it is empty where there is no journal."""
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


def update_target(card: RunLink, target: Target) -> RunLink:
    """Return the card with the state of the target in use replaced."""
    return replace(card, targets={**card.targets, card.uri: target})


def journals(store: Path) -> list[Journal]:
    """Return the journal of every run of the store, by run key."""
    return [Journal(path.parent) for path in sorted((store / "runs").glob(f"*/{RUN_LINK}"))]


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # a line that a full disk or a kill cut short
    return event if isinstance(event, dict) and "kind" in event else None
