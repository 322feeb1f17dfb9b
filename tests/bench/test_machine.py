"""The cores that a process may use, where a container limits its CPU time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench import device, machine

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


def test_the_number_of_threads_is_told_with_what_limits_it() -> None:
    assert machine.explain_threads(3, 8, 4, 2.5, {}) == (
        "3, of 8 cores: the affinity allows 4, a CPU quota of 2.5, OMP_NUM_THREADS is not set"
    )
    assert machine.explain_threads(1, 2, 2, math.inf, {"OMP_NUM_THREADS": "1"}) == (
        "1, of 2 cores: the affinity allows 2, no CPU quota, OMP_NUM_THREADS=1"
    )
    assert machine.thread_settings({"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "", "HOME": "/"}) == {
        "MKL_NUM_THREADS": "2"
    }


@pytest.mark.parametrize(
    ("threads", "busy", "total", "remedy"),
    [
        (2, 0.3, 2, None),  # less than half a core is no job
        (2, 0.9, 2, "OMP_NUM_THREADS=1"),
        (2, 7.5, 2, "OMP_NUM_THREADS=1"),
        (1, 0.9, 2, None),
        (1, 2.0, 2, "wait for them, or limit theirs"),
        (8, 5.0, 8, "OMP_NUM_THREADS=3"),
        (2, 30.0, 64, None),
    ],
)
def test_a_warning_names_how_many_threads_the_free_cores_can_take(
    threads: int, busy: float, total: int, remedy: str | None
) -> None:
    message = machine.describe_busy_cores(threads, busy, total)
    assert message is None if remedy is None else message is not None and remedy in message


@pytest.mark.parametrize(
    ("load", "percent", "expected"),
    [(0.2, 100.0, 0.2), (3.0, 25.0, 1.0), (3.0, 100.0, 3.0)],  # of four cores
)
def test_a_load_of_jobs_that_have_ended_does_not_count(
    load: float, percent: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 9.0, 9.0))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: percent)
    assert machine.find_busy_cores() == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_soon_sleep_unless_the_user_has_chosen(
    chosen: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.os, "environ", dict(chosen))
    machine.spin_briefly()
    assert machine.os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(("settings", "expected"), [({}, [1]), ({"OMP_NUM_THREADS": "4"}, [])])
def test_torch_gets_no_more_threads_than_the_quota_unless_the_user_has_set_them(
    settings: dict[str, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    for name in machine.THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "cores", lambda: 1)  # a quota of half a core
    monkeypatch.setattr(device.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(device.torch, "set_num_threads", given.append)
    device.limit_threads()
    assert given == expected
