"""The tables of aligners, ours and the published ones."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.align.contract import Jump, Pair, TimeMap
from bench.align.evaluate import ORACLE
from bench.align_pair import Alignment
from bench.reports import alignment, lag_path
from bench.values import RATE_HZ


def files(set_name: str) -> pd.DataFrame:
    """Return made-up scores of twelve files: one aligner good, one like it, one bad, and the floor of the grid."""
    mse_s2 = {"good": [1, 2, 1, 2, 1, 2], "alike": [2, 1, 2, 1, 2, 3], "bad": [90, 80, 70, 99, 85, 60], ORACLE: [9] * 6}
    return pd.DataFrame(
        {
            "set": set_name, "split": "test", "aligner": name, "name": f"{number}.wav", "mse_s2": 1e-4 * value,
            "mae_ms": 10.0 * value, "median_ms": 9.0 * value, "num_keypoints": 5, "num_missing": 0, "confidence": 1.0,
        }
        for name, values in mse_s2.items()
        for number, value in enumerate(2 * values)
    )  # fmt: skip


def shown(table: pd.DataFrame) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(alignment.render(table))
    return console.export_text()


def test_table_is_sorted_with_intervals_and_says_who_is_not_worse() -> None:
    text = shown(files("scenes"))
    assert "scenes, test, 12 files" in text and "published" not in text
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert [name for name in names if name in ("good", "alike", "bad", ORACLE)] == ["good", "alike", ORACLE, "bad"]
    assert "alike =" in text and "bad =" not in text and "good =" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("good"))
    assert "0.00015" in row and "15" in row.split()


def test_what_was_published_on_a_set_of_the_challenge_stands_below_by_year_and_split() -> None:
    text = shown(files("aru"))
    assert "published on aru in 2025" in text and "published on aru in 2026" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("crosscor  "))
    assert row.split()[1:] == ["6.861", "1.1"]  # val, then test
    assert all(len(line) <= 80 for line in text.splitlines())


def test_drift_of_a_short_recording_is_not_shown() -> None:
    def told(seconds: int) -> str:
        wave = np.zeros(seconds * RATE_HZ, dtype=np.float32)
        pair = Pair("made", wave, wave, "key")
        knots = TimeMap(pair.keypoints, 1.25 + (1 + 5e-5) * pair.keypoints, np.ones(len(pair.keypoints)))
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(lag_path.render(Alignment(pair, knots, 1.25, 50.0, 0.0, 1.0)))
        return console.export_text()

    assert "+50.0 ppm, 180 ms in an hour" in told(30) and "+1.2500 s at the start" in told(30)
    assert "not measurable in less than 20 s" in told(10) and "ppm" not in told(10)


def test_rows_are_of_the_moments_that_a_short_clip_shares_with_a_long_recording() -> None:
    long, clip = (np.zeros(seconds * RATE_HZ, dtype=np.float32) for seconds in (180, 6))
    pair = Pair("made", long, clip, "key")
    knots = TimeMap(pair.keypoints, pair.keypoints - 133.25, np.ones(len(pair.keypoints)))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(lag_path.render(Alignment(pair, knots, -133.25, 0.0, 0.0, 1.0)))
    text = console.export_text()
    rows = [line.split() for line in text.splitlines() if line.endswith("1.00") or "-133250.0" in line]
    assert [row[:3] for row in rows] == [[f"{134 + i}.0", f"{0.75 + i:.4f}", "-133250.0"] for i in range(6)]
    assert "not measurable" in text  # in the 6 s that both have


def test_what_a_picture_shows_beside_the_line_has_no_jump_in_it() -> None:
    pair = Pair("made", *(np.zeros(40 * RATE_HZ, np.float32) for _ in range(2)), "made")
    lost = TimeMap(
        np.array([0.0, 20.0, 22.0, 39.0]), np.array([1.0, 21.0, 21.0, 38.0]), np.ones(4), (Jump(20.0, -2.0),)
    )
    time0, off_line = Alignment(pair, lost, 1.0, 0.0, 0.0, 1.0).off_line()
    assert 21.0 not in time0 and off_line == pytest.approx(np.zeros(len(time0)), abs=1e-9)
