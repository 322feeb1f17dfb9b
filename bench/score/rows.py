"""Result rows: one a run x cell x length x search x metric, tidy, under a published schema.

The schema is `results.schema.json` beside this file; SCHEMA_VERSION changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from bench.score.statistics import bootstrap_mean, wilson
from bench.values import Cell

SCHEMA_VERSION = 3
RECALL_AT = (3, 10)


@dataclass(frozen=True)
class Row:
    """One number with its interval.

    `queries` names the query set: only rows of the same one are compared. `system` is the encoder that
    was asked, or a control.
    """

    schema_version: int
    run: str
    benchmark: str
    queries: str
    system: str
    cell: str
    kind: str
    snr_db: float | None
    t60_s: float | None
    length_s: float
    index: str
    sequence: str
    metric: str
    value: float
    n: int
    low: float
    high: float


def _share(column: Callable[[pd.DataFrame], Any]) -> Callable[[pd.DataFrame], tuple[float, float, float]]:
    def of(hits: pd.DataFrame) -> tuple[float, float, float]:
        right = np.asarray(column(hits), dtype=bool)
        return (float(right.mean()) if len(right) else 0.0, *wilson(int(right.sum()), len(right)))

    return of


def _reciprocal_rank(hits: pd.DataFrame) -> tuple[float, float, float]:
    rank = hits["rank"].to_numpy(np.float64)
    reciprocal = np.divide(1.0, rank, out=np.zeros_like(rank), where=rank > 0)
    return (float(reciprocal.mean()) if len(rank) else 0.0, *bootstrap_mean(reciprocal))


METRICS: dict[str, Callable[[pd.DataFrame], tuple[float, float, float]]] = {
    "segment_top1": _share(lambda hits: hits["hit"]),
    "near_top1": _share(lambda hits: hits["near"]),
    "audio_top1": _share(lambda hits: hits["track_hit"]),
    **{f"recall@{k}": _share(lambda hits, k=k: (hits["rank"] > 0) & (hits["rank"] <= k)) for k in RECALL_AT},  # type: ignore[misc]
    "mrr": _reciprocal_rank,
}
# Of searches whose score is a similarity; the threshold is that of `bench.score.threshold`.
DECISIONS: dict[str, Callable[[pd.DataFrame], tuple[float, float, float]]] = {
    "false_accept": _share(lambda hits: hits["impostor_score"] >= hits["threshold"]),
    "false_reject": _share(lambda hits: ~(hits["track_hit"] & (hits["score"] >= hits["threshold"]))),
}


def score(hits: pd.DataFrame, cell: Cell, *, run: str, benchmark: str, queries: str, system: str) -> list[Row]:
    """Return the rows of one cell's hits: every length, index and sequence search in it, every metric.

    Those of the decision too, where hits have a threshold.
    """
    rows = []
    for group, found in hits.groupby(["length_s", "index", "sequence"], sort=True):
        length_s, index, sequence = (str(part) for part in group)
        decided = "threshold" in found and bool(found["threshold"].notna().all())
        for metric, measure in (METRICS | (DECISIONS if decided else {})).items():
            value, low, high = measure(found)
            rows.append(
                Row(
                    SCHEMA_VERSION, run, benchmark, queries, system, cell.name, cell.kind, cell.snr_db, cell.t60_s,
                    float(length_s), index, sequence, metric, value, len(found), low, high,
                )
            )  # fmt: skip
    return rows


def to_frame(rows: list[Row]) -> pd.DataFrame:
    """Return rows as a frame, one column a field."""
    return pd.DataFrame([asdict(row) for row in rows], columns=[item.name for item in fields(Row)])


def to_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON-able dicts; what is not there (the SNR of a clean cell) is null."""
    return [
        {str(name): None if isinstance(v, float) and np.isnan(v) else v for name, v in row.items()}
        for row in rows.to_dict("records")
    ]


def load_schema() -> dict[str, Any]:
    """Return the published JSON schema of a list of result rows."""
    text = files("bench.score").joinpath("results.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
