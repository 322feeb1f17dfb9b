"""Measures one index in a separate process: time to build, time per query vector, memory.

The process is separate so that its memory is that of the index, and so that its death is a result and not the end of
the comparison. The process imports this file again, so this file imports little: before the build, memory should hold
only the plug-in and its library.

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

CALLS, FEW_CALLS = 100, 3  # searches of one vector: this many, or at least a few if they take MOST_S
BATCHES = 5  # searches of all vectors at once
LEAST_S, MOST_S = 1.0, 60.0  # spent on searches of either kind
POLL_S = 0.02  # between two readings of a process's memory
STEPS = 3  # the build, searches of one vector, searches of all vectors
PRIVATE_MEMORY = ("RssAnon", "RssShmem")  # fields of /proc/<pid>/status: all memory except mapped files
NO_MEMORY = ("out of memory", "allocate memory", "bad_alloc")  # in the error messages of torch and C++

Status = Literal["measured", "not installed", "out of memory", "failed"]


@dataclass(frozen=True)
class Costs:
    """What an index costs. Both memory figures are in excess of what the process held before the build."""

    exact: bool
    num_bytes: int
    build_s: float

    single_ms: float
    """Time to search one vector alone: the median of `single_calls` searches."""

    single_calls: int

    batched_ms: float
    """Time per vector when all are searched at once: the median of several searches."""

    peak_mib: float
    """The peak of resident memory, including pages of the memory-mapped database."""

    own_mib: float
    """The peak of what the process allocated itself, read every 20 ms."""


@dataclass(frozen=True)
class Measurement:
    """The outcome of measuring one index."""

    outcome: Status

    reason: str = ""
    """Why there are no costs and no neighbours; empty if there are."""

    costs: Costs | None = None

    near_PK: Ints | None = None
    """The nearest vectors that it found."""


def measure_isolated(
    name: str, index: str, settings: dict[str, Any], path: Path, vector_PD: Floats, top_k: int, progress: Progress
) -> Measurement:
    """Return the measurement of an index plug-in on the vectors in the file `path`; `name` names the progress."""
    context = multiprocessing.get_context("spawn")  # a fork would start with the memory of this process
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_measure, args=(theirs, index, settings, path, vector_PD, top_k), daemon=True, name=f"bench {name}"
    )
    process.start()
    theirs.close()
    # Read the messages of the process; while there is none, watch its memory.
    before_mib, peak_mib = None, 0.0
    try:
        while True:
            if not ours.poll(POLL_S):
                peak_mib = max(peak_mib, 0.0 if before_mib is None else status_mib(process.pid, *PRIVATE_MEMORY))
                continue
            kind, *content = ours.recv()
            if kind == "step":
                step, used_mib = content
                before_mib = used_mib if before_mib is None else before_mib
                peak_mib = max(peak_mib, used_mib)
                progress(name, step, STEPS)
            elif kind == "found":
                costs, near_PK = content
                progress(name, STEPS, STEPS)
                return Measurement("measured", "", Costs(**costs, own_mib=peak_mib - (before_mib or 0.0)), near_PK)
            else:
                return Measurement(*content)
    except (EOFError, ConnectionResetError):  # the process died without a message
        process.join()
        if process.exitcode == -signal.SIGKILL:
            return Measurement("out of memory", "its process was killed, most likely because memory ran out")
        return Measurement("failed", f"its process died with exit code {process.exitcode}")
    finally:
        ours.close()
        process.kill()
        process.join()


def _measure(pipe: Connection, index: str, settings: dict[str, Any], path: Path, vector_PD: Floats, top_k: int) -> None:
    """Measure one index in this process, and send the costs and neighbours, or the reason why there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent process, which kills this one
    with suppress(OSError):  # if memory runs out, the kernel should kill this process and not its parent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    try:
        plugin = registry.load("index", index)
        config, vectors_ND = plugin.Config(**settings), read_array(path)
        plugin.build(config, vectors_ND[:2])  # fails if its library is not installed, else loads it into memory
        before_mib = status_mib("self", "VmRSS")
        pipe.send(("step", 0, status_mib("self", *PRIVATE_MEMORY)))
        began_s = time.perf_counter()
        built = plugin.build(config, vectors_ND)
        build_s = time.perf_counter() - began_s
        pipe.send(("step", 1, status_mib("self", *PRIVATE_MEMORY)))
        # In random order: adjacent segments have the same neighbours, which would then be in the cache.
        order_P = np.random.default_rng(0).permutation(len(vector_PD))
        built.neighbours(vector_PD[:1], top_k)
        singles_ms, _ = _times_ms(
            lambda i: built.neighbours(vector_PD[order_P[i % len(order_P)]][None], top_k), CALLS, FEW_CALLS
        )
        pipe.send(("step", 2, status_mib("self", *PRIVATE_MEMORY)))
        batches_ms, near_PK = _times_ms(lambda _: built.neighbours(vector_PD, top_k), BATCHES, 1)
        costs = {
            "exact": bool(built.exact), "num_bytes": int(built.num_bytes), "build_s": build_s,
            "single_ms": statistics.median(singles_ms), "single_calls": len(singles_ms),
            "batched_ms": statistics.median(batches_ms) / len(vector_PD), "peak_mib": _peak_mib() - before_mib,
        }  # fmt: skip
        pipe.send(("found", costs, near_PK))
    except BenchError as error:
        pipe.send(("ended", "not installed" if isinstance(error.__cause__, ImportError) else "failed", str(error)))
    except Exception as error:  # any error of a plug-in becomes a row of the table
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        no_memory = isinstance(error, MemoryError) or any(text in message for text in NO_MEMORY)
        pipe.send(("ended", "out of memory" if no_memory else "failed", message))


def _times_ms(work: Callable[[int], Ints], calls: int, few: int) -> tuple[list[float], Ints]:
    """Return the time of each call and the last answer.

    There are at least `calls` calls, which take at least LEAST_S; but after MOST_S, `few` are enough.
    """
    times_ms: list[float] = []
    spent_s = 0.0
    while len(times_ms) < few or spent_s < (MOST_S if len(times_ms) < calls else LEAST_S):
        began_s = time.perf_counter()
        answer = work(len(times_ms))
        times_ms.append(1000 * (time.perf_counter() - began_s))
        spent_s += times_ms[-1] / 1000
    return times_ms, answer


def _peak_mib() -> float:
    """Return the peak memory of this process. On Linux ru_maxrss would be wrong: it starts at the parent's."""
    return status_mib("self", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def status_mib(process: int | str | None, *names: str) -> float:
    """Return the sum of these sizes in /proc/<process>/status; 0 where it is gone or the system has none."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0.0
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[name].split()[0]) for name in names if name in sizes) / 1024
