"""Measures what the logbook costs a training step: the same steps with and without it, in alternation."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.logbook import open_book
from bench.logbook.book import SYSTEM_S
from bench.train.loop import Watch, watch_nothing
from bench.values import Progress

BLOCK_S = 2 * SYSTEM_S  # long enough for two samples of the machine's load and four deliveries to MLflow


def block_steps(steps: int, step_ms: float) -> int:
    """Return how many steps a block has: at least `steps`, and as many as take BLOCK_S."""
    return max(steps, math.ceil(1000 * BLOCK_S / step_ms))


def measure_overhead(
    take: Callable[[int, Watch], None],
    wait: Callable[[], None],
    pairs: int,
    steps: int,
    store: Path,
    warn: Callable[[str], None],
    progress: Progress,
) -> dict[str, float]:
    """Return the ratio of a step's time with the logbook to its time without, over pairs of blocks of `steps` steps.

    `take(step, watch)` takes a step and passes its metrics to `watch`; `wait()` waits until the device is idle.
    The logbook is that of a run: a journal on disk, and a thread that delivers to MLflow and samples the machine. It
    writes to a temporary store inside `store` (or to MLFLOW_TRACKING_URI). Opening and closing it, which happens once
    per run, is not timed.
    """
    done = 0

    def block(watch: Watch) -> float:
        """Return the mean time of a step in ms."""
        nonlocal done
        wait()
        began_s = time.perf_counter()
        for step in range(done, done + steps):
            take(step, watch)
        wait()
        spent_s = time.perf_counter() - began_s
        done += steps
        progress("with and without tracking", done, 2 * pairs * steps)
        return 1000 * spent_s / steps

    store.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=store, prefix="tracking-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch) / "runs" / "tracking"

        def with_logbook() -> float:
            with open_book(folder, experiment="speed", name="tracking", store=Path(scratch), warn=warn) as book:
                return block(book.metrics)

        with open_book(folder, experiment="speed", name="tracking", store=Path(scratch), warn=warn):
            pass  # imports mlflow and creates its database, which must not be timed
        return {"steps": steps} | measure_alternately(lambda: block(watch_nothing), with_logbook, pairs)


def measure_alternately(without: Callable[[], float], with_it: Callable[[], float], pairs: int) -> dict[str, float]:
    """Return median, least and largest ratio of pairs of measurements in ms; every second pair is in reverse order."""
    plain_ms: list[float] = []
    tracked_ms: list[float] = []
    for pair in range(pairs):
        order = [(plain_ms, without), (tracked_ms, with_it)]
        for times, measure in order if pair % 2 == 0 else reversed(order):
            times.append(measure())
    ratios = [tracked / plain for plain, tracked in zip(plain_ms, tracked_ms, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "pairs": pairs,
        "without_ms": statistics.median(plain_ms),
        "with_ms": statistics.median(tracked_ms),
    }
