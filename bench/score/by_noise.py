"""Top-1 by the category of noise: hits of the noisy cells, split by what was heard beside the music.

Each category has its own queries of a cell, so that their intervals tell whether categories differ. The levels of a
cell share their queries and are not pooled.

Shape legend: Q queries.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.score.statistics import wilson

NOISY = ("noise", "noise_reverb")
TOP1 = {"segment_top1": "hit", "audio_top1": "track_hit"}
GROUP = ["kind", "snr_db", "length_s", "index", "sequence", "category"]


def score_by_noise(hits: pd.DataFrame, cells: pd.DataFrame, category_Q: npt.NDArray[np.object_]) -> pd.DataFrame:
    """Return both top-1 scores of each noisy cell, length, index, sequence search and category, with 95 % intervals.

    `hits` are those of a run, `cells` has the columns cell, kind and snr_db, and `category_Q` the category of each
    query. Columns: those of GROUP, metric, value, n, low and high (Wilson); sorted in this order.
    """
    noisy = cells.loc[cells["kind"].isin(NOISY), ["cell", "kind", "snr_db"]].drop_duplicates()
    table = hits.merge(noisy, on="cell")
    table = table.assign(category=category_Q[table["query"].to_numpy()])
    rows = []
    for group, of_group in table.groupby(GROUP, sort=True):
        for metric, column in TOP1.items():
            num_hits, num_queries = int(of_group[column].sum()), len(of_group)
            low, high = wilson(num_hits, num_queries)
            rows.append((*group, metric, num_hits / num_queries, num_queries, low, high))
    return pd.DataFrame(rows, columns=[*GROUP, "metric", "value", "n", "low", "high"])
