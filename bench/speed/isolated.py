"""One index measured in a process of its own: seconds to build, time of a query vector, memory.

A process of its own, so that its memory is that of the index and its death is an answer. This file imports little, as
that process reads it again: what it holds before the build is the plug-in and its library.

Shape legend: N database vectors, P query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench import registry
from bench.errors import BenchError
from bench.store import read_array
from bench.values import Floats, Ints, Progress

CALLS, FEW_CALLS = 100, 3  # of one vector: the median of that many, of few where the time is up before
BATCHES = 5
LEAST_S, MOST_S = 1.0, 60.0  # spent on calls of one kind
POLL_S = 0.02  # between two looks at the memory of a process
STEPS = 3  # building, one at a time, all at once
PRIVATE_MEMORY = ("RssAnon", "RssShmem")  # of /proc/<pid>/status: all but pages of files
NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc")  # in the errors of torch and of C++

Status = Literal["measured", "not installed", "out of memory", "failed"]


@dataclass(frozen=True)
class Costs:
    """What an index took. Times in ms are per query vector: median of calls of one vector, and of all at once.

    `peak_mib` is all that was resident at the peak, pages of the memory-mapped database included; `own_mib` what the
    process had allocated itself, looked at every 20 ms. Both are above what it held before the build.
    """

    exact: bool
    num_bytes: int
    build_s: float
    single_ms: float
    single_calls: int
    batched_ms: float
    peak_mib: float
    own_mib: float


@dataclass(frozen=True)
class Measurement:
    """How it ended: `reason` says why there are no costs and no answers (P, K)."""

    outcome: Status
    reason: str = ""
    costs: Costs | None = None
    near_PK: Ints | None = None


def measure_isolated(
    name: str, index: str, settings: dict[str, Any], path: Path, vector_PD: Floats, top_k: int, progress: Progress
) -> Measurement:
    """Return what came of measuring an index plug-in on the vectors in the file `path`; `name` is shown meanwhile."""
    spawning = multiprocessing.get_context("spawn")  # a fork would begin with the memory of this process
    ours, theirs = spawning.Pipe()
    process = spawning.Process(
        target=_measure, args=(theirs, index, settings, path, vector_PD, top_k), daemon=True, name=f"bench {name}"
    )
    process.start()
    theirs.close()
    before_mib, most_mib = None, 0.0
    try:
        while True:
            if not ours.poll(POLL_S):
                most_mib = max(most_mib, 0.0 if before_mib is None else _status_mib(process.pid, *PRIVATE_MEMORY))
                continue
            kind, *content = ours.recv()
            if kind == "step":
                step, held_mib = content
                before_mib = held_mib if before_mib is None else before_mib
                most_mib = max(most_mib, held_mib)
                progress(name, step, STEPS)
            elif kind == "found":
                costs, near_PK = content
                progress(name, STEPS, STEPS)
                return Measurement("measured", "", Costs(**costs, own_mib=most_mib - (before_mib or 0.0)), near_PK)
            else:
                return Measurement(*content)
    except (EOFError, ConnectionResetError):  # it is gone without a word
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return Measurement("out of memory", "its process was killed, most likely as memory ran out")
        return Measurement("failed", f"its process died with exit code {process.exitcode}")
    finally:
        ours.close()
        process.kill()
        process.join()


def _measure(pipe: Connection, index: str, settings: dict[str, Any], path: Path, vector_PD: Floats, top_k: int) -> None:
    """Measure one index, in a process of its own; send what was found, or why nothing was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    with suppress(OSError):  # where memory runs out the kernel should end this process, not the one that waits
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        plugin = registry.load("index", index)
        config, vectors_ND = plugin.Config(**settings), read_array(path)
        plugin.build(config, vectors_ND[:2])  # is it installed? If so its library is now in memory
        before_mib = _status_mib("self", "VmRSS")
        pipe.send(("step", 0, _status_mib("self", *PRIVATE_MEMORY)))
        began_s = time.perf_counter()
        built = plugin.build(config, vectors_ND)
        build_s = time.perf_counter() - began_s
        pipe.send(("step", 1, _status_mib("self", *PRIVATE_MEMORY)))
        # In an order of their own: neighbouring segments ask for the same places, which are then in the cache.
        order_P = np.random.default_rng(0).permutation(len(vector_PD))
        built.neighbours(vector_PD[:1], top_k)
        singles_ms, _ = _times_ms(
            lambda i: built.neighbours(vector_PD[order_P[i % len(order_P)]][None], top_k), CALLS, FEW_CALLS
        )
        pipe.send(("step", 2, _status_mib("self", *PRIVATE_MEMORY)))
        batches_ms, near_PK = _times_ms(lambda _: built.neighbours(vector_PD, top_k), BATCHES, 1)
        costs = {
            "exact": bool(built.exact), "num_bytes": int(built.num_bytes), "build_s": build_s,
            "single_ms": statistics.median(singles_ms), "single_calls": len(singles_ms),
            "batched_ms": statistics.median(batches_ms) / len(vector_PD), "peak_mib": _peak_mib() - before_mib,
        }  # fmt: skip
        pipe.send(("found", costs, near_PK))
    except BenchError as error:
        pipe.send(("ended", "not installed" if isinstance(error.__cause__, ImportError) else "failed", str(error)))
    except Exception as error:  # whatever a plug-in raises is a row of the table
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        lacking = isinstance(error, MemoryError) or any(words in told for words in NO_MEMORY)
        pipe.send(("ended", "out of memory" if lacking else "failed", told))


def _times_ms(work: Callable[[int], Ints], calls: int, few: int) -> tuple[list[float], Ints]:
    """Return the time of each call, and the last answer: `calls` and LEAST_S of them, `few` or more if MOST_S is up."""
    times_ms: list[float] = []
    spent_s = 0.0
    while len(times_ms) < few or spent_s < (MOST_S if len(times_ms) < calls else LEAST_S):
        began_s = time.perf_counter()
        answer = work(len(times_ms))
        times_ms.append(1000 * (time.perf_counter() - began_s))
        spent_s += times_ms[-1] / 1000
    return times_ms, answer


def _peak_mib() -> float:
    """Return the most memory this process has held. Not ru_maxrss on Linux, which begins at that of its parent."""
    return _status_mib("self", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mib(process: int | str | None, *names: str) -> float:
    """Return the sum of these sizes in /proc/<process>/status; 0 where it is gone or the system has none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) for name in names if name in sizes) / 1024
