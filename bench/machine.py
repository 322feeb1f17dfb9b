"""The cores that this process may use, and how it frees memory."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants of glibc's malloc.h
LARGEST_INT = 2**31 - 1


def cores() -> int:
    """Return how many cores this process may use, which may be fewer than the machine has (containers, batch jobs).

    A share of a core is rounded up: two and a half cores of CPU time keep three threads busy.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, cpu_quota()))


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many cores' worth of time the control groups of this process may use, inf if they have no limit.

    The limit of a group holds for the groups inside it too, so the lowest on the way up counts.
    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (v1).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return math.inf  # not Linux, or a sandbox
    limits = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:
            limits += [_read_v2_quota(folder) for folder in _list_groups(root / "sys/fs/cgroup", group)]
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                limits += [_read_v1_quota(folder) for folder in _list_groups(root / "sys/fs/cgroup" / mount, group)]
    return min(limits)


def _list_groups(mount: Path, group: str) -> list[Path]:
    """Return the folders of a group and of all groups around it.

    A container may see its own group at the root of the mount while its name is that outside: folders that do not
    exist have no limit.
    """
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts) + 1)]


def _read_v2_quota(folder: Path) -> float:
    return _divide(_read_words(folder / "cpu.max"))


def _read_v1_quota(folder: Path) -> float:
    return _divide(_read_words(folder / "cpu.cfs_quota_us") + _read_words(folder / "cpu.cfs_period_us"))


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _divide(words: list[str]) -> float:
    """Return quota over period in microseconds; inf for `max`, for -1 and for a file that is not there."""
    try:
        quota, period = (float(word) for word in words)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


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
