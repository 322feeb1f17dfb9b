"""The metrics of segment search, each a function of the hits of one cell, query length, index and sequence search.

docs/metrics.md defines them in words; `bench.score.hits` defines a hit. Intervals are over tracks: several queries of
one are alike.

Shape legend: Q queries, R ranked places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from bench.score.statistics import bootstrap_mean, share_interval
from bench.values import Ints

RECALL_AT = (3, 10)

Estimate = tuple[float, float, float]
"""A value with the lower and upper end of its 95 % interval."""
Metric = Callable[[pd.DataFrame], Estimate]


def _share(column: Callable[[pd.DataFrame], Any]) -> Metric:
    def measure(hits: pd.DataFrame) -> Estimate:
        is_true = np.asarray(column(hits), dtype=bool)
        track_Q = hits["track"].to_numpy()
        return (float(is_true.mean()) if len(is_true) else 0.0, *share_interval(is_true, track_Q))

    return measure


def recall_at(k: int, column: str = "rank") -> Metric:
    """Return the metric of what is right among the first k; `column` of the hits is its rank from 1, 0 for none."""
    return _share(lambda hits: (hits[column] > 0) & (hits[column] <= k))


def reciprocal_rank(column: str = "rank") -> Metric:
    """Return the metric of the mean of 1 / rank, where a rank of 0 counts as 0."""

    def measure(hits: pd.DataFrame) -> Estimate:
        rank = hits[column].to_numpy(np.float64)
        reciprocal = np.divide(1.0, rank, out=np.zeros_like(rank), where=rank > 0)
        return (float(reciprocal.mean()) if len(rank) else 0.0, *bootstrap_mean(reciprocal, hits["track"].to_numpy()))

    return measure


TOP1: dict[str, Metric] = {
    "segment_top1": _share(lambda hits: hits["hit"]),
    "near_top1": _share(lambda hits: hits["near"]),
    "audio_top1": _share(lambda hits: hits["track_hit"]),
}
"""Metrics of the best answer alone."""


def list_metrics(recalls: Iterable[int]) -> dict[str, Metric]:
    """Return the metrics of every search, with recall among the first k places for each k."""
    return {
        **TOP1,
        **{f"recall@{k}": recall_at(k) for k in recalls},
        "mrr": reciprocal_rank(),
    }


def list_track_metrics(recalls: Iterable[int]) -> dict[str, Metric]:
    """Return recall among the first k tracks for each k, and MRR of the right track; for hits with a `track_rank`."""
    return {
        **{f"track_recall@{k}": recall_at(k, "track_rank") for k in recalls},
        "track_mrr": reciprocal_rank("track_rank"),
    }


def find_track_rank(row_QR: Ints, own_Q: Ints) -> Ints:
    """Return the rank (Q,) of the right track among the tracks found, from 1; 0 if it is not among them.

    `row_QR` are the tracks of the ranked places, -1 after the last place, and `own_Q` the right ones, in the same
    numbers. Several places of one track count as one: the tracks are ranked by their first places.
    """
    num_ranks = row_QR.shape[1]
    is_earlier_RR = np.tri(num_ranks, k=-1, dtype=bool)
    is_repeated_QR = ((row_QR[:, :, None] == row_QR[:, None, :]) & is_earlier_RR).any(axis=2)
    rank_QR = np.cumsum(~is_repeated_QR, axis=1)
    is_own_QR = (row_QR == own_Q[:, None]) & (row_QR >= 0)
    # Of the places of the right track only the first is not repeated.
    rank_Q: Ints = np.where(is_own_QR & ~is_repeated_QR, rank_QR, 0).max(axis=1, initial=0)
    return rank_Q


METRICS: dict[str, Metric] = list_metrics(RECALL_AT) | list_track_metrics(RECALL_AT)
"""Metrics of every search: whether the right place and track were found. Their keys are the names in published rows."""

DECISIONS: dict[str, Metric] = {
    "false_accept": _share(lambda hits: hits["impostor_score"] >= hits["threshold"]),
    "false_reject": _share(lambda hits: ~(hits["track_hit"] & (hits["score"] >= hits["threshold"]))),
}
"""Metrics of searches whose score is a similarity: whether the threshold (`bench.score.threshold`) decides rightly."""

AMONG_CANDIDATES: dict[str, Metric] = {"among_candidates": _share(lambda hits: hits["candidate"])}
"""The metric of searches that choose among candidates of another: whether the true start was one of them."""
