"""Published result rows: one tidy row per run, cell, query length, search and metric.

Their schema is `results.schema.json` beside this file; SCHEMA_VERSION changes with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from bench.score.metrics import AMONG_CANDIDATES, DECISIONS, RECALL_AT, TOP1, list_metrics, list_track_metrics
from bench.values import Cell

SCHEMA_VERSION = 5
SYNTHETIC, REAL = "synthetic", "real"  # where distractors are from


@dataclass(frozen=True)
class Row:
    """One number with its interval.

    `queries` identifies the query set: compare only rows of the same one. `system` is the encoder, or a control. `n` is
    the number of queries; `low` and `high` are the ends of the 95 % interval. `distortion` is None in cells without.
    `distractors` is the number of fingerprints that the database was enlarged by, and `origin` what kind they are of,
    SYNTHETIC or REAL; 0 and None in the database of the test tracks alone.
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
    distortion: str | None
    distractors: int
    origin: str | None
    length_s: float
    index: str
    sequence: str
    metric: str
    value: float
    n: int
    low: float
    high: float


def score(
    hits: pd.DataFrame,
    cell: Cell,
    *,
    run: str,
    benchmark: str,
    queries: str,
    system: str,
    recall_at: Iterable[int] = RECALL_AT,
    distractors: int = 0,
    origin: str | None = None,
) -> list[Row]:
    """Return the rows of one cell's hits: one per query length, index, sequence search and metric.

    The metrics include DECISIONS if all hits have a threshold, and AMONG_CANDIDATES if all tell whether they were one.
    Among distractors they are TOP1 alone: the hits tell which answers a distractor surpasses, but not how many do.
    """
    rows, recall_at = [], tuple(recall_at)
    metrics = list_metrics(recall_at) | list_track_metrics(recall_at)
    for group, group_hits in hits.groupby(["length_s", "index", "sequence"], sort=True):
        length_s, index, sequence = (str(part) for part in group)
        has_threshold = "threshold" in group_hits and bool(group_hits["threshold"].notna().all())
        has_candidates = "candidate" in group_hits and bool(group_hits["candidate"].notna().all())
        of_group = (DECISIONS if has_threshold else {}) | (AMONG_CANDIDATES if has_candidates else {})
        for metric, measure in (TOP1 if distractors else metrics | of_group).items():
            value, low, high = measure(group_hits)
            rows.append(
                Row(
                    schema_version=SCHEMA_VERSION,
                    run=run,
                    benchmark=benchmark,
                    queries=queries,
                    system=system,
                    cell=cell.name,
                    kind=cell.kind,
                    snr_db=cell.snr_db,
                    t60_s=cell.t60_s,
                    distortion=cell.distortion or None,
                    distractors=distractors,
                    origin=origin,
                    length_s=float(length_s),
                    index=index,
                    sequence=sequence,
                    metric=metric,
                    value=value,
                    n=len(group_hits),
                    low=low,
                    high=high,
                )
            )
    return rows


def to_frame(rows: list[Row]) -> pd.DataFrame:
    """Return rows as a frame, one column per field."""
    return pd.DataFrame([asdict(row) for row in rows], columns=[item.name for item in fields(Row)])


def to_records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as dicts for JSON; missing values (the SNR of a clean cell) are null."""
    return [
        {str(name): None if isinstance(v, float) and np.isnan(v) else v for name, v in row.items()}
        for row in rows.to_dict("records")
    ]


def load_schema() -> dict[str, Any]:
    """Return the published JSON schema of a list of result rows."""
    text = files("bench.score").joinpath("results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
