"""The metrics of segment search, each a function of the hits of one cell, query length, index and sequence search.

docs/metrics.md defines them in words; `bench.score.hits` defines a hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bench.score.statistics import bootstrap_mean, wilson

RECALL_AT = (3, 10)

Estimate = tuple[float, float, float]
"""A value with the lower and upper end of its 95 % interval."""
Metric = Callable[[pd.DataFrame], Estimate]


def _share(column: Callable[[pd.DataFrame], Any]) -> Metric:
    def measure(hits: pd.DataFrame) -> Estimate:
        is_true = np.asarray(column(hits), dtype=bool)
        return (float(is_true.mean()) if len(is_true) else 0.0, *wilson(int(is_true.sum()), len(is_true)))

    return measure


def _reciprocal_rank(hits: pd.DataFrame) -> Estimate:
    rank = hits["rank"].to_numpy(np.float64)
    reciprocal = np.divide(1.0, rank, out=np.zeros_like(rank), where=rank > 0)
    return (float(reciprocal.mean()) if len(rank) else 0.0, *bootstrap_mean(reciprocal))


METRICS: dict[str, Metric] = {
    "segment_top1": _share(lambda hits: hits["hit"]),
    "near_top1": _share(lambda hits: hits["near"]),
    "audio_top1": _share(lambda hits: hits["track_hit"]),
    **{f"recall@{k}": _share(lambda hits, k=k: (hits["rank"] > 0) & (hits["rank"] <= k)) for k in RECALL_AT},  # type: ignore[misc]
    "mrr": _reciprocal_rank,
}
"""Metrics of every search: whether the right place was found. The keys are the metric names of published rows."""

DECISIONS: dict[str, Metric] = {
    "false_accept": _share(lambda hits: hits["impostor_score"] >= hits["threshold"]),
    "false_reject": _share(lambda hits: ~(hits["track_hit"] & (hits["score"] >= hits["threshold"]))),
}
"""Metrics of searches whose score is a similarity: whether the threshold (`bench.score.threshold`) decides rightly."""
