"""A full disk in every stage: the store is on a file system that grows until the command fits.

Each attempt has a little more space than the one before, so that each fails at a later write.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from commands import PREPARE, RUN, Ended, digests_of, finish, left_over, logged_in, new_store, numbers_of, statuses_in
from conftest import Campaign, assert_told, catalogue_command, trained_store
from test_kill import copy_runs, sweep_command, trials_of, value_by_settings

SHARE = 0.06  # of the campaign's time, for each command
PAGE_KB = 4
ENOUGH_KB = 1 << 18


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give the root of a small file system, in which `resize` changes how much fits."""
    root = tmp_path / "disk"
    root.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") and _mount(root, PAGE_KB)
    if not mounted:
        pytest.skip("a small file system can be mounted by root only, outside of most containers")
    yield root
    subprocess.run(["umount", "--lazy", str(root)], check=True)


def _mount(root: Path, size_kb: int, *options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size_kb}k"]), "tmpfs", str(root)]
    return subprocess.run(command, capture_output=True).returncode == 0


def fill(
    campaign: Campaign,
    kind: str,
    disk: Path,
    log: Path,
    command: Sequence[str | Path],
    num_attempts: int,
    grow_kb: int,
    **variables: str,
) -> list[Ended]:
    """Repeat a command on a disk that grows at random, until it succeeds; return how each attempt ended.

    The last attempt, after `num_attempts` or the part's share of the time, has more space than it needs.
    """
    draw, end_s = campaign.draw(f"disk {kind}"), campaign.end_of(SHARE)
    size_kb, ends = used_kb(disk) + PAGE_KB, []
    while len(ends) < num_attempts and time.monotonic() < end_s:
        assert _mount(disk, size_kb, "remount")
        ends.append(finish(command, log, **variables))
        if ends[-1].code == 0:
            break
        assert_full_disk_told(ends[-1])
        size_kb = max(size_kb, used_kb(disk)) + draw.randrange(PAGE_KB, grow_kb)
    assert _mount(disk, ENOUGH_KB, "remount")
    ends.append(finish(command, log, **variables))
    assert_told(ends[-1], 0)
    failed = sum(ended.code != 0 for ended in ends)
    campaign.record(f"a full disk in a {kind}", len(ends) - 1, f"{failed} sentences with code 1, then the same numbers")
    return ends


def used_kb(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def assert_full_disk_told(ended: Ended) -> None:
    assert_told(ended, 1)
    sentences = [line for line in ended.output.splitlines() if line.startswith(("error: ", "warning: "))]
    assert sum(line.startswith("error: ") for line in sentences) <= 1, ended
    assert any("space" in line or "disk" in line for line in sentences), ended


def test_run(campaign: Campaign, undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    store = disk / "store"
    assert _mount(disk, ENOUGH_KB, "remount")
    new_store(store, undisturbed)
    fill(campaign, "run", disk, tmp_path / "log", [*RUN, "--store", store], 14, 1_500)
    assert numbers_of(store) == numbers_of(undisturbed)
    assert_told(finish(["sync", "--store", store], tmp_path / "log"), 0)
    assert logged_in(store / "mlflow.db") == logged_in(undisturbed / "mlflow.db")
    assert left_over(store) == []


def test_sweep(campaign: Campaign, undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    store = disk / "store"
    assert _mount(disk, ENOUGH_KB, "remount")
    new_store(store, undisturbed)
    os.symlink(store, tmp_path / "store")
    fill(campaign, "sweep", disk, tmp_path / "log", sweep_command(tmp_path, 2), 8, 4_000)
    trials = trials_of(store)
    assert (trials["repeats"] < 0).sum() >= 2 and value_by_settings(trials)
    assert not set(trials["state"]) & {"running", "waiting"}
    assert_told(finish(["sync", "--store", store], tmp_path / "log"), 0)
    assert "RUNNING" not in statuses_in(store / "mlflow.db")
    assert left_over(store) == []


def test_catalogue_build(
    campaign: Campaign, undisturbed: Path, music: Path, catalogue: Path, disk: Path, tmp_path: Path
) -> None:
    assert _mount(disk, ENOUGH_KB, "remount")
    store = trained_store(disk / "store", undisturbed)
    command = catalogue_command(disk / "made", store, music)
    fill(campaign, "catalogue build", disk, tmp_path / "log", command, 8, 700)
    assert digests_of(disk / "made") == digests_of(catalogue)
    assert not list(disk.glob("*.partial")) and left_over(store) == []


def test_sync(campaign: Campaign, undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    """The disk of the database that is delivered to is full, and so is that of the store."""
    (expected,) = logged_in(undisturbed / "mlflow.db").values()
    assert _mount(disk, ENOUGH_KB, "remount")
    names = copy_runs(undisturbed, disk / "store")
    fill(campaign, "sync", disk, tmp_path / "log", ["sync", "--store", disk / "store"], 8, 500)
    logged = logged_in(disk / "store" / "mlflow.db")
    assert [logged.get(name) for name in names] == [expected] * len(names)
    assert left_over(disk / "store") == []


@pytest.mark.parametrize("kind", ["data prepare", "report", "align --write"])
def test_file_written(
    kind: str, campaign: Campaign, undisturbed: Path, music: Path, disk: Path, tmp_path: Path
) -> None:
    """One output of a command that computes little: it is whole or not there."""
    assert _mount(disk, ENOUGH_KB, "remount")
    new_store(disk / "store", undisturbed)
    pair = sorted(music.glob("*.wav"))[:2]
    command: dict[str, list[str | Path]] = {
        "data prepare": [
            "data",
            "prepare",
            "--dataset",
            "folder",
            "--data-root",
            music,
            "--store",
            disk / "store",
            *PREPARE,
        ],
        "report": ["report", "--store", undisturbed, "--out", disk / "report.html"],
        "align --write": ["align", *pair, "--write", disk / "aligned.wav", "--store", tmp_path / "empty"],
    }
    for free_kb in (0, 16):
        assert _mount(disk, used_kb(disk) + free_kb, "remount")
        assert_full_disk_told(finish(command[kind], tmp_path / "log"))
    assert _mount(disk, ENOUGH_KB, "remount")
    assert_told(finish(command[kind], tmp_path / "log"), 0)
    assert left_over(disk) == []
    campaign.record(f"a full disk in `{kind}`", 2, "a sentence with code 1, then whole")
