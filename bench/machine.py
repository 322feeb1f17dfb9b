"""The cores that this process may use, and how it frees memory."""

from __future__ import annotations

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def cores() -> int:
    """Return how many cores this process may use, which may be fewer than the machine has (containers, batch jobs)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the kernel.

    Why: torch on the CPU allocates and frees the activations of every step. By default each allocation maps fresh
    pages, and the page faults took a third of a training step (docs/experiments.md, "glibc's default memory
    thresholds"). Without glibc nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
