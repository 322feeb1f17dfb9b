"""The cores that a process may use, where a container limits its CPU time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import machine

V1 = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cgroup.procs": "1\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, math.inf),
        # The limit of an outer group holds for the inner ones.
        (
            {
                "proc/self/cgroup": "0::/user.slice/job.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "400000 100000\n",
            },
            1.5,
        ),
        # A container that sees its own group as the root, under the name it has outside.
        ({"proc/self/cgroup": "0::/../../docker/abc\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
        # The memory controller of v1 beside a v2 group that limits the CPU.
        ({"proc/self/cgroup": "4:memory:/a\n0::/a\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"}, 2.0),
    ],
)
def test_the_quota_of_a_container_is_read(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    assert machine.cpu_quota(write(tmp_path, files)) == expected


@pytest.mark.parametrize(("quota", "allowed", "expected"), [(0.5, 8, 1), (2.5, 8, 3), (math.inf, 8, 8), (16.0, 2, 2)])
def test_cores_are_those_of_the_quota_and_of_the_affinity(
    quota: float, allowed: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(allowed)))
    assert machine.cores() == expected
