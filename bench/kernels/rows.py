"""Runs a compiled kernel on ranges of rows, one range for each thread of torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def for_ranges(kernel: Callable[[int, int, int], None], num_rows: int) -> None:
    """Call kernel(first, end, part) for equal ranges of the rows; `part` counts them from 0 to `num_parts()`.

    The kernel has to release the GIL. The ranges depend on the number of threads alone, and so do sums over them.
    """
    parts = num_parts()
    bounds = [num_rows * part // parts for part in range(parts + 1)]
    others = [_pool(parts - 1).submit(kernel, bounds[part], bounds[part + 1], part) for part in range(1, parts)]
    kernel(bounds[0], bounds[1], 0)
    for other in others:
        other.result()


def num_parts() -> int:
    """Return into how many ranges the rows are divided."""
    return torch.get_num_threads()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, threads), "bench-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has no threads but its first
