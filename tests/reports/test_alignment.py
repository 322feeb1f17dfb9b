"""The tables of aligners, ours and the published ones."""

from __future__ import annotations

import io

import pandas as pd
from bench.reports import alignment
from rich.console import Console

from bench.align.evaluate import ORACLE


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
    row = next(line for line in text.splitlines() if line.strip().startswith("crosscor"))
    assert row.split()[1:] == ["6.861", "1.1"]  # val, then test
    assert all(len(line) <= 80 for line in text.splitlines())
