"""Commands of the product in processes that can be killed, and what they left in their store.

A command is a fork of this process, which has imported the heavy libraries: so it costs seconds less, and the random
instants at which it is killed fall into its own work. It calls `bench.cli.main`, as the installed `bench` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

LIMIT_S = 300.0  # of one command, on a machine that does other things as well
MARK = "BENCH_CAMPAIGN"  # a variable of every process that a command starts: the folder of its log
# Made-up music and a budget with which a run takes seconds.
SMALL = (
    *("music.num_train=4", "music.num_val=2", "music.num_test=3", "music.seconds=4.0", "train.steps=12"),
    *("train.batch_pairs=6", "train.segments_per_track=1", "train.neighbours_per_track=0", "train.val_queries=4"),
    *("train.val_every_steps=6", "train.checkpoint_every_steps=2", "eval.snr_db=[0.0]", "eval.t60_s=[0.3]"),
    *("eval.noise_reverb_t60_s=0.3", "eval.lengths_s=[0.96]", "eval.rooms_per_t60=1", "eval.indexes=['exact']"),
    "pairs.aru-sim.duration_s=12.0",
)
SETTINGS = ("--preset", "tiny", "--dataset", "synth", *(part for one in SMALL for part in ("--set", one)))
RUN = ("run", "--model", "now-playing", *SETTINGS)
# What `data prepare` needs to make the same rooms, for short tracks.
PREPARE = (
    *("--set", "eval.t60_s=[0.3]", "--set", "eval.noise_reverb_t60_s=0.3", "--set", "eval.rooms_per_t60=1"),
    *("--set", "eval.lengths_s=[0.96]"),
)
TIMES = ("system/", "cost/")  # beginnings of metrics that differ from one run to the next
ROOMS = "rooms"  # kind of the store; simulating a bank takes longest, and is the same for all


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    arguments: tuple[str, ...]

    code: int
    """Its exit code; minus the number of the signal that killed it."""

    output: str
    seconds: float

    def __str__(self) -> str:
        return f"bench {' '.join(self.arguments)}: exit code {self.code}, {self.seconds:.0f} s\n{self.output[-4000:]}"


class Started:
    """A command that may be running."""

    def __init__(self, arguments: Sequence[str], log: Path, pid: int) -> None:
        self._arguments, self._log, self._pid = tuple(map(str, arguments)), log, pid
        self._began_s = time.monotonic()
        self._code: int | None = None

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        return self._pid

    def has_ended(self) -> bool:
        """Return whether it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is not None

    def kill(self) -> None:
        """Kill it, and nothing that it started."""
        if not self.has_ended():
            os.kill(self._pid, signal.SIGKILL)

    def wait(self, limit_s: float = LIMIT_S) -> Ended:
        """Return how it ended; one that takes longer than `limit_s` is killed."""
        until_s = self._began_s + limit_s
        while not self.has_ended():
            if time.monotonic() > until_s:
                self.kill()
            time.sleep(0.01)
        assert self._code is not None
        output = self._log.read_text(encoding="utf-8", errors="replace")
        return Ended(self._arguments, self._code, output, time.monotonic() - self._began_s)


def start(arguments: Sequence[str | Path], log: Path, **variables: str) -> Started:
    """Start a command, with its output in the file `log`, in whose folder it runs."""
    texts = [str(each) for each in arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")  # there even if the command is killed before it does anything
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Started(texts, log, pid)
    code = 70  # never seen: below, every way out sets another
    try:
        code = _be_command(texts, log, variables)
    finally:
        os._exit(code)


def finish(arguments: Sequence[str | Path], log: Path, limit_s: float = LIMIT_S, **variables: str) -> Ended:
    """Run a command to its end."""
    return start(arguments, log, **variables).wait(limit_s)


def _be_command(arguments: list[str], log: Path, variables: Mapping[str, str]) -> int:
    from bench.cli import main

    os.setsid()
    log_file, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (log_file, 1), (log_file, 2)):
        os.dup2(descriptor, stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0),
        os.fdopen(1, "w", 1),
        os.fdopen(2, "w", 1, errors="backslashreplace"),
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(log.parent)
    os.environ.update({"COLUMNS": "160", MARK: str(log.parent), **variables})
    sys.argv = ["bench", *arguments]
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    for handler in _exit_handlers():
        handler()
    sys.stdout.flush(), sys.stderr.flush()
    return code


def _exit_handlers() -> list[Callable[[], None]]:
    """Return what an ordinary process does at its end and `os._exit` leaves out."""
    import multiprocessing.util
    import threading

    return [threading._shutdown, multiprocessing.util._exit_function]  # type: ignore[attr-defined]


def left_processes(folder: Path, program: str = "") -> list[int]:
    """Return the processes that still run of the commands with a log in `folder`, or those of one program."""
    found = []
    for process in psutil.process_iter():
        try:
            is_left = process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE
            if is_left and (not program or program in process.cmdline()):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def new_store(folder: Path, rooms_of: Path | None = None) -> Path:
    """Return a new store in `folder`, with the simulated rooms of another."""
    folder.mkdir(parents=True)
    if rooms_of is not None:
        shutil.copytree(rooms_of / ROOMS, folder / ROOMS)
    return folder


def numbers_of(store: Path) -> dict[str, Any]:
    """Return digests of all that runs of a store computed, by folder and file; two equal stores give equal ones.

    Times (`stage.json`, `seconds`) and what MLflow calls things differ from one to the next and are left out.
    """
    found: dict[str, Any] = {}
    for path in sorted(store.rglob("*.parquet")):
        if path.parent.parent.name in ("runs", "hits", "alignments", "conditions", "queries"):
            found[str(path.relative_to(store))] = _digest_of_frame(path)
    for path in sorted(store.glob("weights/*/model.safetensors")):
        found[str(path.relative_to(store))] = _digest_of_tensors(path)
    for pattern in ("fingerprints/*/vectors.npy", "pcm/*/*.i16", "queries/*/*.i16"):
        for path in sorted(store.glob(pattern)):
            found[str(path.relative_to(store))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(store.glob("runs/*/result.json")):
        found[str(path.relative_to(store))] = json.loads(path.read_text())["headline"]
    return found


def _digest_of_frame(path: Path) -> str:
    frame = pd.read_parquet(path)
    return hashlib.sha256(frame.to_json(orient="split", double_precision=15).encode()).hexdigest()


def _digest_of_tensors(path: Path) -> str:
    """Return a digest of the tensors of a file, whose order in it is another in every process."""
    from safetensors.numpy import load_file

    tensors = sorted(load_file(path).items())
    return hashlib.sha256(b"".join(name.encode() + tensor.tobytes() for name, tensor in tensors)).hexdigest()


def logged_in(database: Path, experiment: str = "%") -> dict[str, Any]:
    """Return what an MLflow database has of each run, by run name: status, and its curves without times and load."""
    wanted = "SELECT experiment_id FROM experiments WHERE name LIKE ?"
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        query = f"SELECT run_uuid, name, status FROM runs WHERE experiment_id IN ({wanted}) ORDER BY name"
        runs = connection.execute(query, (experiment,)).fetchall()
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step, value"
        return {
            name: (
                status,
                [row for row in connection.execute(query, (run,)) if not row[0].startswith(("system/", "cost/"))],
            )
            for run, name, status in runs
        }


def digests_of(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def statuses_in(database: Path) -> list[str]:
    """Return the status of every run in an MLflow database."""
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs")]


def left_over(store: Path) -> list[str]:
    """Return the files and folders of a store in which nothing may be in progress that no finished work leaves."""
    patterns = ("**/*.tmp", "**/*.partial", "**/*.tmp.*", "sweeps/*/untold-*.json", "**/*.damaged*")
    return sorted({str(path.relative_to(store)) for pattern in patterns for path in store.glob(pattern)})
