"""Ranges of rows in threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.kernels.rows import for_ranges, num_parts

FORKS = """
import os, sys, torch
from bench.kernels.rows import for_ranges
torch.set_num_threads(3)
for_ranges(lambda first, end, part: None, 9)
child = os.fork()
if not child:
    seen = []
    for_ranges(lambda first, end, part: seen.append(part), 9)
    os._exit(len(seen))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 17])
def test_ranges_are_all_rows_once_and_in_order(count: int, rows: int) -> None:
    torch.set_num_threads(count)
    ranges = {}
    for_ranges(lambda first, end, part: ranges.update({part: (first, end)}), rows)
    assert sorted(ranges) == list(range(count)) == list(range(num_parts()))
    assert [row for part in range(count) for row in range(*ranges[part])] == list(range(rows))


@pytest.mark.parametrize("part", [0, 2])
def test_error_of_any_range_is_raised(part: int) -> None:
    def fail(first: int, end: int, at: int) -> None:
        if at == part:
            raise ValueError(f"in part {at}")

    torch.set_num_threads(3)
    with pytest.raises(ValueError, match=f"in part {part}"):
        for_ranges(fail, 9)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_forked_process_has_threads_of_its_own() -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", FORKS], timeout=120, capture_output=True, text=True)
    assert ended.returncode == 3, ended.stderr
