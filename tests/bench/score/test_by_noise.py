"""Top-1 by category of noise, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench.score.by_noise import GROUP, score_by_noise
from bench.score.statistics import wilson

CELLS = pd.DataFrame(
    {
        "cell": ["clean", "noise/snr_0", "noise/snr_5", "noise/snr_0"],  # of two metrics, as rows are
        "kind": ["clean", "noise", "noise", "noise"],
        "snr_db": [np.nan, 0.0, 5.0, 0.0],
    }
)
CATEGORIES = np.array(["rain", "car", "rain"], dtype=object)


def hits(cell: str, right: list[bool], right_track: list[bool]) -> pd.DataFrame:
    table = pd.DataFrame({"query": [0, 1, 2], "hit": right, "track_hit": right_track, "cell": cell})
    return table.assign(length_s=0.96, index="exact", sequence="rescore")


def test_each_category_has_its_own_queries() -> None:
    told = pd.concat(
        [
            hits("clean", [True] * 3, [True] * 3),
            hits("noise/snr_0", [True, False, False], [True, False, True]),
            hits("noise/snr_5", [True, True, True], [True, True, True]),
        ]
    )
    rows = score_by_noise(told, CELLS, CATEGORIES)
    assert set(rows["kind"]) == {"noise"} and len(rows) == 2 * 2 * 2  # levels, categories, metrics
    values = rows.set_index(["snr_db", "category", "metric"])[["value", "n"]]
    assert values.loc[(0.0, "rain", "segment_top1")].tolist() == [0.5, 2]
    assert values.loc[(0.0, "rain", "audio_top1")].tolist() == [1.0, 2]
    assert values.loc[(0.0, "car", "segment_top1")].tolist() == [0.0, 1]
    assert values.loc[(5.0, "car", "segment_top1")].tolist() == [1.0, 1]
    half = rows[(rows["value"] == 0.5)].iloc[0]
    assert (half["low"], half["high"]) == pytest.approx(wilson(1, 2))


def test_hits_without_noisy_cells_give_no_rows() -> None:
    rows = score_by_noise(hits("clean", [True] * 3, [True] * 3), CELLS, CATEGORIES)
    assert rows.empty and list(rows.columns) == [*GROUP, "metric", "value", "n", "low", "high"]
