"""The cores that this process may use and those that are free, how its threads wait, and how it frees memory."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # constants of glibc's malloc.h
LARGEST_INT = 2**31 - 1
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables by which a user limits torch
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # OpenMP 5.2, section 21.7; GNU's, which torch ships
SPINS = "3000"  # how often a waiting thread looks before it sleeps: some microseconds
SAMPLE_S = 0.2  # over which the present use of the cores is measured
NOISE_CORES = 0.5  # a load of less than this is no job


def cores() -> int:
    """Return how many cores this process may use, which may be fewer than the machine has (containers, batch jobs).

    A share of a core is rounded up: two and a half cores of CPU time keep three threads busy.
    """
    return math.ceil(min(allowed_cores(), cpu_quota()))


def allowed_cores() -> int:
    """Return on how many cores the affinity of this process lets it run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings of the user that limit the threads of torch."""
    return {name: environment[name] for name in THREAD_SETTINGS if environment.get(name)}


def explain_threads(threads: int, total: int, allowed: int, quota: float, settings: Mapping[str, str]) -> str:
    """Return the number of threads in words, with everything that limits it."""
    limits = f"a CPU quota of {quota:g}" if math.isfinite(quota) else "no CPU quota"
    said = ", ".join(f"{name}={value}" for name, value in settings.items()) or f"{THREAD_SETTINGS[0]} is not set"
    return f"{threads}, of {total} cores: the affinity allows {allowed}, {limits}, {said}"


def find_busy_cores() -> float:
    """Return how many cores of the machine are busy: the load average, or their present use where that is lower.

    The load average counts what ended within the last minute too, such as the run before this one.
    """
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.inf
    if load < NOISE_CORES:
        return load
    return min(load, psutil.cpu_percent(SAMPLE_S) / 100 * (os.cpu_count() or 1))


def describe_busy_cores(threads: int, busy: float, total: int) -> str | None:
    """Return a warning if other jobs leave fewer cores free than there will be threads, else None."""
    free = max(0, round(total - busy))
    if total - busy >= threads - NOISE_CORES:
        return None
    fewer = f" or start with {THREAD_SETTINGS[0]}={max(1, free)}," if threads > max(1, free) else ""
    return (
        f"other jobs keep {busy:.1f} of {total} cores busy, and this one has {threads} "
        f"thread{'s' if threads > 1 else ''}: it will be slow, and its times say nothing; wait for them,{fewer} or "
        "limit theirs"
    )


def spin_briefly() -> None:
    """Let waiting threads of OpenMP soon sleep, unless the user has chosen; call it before torch is imported.

    Why: by default a thread that waits for the others spins, on the core that they need if another job has taken
    theirs. Beside other jobs on two cores a training step took up to 43 times as long; sleeping at once makes one on
    quiet cores 1.5 times as long (docs/experiments.md, "Threads that sleep while they wait"). What is computed is the
    same.
    """
    if not any(name in os.environ for name in WAIT_SETTINGS):
        os.environ[WAIT_SETTINGS[1]] = SPINS


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
