"""The table of results by noise."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pandas as pd
from rich.console import Console

from bench.registry import load
from bench.results import Result
from bench.score.rows import to_frame

CATEGORIES = np.array(["rain", "car"], dtype=object)


def result() -> Result:
    cells = pd.DataFrame(
        {"cell": ["clean", "n0", "n5"], "kind": ["clean", "noise", "noise"], "snr_db": [np.nan, 0.0, 5.0]}
    )
    hits = pd.DataFrame(
        [
            {"query": query, "cell": cell, "length_s": 2.0, "index": "exact", "sequence": sequence}
            | {"hit": cell != "n0" or (query == 1 and sequence == "rescore"), "track_hit": True}
            for query in range(2)
            for cell in cells["cell"]
            for sequence in ("rescore", "vote")
        ]
    )
    summary = {"system": "mine", "benchmark": "folder-segment/v1", "index": "exact", "sequence": "rescore"}
    return Result(cells.reindex(columns=to_frame([]).columns), hits, pd.DataFrame(), summary)


def shown(*more: str) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(load("report", "noise").render(result(), CATEGORIES, *more))
    return console.export_text()


def test_table_has_a_row_for_each_category_and_length_and_a_column_for_each_level() -> None:
    text = shown()
    assert "mine on folder-segment/v1: segment-level top-1 by category, noise" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["category", "n", "query", "0", "dB", "5", "dB"] in lines
    assert ["car", "1", "2", "s", "100", "21-100", "100", "21-100"] in lines
    assert ["rain", "1", "2", "s", "0.0", "0-79", "100", "21-100"] in lines


def test_table_is_of_the_search_that_is_named() -> None:
    assert ["car", "1", "2", "s", "0.0", "0-79", "100", "21-100"] in [
        line.split() for line in shown("vote").splitlines()
    ]


def test_rows_are_of_all_searches() -> None:
    rows = load("report", "noise").tabulate(result(), CATEGORIES)
    assert set(rows["sequence"]) == {"rescore", "vote"} and len(rows) == 2 * 2 * 2 * 2
