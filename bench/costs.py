"""What a system costs, measured alike for encoders and matchers: memory, time per query, speed of fingerprinting.

All on one thread, in CPU time of this process (on a GPU in wall time), so that the other jobs of a busy machine count
little. Loading and building are not part of a query, and neither are impostors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from bench.data import BenchmarkData
from bench.machine import find_busy_cores
from bench.search.searcher import Searcher
from bench.settings import EvalConfig
from bench.store import Store, digest, read_frame, write_frame
from bench.values import RATE_HZ, Cell, Progress

FORMAT = 2  # of the costs in the store
COSTS = "costs.parquet"
COLUMNS = (
    "index", "sequence", "length_s", "ms_per_query", "ms_per_query_p90", "n", "bytes_per_hour", "fixed_bytes",
    "audio_s_per_s", "device", "busy_cores",
)  # fmt: skip
WARM_UP = 3  # queries answered before the clock starts
FINGERPRINTED_S = 120.0  # of music, to measure the speed of fingerprinting
QUERY_CELL = Cell("clean")


def measure_costs(
    searcher: Searcher, data: BenchmarkData, config: EvalConfig, store: Store, progress: Progress
) -> pd.DataFrame:
    """Return one row for each search and query length, with COLUMNS; measured once, then kept in the store.

    `ms_per_query` is the median over `n` queries, answered one at a time with `eval.top_k` places, from the wave at
    16 kHz to the answer; `bytes_per_hour` is what the database takes per hour of its music, without `fixed_bytes`;
    `audio_s_per_s` is how many seconds of music are fingerprinted per second. `busy_cores` tells how many cores of the
    machine were busy just before. The times are NaN, with an `n` of 0, at a length that is too short for the system.
    """
    device, settings = searcher.device, (config.lengths_s, config.top_k, config.cost_queries)
    key = digest(FORMAT, searcher.key, data.queries.key, settings, str(device))

    def build(folder: Path) -> None:
        busy = find_busy_cores()
        with _one_thread():
            speed = _measure_fingerprinting(searcher, data, device)
            table = _measure_queries(searcher, data, config, device, progress)
        hours = sum(data.music.num_samples(int(track)) for track in searcher.tracks) / RATE_HZ / 3600
        grows = (table.pop("num_bytes") - table["fixed_bytes"]) / hours
        table = table.assign(bytes_per_hour=grows, audio_s_per_s=speed, device=str(device), busy_cores=busy)
        write_frame(folder / COSTS, table[list(COLUMNS)])

    return read_frame(store.fetch("costs", key, build) / COSTS)


def _measure_queries(
    searcher: Searcher, data: BenchmarkData, config: EvalConfig, device: torch.device, progress: Progress
) -> pd.DataFrame:
    rows, searches = [], searcher.searches()
    queries = range(min(config.cost_queries, len(data.queries.table)))
    too_short = searcher.facts.get("lengths_too_short_s", ())
    for i, length_s in enumerate(config.lengths_s):
        progress("costs", i, len(config.lengths_s))
        asked = () if length_s in too_short else queries
        waves = [data.queries.wave(QUERY_CELL, query, length_s)[None] for query in asked]
        for search in searches:
            for wave_1T in waves[:WARM_UP]:
                search.answer(wave_1T)
            ms = [1000 * _time(partial(search.answer, wave_1T), device) for wave_1T in waves]
            rows.append(
                {
                    "index": search.index,
                    "sequence": search.sequence,
                    "length_s": length_s,
                    "ms_per_query": float(np.median(ms)) if ms else np.nan,
                    "ms_per_query_p90": float(np.quantile(ms, 0.9)) if ms else np.nan,
                    "n": len(ms),
                    "num_bytes": search.num_bytes,
                    "fixed_bytes": search.fixed_bytes,
                }
            )
    progress("costs", len(config.lengths_s), len(config.lengths_s))
    return pd.DataFrame(rows)


def _measure_fingerprinting(searcher: Searcher, data: BenchmarkData, device: torch.device) -> float:
    """Return how many seconds of music are fingerprinted per second, over FINGERPRINTED_S of it or all there is."""
    tracks = list(_take_tracks(searcher, data))
    searcher.fingerprint(tracks[:1])
    seconds = _time(partial(searcher.fingerprint, tracks), device)
    return sum(map(len, tracks)) / RATE_HZ / max(seconds, 1e-9)


def _take_tracks(searcher: Searcher, data: BenchmarkData) -> Iterator[npt.NDArray[np.int16]]:
    """Yield whole tracks of the database until they amount to FINGERPRINTED_S, at least one."""
    taken_s = 0.0
    for track in searcher.tracks:
        if taken_s >= FINGERPRINTED_S:
            return
        wave_T = data.music.read(int(track), 0, data.music.num_samples(int(track)))
        taken_s += len(wave_T) / RATE_HZ
        yield wave_T


def _time(call: Callable[[], object], device: torch.device) -> float:
    """Return how long a call takes in seconds: of CPU time, or on a GPU of wall time."""
    if device.type == "cpu":
        began_s = time.process_time()
        call()
        return time.process_time() - began_s
    torch.cuda.synchronize(device)
    began_s = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - began_s


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch, OpenMP and BLAS to one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
