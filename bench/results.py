"""The result of a run: its tables, its headline numbers, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.align.evaluate import Alignments, alignment_headline, submission
from bench.align.pairs import Keypoints, write_keypoints
from bench.config import flatten
from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.evaluate import SHUFFLED, UNSHUFFLED, Evaluation
from bench.fingerprint import RANDOM_PROJECTION
from bench.score.rows import Row, score, to_frame
from bench.score.threshold import cross_fit_thresholds
from bench.settings import RunConfig
from bench.store import Store, digest, read_frame, read_json, write_frame, write_json
from bench.values import Cell

ROWS, HITS, CONDITIONS, SUMMARY, CONFIG = (
    "rows.parquet",
    "hits.parquet",
    "conditions.parquet",
    "result.json",
    "config.json",
)
ALIGNMENT, KEYPOINTS = "alignment.parquet", "keypoints.parquet"
SUBMISSIONS = "submissions"
TABLES = (ROWS, HITS, CONDITIONS, ALIGNMENT, KEYPOINTS)
HEADLINE_SEQUENCE, HEADLINE_ALIGNER = "rescore", "fingerprint-path"
DEGRADED = ("noise", "reverb", "noise_reverb")
SHUFFLED_LABELS = "shuffled-labels"
ALIGNMENT_NUMBERS = ("align_mse/", "align_mae_ms/")


@dataclass(frozen=True)
class Result:
    """All that a run found out. `summary` has its key, names, headline numbers and seconds by stage.

    A part that was not tested has no rows: `rows`, `hits` and `conditions` are of segments, `alignment` (of files) and
    `keypoints` of recorders.
    """

    rows: pd.DataFrame
    hits: pd.DataFrame
    conditions: pd.DataFrame
    summary: dict[str, Any]
    alignment: pd.DataFrame = field(default_factory=pd.DataFrame)
    keypoints: pd.DataFrame = field(default_factory=pd.DataFrame)


def start_result(key: str, benchmark: str, config: RunConfig, facts: dict[str, Any]) -> Result:
    """Return the result of a run whose encoder is trained, and not yet tested."""
    names = {"run": key, "benchmark": benchmark, "encoder": config.encoder, "preset": config.preset}
    return Result(to_frame([]), pd.DataFrame(), pd.DataFrame(), names | {"headline": {}} | facts)


def with_alignment(result: Result, aligned: Alignments) -> Result:
    """Return the result with the errors of all aligners."""
    summary = result.summary | {
        "headline": result.summary["headline"] | alignment_headline(aligned.files),
        "seconds": result.summary["seconds"] | {"alignment": aligned.seconds},
        "left_out_pairs": [f"{problem.name}: {problem.reason}" for problem in aligned.left_out],
    }
    return replace(result, alignment=aligned.files, keypoints=aligned.keypoints, summary=summary)


def with_segments(
    result: Result, store: Store, config: RunConfig, data: BenchmarkData, found: Evaluation, floor: Evaluation
) -> Result:
    """Return the result with an encoder's hits, and those of the random projection on the same queries."""
    rows: list[Row] = []
    names = {name: result.summary[name] for name in ("run", "benchmark")} | {"queries": data.queries.key}
    own = add_thresholds(found)
    for cell, hits in found.hits.items():
        rows += score(own[cell], cell, system=config.encoder, **names)
        if config.encoder != RANDOM_PROJECTION:
            rows += score(_select_truth(UNSHUFFLED, floor.hits[cell]), cell, system=RANDOM_PROJECTION, **names)
        rows += score(_select_truth(SHUFFLED, hits), cell, system=SHUFFLED_LABELS, **names)
    table = to_frame(rows)
    conditions = _conditions(store, config, data)
    controls = {f"control_{name}": seconds for name, seconds in floor.seconds.items()}
    summary = result.summary | {
        "index": config.eval.indexes[0],
        "sequence": HEADLINE_SEQUENCE,
        "queries_per_cell": len(data.queries.table),
        "database_tracks": len(found.database.tracks),
        "database_vectors": len(found.database.vectors),
        "headline": result.summary["headline"] | headline(table, conditions, config, result.summary["segment_s"]),
        "seconds": result.summary["seconds"] | data.seconds(store) | found.seconds | controls,
    }
    return replace(result, rows=table, hits=_add_names(own, data), conditions=conditions, summary=summary)


def add_thresholds(found: Evaluation) -> dict[Cell, pd.DataFrame]:
    """Return the hits of each cell with the threshold that each is judged by, NaN where there is no such thing.

    That is in the control on the grid, and where the score is a share of votes.
    """
    own = pd.concat({cell.name: _select_truth(UNSHUFFLED, hits) for cell, hits in found.hits.items()})
    own = own.assign(threshold=np.nan).rename_axis(["cell", None])
    similar = (own["sequence"] != "vote") & (own.index.get_level_values("cell") != "identity")
    own.loc[similar, "threshold"] = cross_fit_thresholds(own[similar])
    return {cell: own.loc[[cell.name]].droplevel("cell") for cell in found.hits}


def headline(rows: pd.DataFrame, conditions: pd.DataFrame, config: RunConfig, segment_s: float) -> dict[str, float]:
    """Return the scalars to compare runs by: means over all degraded cells and lengths, and the controls.

    The control on the grid is that of the shortest query that holds a whole segment of the encoder.
    """
    own = select_rows(rows, config.encoder, config.eval.indexes[0])
    shortest = min(config.eval.lengths_s)
    degraded = own[own["kind"].isin(DEGRADED)]
    floor = select_rows(rows, RANDOM_PROJECTION, "exact")
    floor = floor[floor["length_s"] == shortest]
    whole = min((length_s for length_s in config.eval.lengths_s if length_s >= segment_s), default=shortest)
    identity = own[(own["kind"] == "identity") & (own["metric"] == "segment_top1") & (own["length_s"] == whole)]
    numbers = {
        "segment_top1/mean": mean_of(degraded, "segment_top1"),
        f"segment_top1/mean_{shortest:g}s": mean_of(degraded[degraded["length_s"] == shortest], "segment_top1"),
        "audio_top1/mean": mean_of(degraded, "audio_top1"),
        "false_accept/mean": mean_of(degraded, "false_accept"),
        "false_reject/mean": mean_of(degraded, "false_reject"),
        "control/identity": float(identity["value"].iloc[0]),
        "control/random_projection": mean_of(floor[floor["kind"].isin(DEGRADED)], "segment_top1"),
        "control/shuffled_labels": mean_of(select_rows(rows, SHUFFLED_LABELS, config.eval.indexes[0]), "segment_top1"),
    }
    for index in config.eval.indexes[1:]:
        other = select_rows(rows, config.encoder, index)
        lost = mean_of(own, "segment_top1") - mean_of(other, "segment_top1")
        numbers[f"index/{index}_loses_points"] = 100 * lost
    for sequence in config.eval.sequences:
        other = select_rows(rows[rows["kind"].isin(DEGRADED)], config.encoder, config.eval.indexes[0], sequence)
        if sequence != HEADLINE_SEQUENCE and len(other):  # the search of all places stands under the exact index alone
            gained = mean_of(other, "segment_top1") - numbers["segment_top1/mean"]
            numbers[f"sequence/{sequence}_gains_points"] = 100 * gained
    if "snr_db_mean" in conditions:
        nominal = rows.drop_duplicates("cell").set_index("cell")["snr_db"].reindex(conditions["cell"]).to_numpy()
        off = pd.concat([conditions["snr_db_min"] - nominal, conditions["snr_db_max"] - nominal]).abs()
        numbers["conditions/largest_snr_error_db"] = float(off.max())
    return numbers


def select_rows(rows: pd.DataFrame, system: str, index: str, sequence: str = HEADLINE_SEQUENCE) -> pd.DataFrame:
    """Return the rows of one system found with one index and sequence search."""
    return rows[(rows["system"] == system) & (rows["index"] == index) & (rows["sequence"] == sequence)]


def write_result(folder: Path, result: Result, config: RunConfig) -> None:
    """Write a result into its run's folder; `result.json` last, as the sign that all of it is there."""
    for name, table in named_tables(result):
        write_frame(folder / name, table)
    for path, rows in submissions(folder, result).items():
        path.parent.mkdir(exist_ok=True)
        write_keypoints(path, rows)
    write_json(folder / CONFIG, flatten(config))
    write_json(folder / SUMMARY, result.summary)


def submissions(folder: Path, result: Result) -> dict[Path, Mapping[str, Keypoints]]:
    """Return the answers to pairs that nobody annotated, by the file in which the challenge wants an aligner's."""
    if result.keypoints.empty:
        return {}
    unknown_truth = result.keypoints[result.keypoints["time1_s"].isna()]
    return {
        folder / SUBMISSIONS / f"{set_name}-{split}-{str(aligner).replace(':', '-')}.csv": submission(own, str(aligner))
        for (set_name, split, aligner), own in unknown_truth.groupby(["set", "split", "aligner"])
    }


def read_result(folder: Path) -> Result:
    """Return the result in a run's folder. Raises: StoreError if a file is damaged."""
    rows, hits, conditions, alignment, keypoints = (
        read_frame(folder / name) if (folder / name).exists() else pd.DataFrame() for name in TABLES
    )
    return Result(rows, hits, conditions, read_json(folder / SUMMARY), alignment, keypoints)


def named_tables(result: Result) -> list[tuple[str, pd.DataFrame]]:
    """Return the file name of each table of a result that has any rows; the rows of segments are always there."""
    tables = (result.rows, result.hits, result.conditions, result.alignment, result.keypoints)
    return [(name, table) for name, table in zip(TABLES, tables, strict=True) if len(table) or name == ROWS]


def _conditions(store: Store, config: RunConfig, data: BenchmarkData) -> pd.DataFrame:
    """Return the achieved SNR and t60 of each cell and length; measured once for a query set."""
    cells, lengths_s = list_cells(config.eval), config.eval.lengths_s

    def build(folder: Path) -> None:
        measured = [
            {"cell": cell.name, "length_s": length_s} | data.queries.conditions(cell, length_s)
            for cell in cells
            for length_s in lengths_s
        ]
        write_frame(folder / CONDITIONS, pd.DataFrame(measured))

    key = digest(data.queries.key, [cell.name for cell in cells], lengths_s)
    return read_frame(store.fetch("conditions", key, build) / CONDITIONS)


def _select_truth(truth: str, hits: pd.DataFrame) -> pd.DataFrame:
    return hits[hits["truth"] == truth]


def mean_of(rows: pd.DataFrame, metric: str) -> float:
    """Return the mean of one metric over rows, NaN of none."""
    return float(rows.loc[rows["metric"] == metric, "value"].mean())


def _add_names(own: dict[Cell, pd.DataFrame], data: BenchmarkData) -> pd.DataFrame:
    """Return all hits in one frame, with cells and track ids by name."""
    hits = pd.concat([found.assign(cell=cell.name) for cell, found in own.items()], ignore_index=True)
    ids = data.music.tracks["id"].to_numpy()
    return hits.drop(columns="truth").assign(
        track_id=ids[hits["track"]], found_track_id=[ids[t] if t >= 0 else "" for t in hits["found_track"]]
    )
